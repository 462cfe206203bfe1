"""Mean and deviation of the pixels of videos: what a model's input is normalised with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from savimae.data.fitting import PRESS, place_frame
from savimae.data.lists import Video
from savimae.data.video import naming_video, open_video
from savimae.samples.clips import FrameResizer
from savimae.system.errors import SavimaeError, shown
from savimae.system.progress import Progress
from savimae.system.sizes import FrameSize, sides

MOST_VIDEOS, MOST_FRAMES = 256, 16  # of a video


class PixelStatistics(NamedTuple):
    """Of pixels in 0 to 1, for each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    n_videos: int
    n_frames: int


def measure_pixels(
    videos: Sequence[Video], input_size: FrameSize, channels: int, fit: str = PRESS
) -> PixelStatistics:
    """Statistics over at most 256 videos, spread evenly over the list, and 16 frames of each.

    Frames are spread evenly over their video, and seen whole in the size that the model sees.
    Nothing is drawn at random.

    Args:
        input_size: of the frames, in pixels.
        channels: 3, RGB; 1, gray.
        fit: how frames become such ones; padding does not count.

    Raises:
        SavimaeError: a video cannot be decoded, or a channel has one value only.
    """
    chosen = np.unique(np.linspace(0, len(videos) - 1, MOST_VIDEOS).round().astype(int))
    resizer = FrameResizer(channels)
    counts = np.zeros((channels, 256), np.int64)  # exact, in whatever order
    n_frames = 0
    with Progress("measuring pixels", delay_s=1.0) as progress:
        for number, video in enumerate(videos[index] for index in chosen):
            progress.show(number / len(chosen), f"{number}/{len(chosen)} videos")
            with naming_video(video.path):
                frames = open_video(video.path).read_clip(_spread, channels=channels).frames
            for frame in frames:
                height, width, _ = frame.shape
                part, place = place_frame(height, width, sides(input_size), 1, fit)
                pixels = np.empty((place.height, place.width, channels), np.uint8)
                resizer.resize(frame, part, False, pixels)
                for channel in range(channels):
                    counts[channel] += np.bincount(pixels[..., channel].ravel(), minlength=256)
            n_frames += len(frames)
    levels = np.arange(256)
    totals = counts.sum(1)
    means = counts @ levels / totals
    variances = counts @ levels**2 / totals - means**2
    if (np.count_nonzero(counts, axis=1) < 2).any():
        raise SavimaeError(
            f"{shown(videos[0].path)}: all pixels of these {len(chosen)} videos are alike; there "
            "is nothing to learn from them"
        )
    return PixelStatistics(
        tuple(float(mean) / 255 for mean in means),
        tuple(math.sqrt(variance) / 255 for variance in variances),
        len(chosen),
        n_frames,
    )


def _spread(n_frames: int) -> np.ndarray:
    return np.unique(np.linspace(0, n_frames - 1, MOST_FRAMES).round().astype(np.int64))


def option_words(statistics: PixelStatistics) -> str:
    """The options of `savimae train` that say these."""
    mean, std = (",".join(f"{value:.4f}" for value in each) for each in statistics[:2])
    return f"--pixel-mean {mean} --pixel-std {std}"
