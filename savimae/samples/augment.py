"""Augmentation for fine-tuning. What is drawn depends on the key of the sample alone.

Legend: T frames of a clip, H, W sides of the input, K classes. All frames of a clip are treated
alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv

from savimae.data.fitting import Box
from savimae.model.videomae import IMAGENET_MEAN, IMAGENET_STD
from savimae.samples.randomness import CROP, DROP_PATH, DROPOUT, ERASING, MIXING, uniform
from savimae.system.sizes import Sides

ATTEMPTS = 10  # at a crop or a rectangle that fits
CROP_ASPECTS = (3 / 4, 4 / 3)  # width : height, of squares (Szegedy et al., 2015)
ERASED_SHARES = (0.02, 1 / 3)  # of the frame (Zhong et al., 2020, with the limits of VideoMAE)
ERASED_ASPECTS = (0.3, 1 / 0.3)  # height : width


def resized_crop_box(height: int, width: int, size: Sides, smallest: float, key: np.uint64) -> Box:
    """A part of the frames with a share of their area in [smallest, 1].

    Its aspect is 3/4 to 4/3 times that of `size`. If none fits in ten attempts, the largest middle
    part with such an aspect.
    """
    wide = size.width / size.height
    for share, aspect, x, y in uniform(key, CROP, 4 * ATTEMPTS).reshape(-1, 4):
        area = height * width * (smallest + share * (1 - smallest))
        ratio = wide * _between(*CROP_ASPECTS, aspect)
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = int(x * (width - crop_width + 1)), int(y * (height - crop_height + 1))
            return Box(left, top, crop_width, crop_height)
    crop_width = min(width, round(height * CROP_ASPECTS[1] * wide))
    crop_height = min(height, round(width / CROP_ASPECTS[0] / wide))
    return Box((width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height)


def erase(
    pixels: np.ndarray,
    probability: float,
    key: np.uint64,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> None:
    """Fill a random rectangle of a clip uint8 `[T, H, W, C]` with noise, in place, or do nothing.

    The noise is normal with the mean and deviation that the input is normalised with.

    Args:
        mean, std: of pixels in 0 to 1, for each of the C channels.
    """
    n_frames, whole_height, whole_width, channels = pixels.shape
    first, *draws = uniform(key, ERASING, 1 + 4 * ATTEMPTS)
    if first >= probability:
        return
    for share, aspect, x, y in np.reshape(draws, (-1, 4)):
        erased = ERASED_SHARES[0] + share * (ERASED_SHARES[1] - ERASED_SHARES[0])
        area = whole_height * whole_width * erased
        ratio = _between(*ERASED_ASPECTS, aspect)
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < height < whole_height and 0 < width < whole_width:
            top, left = int(y * (whole_height - height + 1)), int(x * (whole_width - width + 1))
            rng = np.random.default_rng([int(key), int(ERASING)])
            noise = rng.standard_normal((n_frames, height, width, channels), np.float32)
            values = (noise * std + mean) * 255
            pixels[:, top : top + height, left : left + width] = values.clip(0, 255).round()
            return


def _between(low: float, high: float, share: float) -> float:
    """A ratio, evenly on a logarithmic scale."""
    return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))


class Mixing(NamedTuple):
    """How a clip is mixed with another one."""

    share: float  # of the clip itself, in the pixels and in the target
    box: tuple[int, int, int, int] | None  # CutMix: top, bottom, left, right of the other's part


def draw_mixing(size: Sides, mixup: float, cutmix: float, key: np.uint64) -> Mixing:
    """MixUp (Zhang et al., 2018) or CutMix (Yun et al., 2019), each for every other clip.

    Args:
        size: sides of the frames.
        mixup, cutmix: both parameters of the Beta distribution of the share; 0: never.
    """
    choice, draw, x, y = uniform(key, MIXING, 4)
    if not (mixup or cutmix):
        return Mixing(1.0, None)
    if not cutmix or (mixup and choice < 0.5):
        return Mixing(float(betaincinv(mixup, mixup, draw)), None)
    share = math.sqrt(1 - betaincinv(cutmix, cutmix, draw))
    box_height, box_width = int(size.height * share), int(size.width * share)
    row, column = int(y * size.height), int(x * size.width)
    top, bottom = max(row - box_height // 2, 0), min(row + box_height // 2, size.height)
    left, right = max(column - box_width // 2, 0), min(column + box_width // 2, size.width)
    area = (bottom - top) * (right - left)
    return Mixing(1 - area / (size.height * size.width), (top, bottom, left, right))


def mix_clips(pixels: np.ndarray, other: np.ndarray, mixing: Mixing) -> np.ndarray:
    """Two clips uint8 `[T, H, W, C]` as one."""
    if mixing.box is None:
        share = np.float32(mixing.share)
        return (pixels * share + other * (1 - share)).round().astype(np.uint8)
    top, bottom, left, right = mixing.box
    mixed = pixels.copy()
    mixed[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    return mixed


def soft_target(
    label: int, other: int, share: float, n_classes: int, smoothing: float
) -> np.ndarray:
    """Probabilities float32 `[K]`: `share` for the label, the rest for the other one, smoothed.

    Smoothing spreads its share evenly over all classes (Szegedy et al., 2016).
    """
    target = np.full(n_classes, smoothing / n_classes, np.float32)
    target[label] += (1 - smoothing) * share
    target[other] += (1 - smoothing) * (1 - share)
    return target


def soft_labels(
    labels: Sequence[int], others: Sequence[int], share: float, n_labels: int, smoothing: float
) -> np.ndarray:
    """Probabilities of labels float32 `[K]`: those of `labels` get `share`, of `others` the rest.

    Smoothing moves each towards 1/2: `smoothing / 2` for a label that neither has.
    """
    target = np.zeros(n_labels, np.float64)
    target[list(labels)] += share
    target[list(others)] += 1 - share
    return (smoothing / 2 + (1 - smoothing) * target).astype(np.float32)


def drop_path_branches(key: np.uint64, rate: float, depth: int) -> np.ndarray:
    """What the residual branches of one clip are multiplied with: float32 `[L, 2]`.

    0 where a branch is dropped, else 1 / (1 - its rate), so that the mean stays 1 (Huang et al.,
    2016, "Deep networks with stochastic depth").
    """
    rates = drop_path_rates(rate, depth)[:, None]
    kept = uniform(key, DROP_PATH, 2 * depth).reshape(depth, 2) >= rates
    return (kept / (1 - rates)).astype(np.float32)


def dropout_features(key: np.uint64, rate: float, dim: int) -> np.ndarray:
    """What the pooled features of one clip are multiplied with before the head: float32 `[D]`.

    0 where one is dropped, else 1 / (1 - rate) (Srivastava et al., 2014, "Dropout").
    """
    return ((uniform(key, DROPOUT, dim) >= rate) / (1 - rate)).astype(np.float32)


def drop_path_rates(rate: float, depth: int) -> np.ndarray:
    """How often the branches of each block are dropped: from 0 to `rate`, float64 `[L]`."""
    return np.linspace(0, rate, depth)
