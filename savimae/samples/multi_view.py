"""Views of a video for testing: clips spread over its time, crops spread over its frames.

Legend: V views, T frames of a clip, H, W sides of the input, K crops of a frame, C channels of a
pixel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from savimae.data.fitting import PAD, PRESS, Box, largest_part, place_frame, place_part
from savimae.data.lists import Video
from savimae.data.video import VideoError, open_video
from savimae.samples.clips import ClipConfig, FrameResizer
from savimae.system.errors import UsageError
from savimae.system.sizes import Sides

TEST_CLIPS, TEST_CROPS = 5, 3  # of the published tests of classifiers


@dataclasses.dataclass(frozen=True)
class Views:
    """How many clips and crops of a video are tested."""

    clips: int = 1  # spread evenly; a single one is the middle of the video
    crops: int | None = None  # spread along the side with room; None: the whole frame

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


def spread_crops(height: int, width: int, size: Sides, n_crops: int) -> list[Box]:
    """The largest parts of a frame in the shape of `size`, from one end to the other.

    Of squares, along the longer side. A single one is the middle.
    """
    part = largest_part(height, width, size)
    in_width, in_height = width - part.width, height - part.height
    room = max(in_width, in_height)
    offsets = [room // 2] if n_crops == 1 else np.linspace(0, room, n_crops).round().astype(int)
    if in_width >= in_height:
        return [Box(int(offset), 0, part.width, part.height) for offset in offsets]
    return [Box(0, int(offset), part.width, part.height) for offset in offsets]


class Window(NamedTuple):
    """A part of a video, and its views."""

    start_s: float
    end_s: float
    span_s: float  # of a clip, from its first frame to its last
    views: np.ndarray  # uint8 [V, T, H, W, C]


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
    """Reads the views of videos; may be used by several threads at once.

    Raises:
        UsageError: crops of frames that are padded.
    """

    def __init__(self, config: ClipConfig, views: Views):
        if config.fit == PAD and views.crops is not None:
            raise UsageError(
                f"{views.crops} crops of a frame are not what a model of padded frames (--fit pad) "
                "sees; give 0, for whole frames (--crops 0, --test-crops 0 of `savimae finetune`)"
            )
        self.config = config
        self.views = views

    def read(self, video: Video) -> np.ndarray:
        """All views of `video`, the crops of a clip together: uint8 `[V, T, H, W, C]`.

        Raises:
            VideoError: the video cannot be decoded.
        """
        chosen: list[np.ndarray] = []

        def choose(n_frames: int) -> np.ndarray:
            chosen[:] = [spread_clips(n_frames, self.config, self.views.clips)]
            return np.unique(chosen[0])

        frames, indices = open_video(video.path).read_clip(choose, channels=self.config.channels)
        resizer = FrameResizer(self.config.channels)
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
        resizer = FrameResizer(self.config.channels)
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
        """Frame uint8 `[h, w, C]` -> its crops `[K, H, W, C]`."""
        size, n_crops = self.config.sides, self.views.crops
        height, width, _ = frame.shape
        if n_crops is None:
            placed = [place_frame(height, width, size, self.config.patch_size, self.config.fit)]
        else:
            boxes = spread_crops(height, width, size, n_crops)
            placed = [place_part(box, size, self.config.patch_size, PRESS) for box in boxes]
        crops = np.empty((len(placed), *size, self.config.channels), np.uint8)
        for placement, out in zip(placed, crops, strict=True):
            resizer.place(frame, placement, False, out)
        return crops

    @staticmethod
    def _assemble(crops_of: dict[int, np.ndarray], clips: np.ndarray) -> np.ndarray:
        """Crops `[K, H, W, C]` by frame, clips int `[clips, T]` -> uint8 `[V, T, H, W, C]`."""
        # [clips, T, K, H, W, C] -> [clips, K, T, H, W, C] -> [V, T, H, W, C]
        pixels = np.stack([[crops_of[int(index)] for index in clip] for clip in clips])
        return np.ascontiguousarray(pixels.swapaxes(1, 2)).reshape(
            -1, *pixels.shape[1:2], *pixels.shape[3:]
        )
