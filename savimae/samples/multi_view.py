"""Views of a video for testing: clips spread over its time, crops spread over its frames.

Legend: V views, T frames of a clip, S input size.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from savimae.data.lists import Video
from savimae.data.video import open_video
from savimae.samples.clips import Box, ClipConfig, FrameResizer


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


class ViewReader:
    """Reads the views of videos; may be used by several threads at once."""

    def __init__(self, config: ClipConfig, views: Views):
        self.config = config
        self.views = views

    def read(self, video: Video) -> np.ndarray:
        """All views of `video`, the crops of a clip together: uint8 `[V, T, S, S, 3]`.

        Raises:
            VideoError: the video cannot be decoded.
        """
        chosen: list[np.ndarray] = []

        def choose(n_frames: int) -> np.ndarray:
            chosen[:] = [spread_clips(n_frames, self.config, self.views.clips)]
            return np.unique(chosen[0])

        frames, indices = open_video(video.path).read_clip(choose)
        size = self.config.input_size
        crops = self.views.crops or 1
        resized = np.empty((len(frames), crops, size, size, 3), np.uint8)
        resizer = FrameResizer(size)
        for index, frame in enumerate(frames):
            boxes = spread_crops(frame.shape[0], frame.shape[1], self.views.crops)
            for number, box in enumerate(boxes):
                resizer.resize(frame, box, False, resized[index, number])
        # [clips, T] places among the frames -> [clips, T, crops, S, S, 3] -> [V, T, S, S, 3]
        pixels = resized[np.searchsorted(indices, chosen[0])].swapaxes(1, 2)
        return np.ascontiguousarray(pixels).reshape(-1, *pixels.shape[2:])
