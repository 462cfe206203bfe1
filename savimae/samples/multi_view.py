"""Views of a video for testing: clips spread over its time, crops spread over its frames.

Legend: V views, T frames of a clip, S input size, K crops of a frame, C channels of a
pixel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from savimae.data.lists import Video
from savimae.data.video import VideoError, open_video
from savimae.samples.clips import Box, ClipConfig, FrameResizer

TEST_CLIPS, TEST_CROPS = 5, 3  # of the published tests of classifiers


@dataclasses.dataclass(frozen=True)
class Views:
    """How many clips and crops of a video are tested."""

    clips: int = 1  # spread evenly; a single one is the middle of the video
    crops: int | None = None  # squares spread along the longer side; None: the whole frame, pressed

    def __post_init__(self) -> None:
        for name in ("clips", "crops"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")

    @property
    def count(self) -> int:
        """V: every crop of every clip."""
        return self.clips * (self.crops or 1)


def spread_clips(n_frames: int, config: ClipConfig, n_clips: int) -> np.ndarray:
    """Frames of clips spread over a video of `n_frames`: ascending int64 `[n_clips, T]`.

    The first clip starts with the video and the last one ends with it; a single one is its middle.
    A video that is shorter than a clip repeats its last reachable frame, as in training.
    """
    offsets = np.arange(config.num_frames, dtype=np.int64) * config.sampling_rate
    if n_frames < config.span:
        last = (n_frames - 1) // config.sampling_rate * config.sampling_rate
        return np.tile(np.minimum(offsets, last), (n_clips, 1))
    room = n_frames - config.span
    starts = np.array([room // 2]) if n_clips == 1 else np.linspace(0, room, n_clips).round()
    return starts.astype(np.int64)[:, None] + offsets


def spread_crops(height: int, width: int, n_crops: int | None) -> list[Box]:
    """Squares along the longer side of a frame, from one end to the other; one is its middle."""
    if n_crops is None:
        return [Box(0, 0, width, height)]
    side, room = min(height, width), abs(height - width)
    offsets = [room // 2] if n_crops == 1 else np.linspace(0, room, n_crops).round().astype(int)
    if width >= height:
        return [Box(int(offset), 0, side, side) for offset in offsets]
    return [Box(0, int(offset), side, side) for offset in offsets]


class Window(NamedTuple):
    """A part of a video, and its views."""

    start_s: float
    end_s: float
    span_s: float  # of a clip, from its first frame to its last
    views: np.ndarray  # uint8 [V, T, S, S, C]


def window_clips(
    n_frames: int, per_window: int, config: ClipConfig, n_clips: int
) -> list[np.ndarray]:
    """Frames of the clips of consecutive windows of a video: ascending int64 `[n_clips, T]` each.

    Clips are spread over their window. A clip that is longer than it reaches beyond it, on both
    sides alike where the video goes on there.
    """
    clips = []
    for start in range(0, n_frames, per_window):
        end = min(start + per_window, n_frames)
        beyond = max(0, config.span - (end - start))
        first = max(0, min(start - beyond // 2, n_frames - config.span))
        last = min(n_frames, max(end, first + config.span))
        clips.append(first + spread_clips(last - first, config, n_clips))
    return clips


class ViewReader:
    """Reads the views of videos; may be used by several threads at once."""

    def __init__(self, config: ClipConfig, views: Views):
        self.config = config
        self.views = views

    def read(self, video: Video) -> np.ndarray:
        """All views of `video`, the crops of a clip together: uint8 `[V, T, S, S, C]`.

        Raises:
            VideoError: the video cannot be decoded.
        """
        chosen: list[np.ndarray] = []

        def choose(n_frames: int) -> np.ndarray:
            chosen[:] = [spread_clips(n_frames, self.config, self.views.clips)]
            return np.unique(chosen[0])

        frames, indices = open_video(video.path).read_clip(choose, channels=self.config.channels)
        resizer = FrameResizer(self.config.input_size, self.config.channels)
        cropped = [self._crops(frame, resizer) for frame in frames]
        return self._assemble(dict(zip(indices.tolist(), cropped, strict=True)), chosen[0])

    def read_windows(self, video: Video, every_s: float) -> Iterator[Window]:
        """The views of each window of `every_s` seconds, in order; the video is decoded once.

        Raises:
            VideoError: the video cannot be decoded, or does not say how long a frame lasts.
        """
        source = open_video(video.path)
        n_frames = source.count_frames()
        if not source.frames_per_s:
            raise VideoError("does not say how many frames a second it has, which --every needs")
        if every_s * source.frames_per_s < 1:
            raise VideoError(f"has frames of {1 / source.frames_per_s:.3g} s: --every is shorter")
        per_window = round(every_s * source.frames_per_s)
        of_windows = window_clips(n_frames, per_window, self.config, self.views.clips)
        wanted = np.unique(np.concatenate(of_windows))
        frames = zip(wanted.tolist(), source.frames_at(wanted, self.config.channels), strict=True)
        resizer = FrameResizer(self.config.input_size, self.config.channels)
        kept: dict[int, np.ndarray] = {}  # frame -> its crops, until no window needs it any more
        for number, chosen in enumerate(of_windows):
            kept = {index: crops for index, crops in kept.items() if index >= chosen.min()}
            while not kept or max(kept) < chosen.max():
                index, frame = next(frames)
                kept[index] = self._crops(frame, resizer)
            start = number * per_window
            end = min(start + per_window, n_frames)
            yield Window(
                start / source.frames_per_s, end / source.frames_per_s,
                self.config.span / source.frames_per_s, self._assemble(kept, chosen),
            )  # fmt: skip

    def _crops(self, frame: np.ndarray, resizer: FrameResizer) -> np.ndarray:
        """Frame uint8 `[H, W, C]` -> its crops `[K, S, S, C]`."""
        size = self.config.input_size
        boxes = spread_crops(frame.shape[0], frame.shape[1], self.views.crops)
        crops = np.empty((len(boxes), size, size, self.config.channels), np.uint8)
        for box, out in zip(boxes, crops, strict=True):
            resizer.resize(frame, box, False, out)
        return crops

    @staticmethod
    def _assemble(crops_of: dict[int, np.ndarray], clips: np.ndarray) -> np.ndarray:
        """Crops `[K, S, S, C]` by frame, clips int `[clips, T]` -> uint8 `[V, T, S, S, C]`."""
        # [clips, T, K, S, S, C] -> [clips, K, T, S, S, C] -> [V, T, S, S, C]
        pixels = np.stack([[crops_of[int(index)] for index in clip] for clip in clips])
        return np.ascontiguousarray(pixels.swapaxes(1, 2)).reshape(
            -1, *pixels.shape[1:2], *pixels.shape[3:]
        )
