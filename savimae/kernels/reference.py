"""The kernels in plain NumPy, slow and obvious: the compiled ones must equal them bit for bit.

The resizing filter's weights come from `resize.bilinear_taps`; tests hold the whole against Pillow.
"""

from __future__ import annotations

import itertools

import numpy as np

from savimae.kernels.resize import PRECISION_BITS, bilinear_taps


def luma(rgb: np.ndarray) -> np.ndarray:
    """RGB uint8 `[..., 3]` -> gray uint8 `[...]`: ITU-R 601, fixed point, as Pillow's "L"."""
    red, green, blue = (rgb[..., channel].astype(np.uint32) for channel in range(3))
    gray = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return np.asarray(gray, np.uint8)


def resize_rows(plane: np.ndarray, n_out: int) -> np.ndarray:
    """Resample the last axis: uint8 `[h, w]` -> uint8 `[h, n_out]`."""
    starts, taps = bilinear_taps(plane.shape[1], n_out)
    result = np.empty((plane.shape[0], n_out), np.uint8)
    for i, (start, weights) in enumerate(zip(starts, taps, strict=True)):
        pixels = plane[:, start : start + len(weights)].astype(np.int64)
        sums = pixels @ weights[: pixels.shape[1]] + (1 << (PRECISION_BITS - 1))
        result[:, i] = sums >> PRECISION_BITS
    return result


def resize(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 `[h, w]` -> uint8 `[height, width]`, horizontal pass first."""
    return resize_rows(resize_rows(plane, width).T, height).T


def saliency_map(gray: np.ndarray) -> np.ndarray:
    """Resized frame uint8 `[H, W]` -> saliency map uint8 `[H, W]`."""
    if gray.min() == gray.max():
        return np.zeros_like(gray)
    mean = np.float32(gray.sum(dtype=np.int64) / (255.0 * gray.size))
    deviation = np.abs(gray.astype(np.float32) / np.float32(255) - mean)
    return (deviation / deviation.max() * np.float32(255)).astype(np.uint8)


def map_patches(saliency: np.ndarray, patch_size: int, threshold: float) -> np.ndarray:
    """Saliency map uint8 `[H, W]` -> uint8 `[H / P, W / P]`: 1 where any pixel is salient."""
    pooled = _by_patch(saliency / 255 >= threshold, patch_size).any(axis=(1, 3))
    return np.asarray(pooled, np.uint8)


def frame_patches(
    plane: np.ndarray, height: int, width: int, patch_size: int, threshold: float
) -> np.ndarray:
    """Gray plane uint8 `[h, w]` -> salient patches uint8 `[H / P, W / P]`, in two steps."""
    return map_patches(saliency_map(resize(plane, height, width)), patch_size, threshold)


def map_scores(differences: np.ndarray, patch_size: int) -> np.ndarray:
    """Differences uint8 `[H, W]` -> their mean over patches in quarters, uint8 `[H / P, W / P]`."""
    area = patch_size**2
    totals = _by_patch(differences, patch_size).sum(axis=(1, 3), dtype=np.int64)
    return np.minimum(255, (4 * totals + area // 2) // area).astype(np.uint8)


def _by_patch(frame: np.ndarray, patch_size: int) -> np.ndarray:
    """`[H, W]` -> `[H / P, P, W / P, P]`."""
    height, width = frame.shape
    return frame.reshape(height // patch_size, patch_size, width // patch_size, patch_size)


def change_scores(planes: list[np.ndarray], height: int, width: int, patch_size: int) -> np.ndarray:
    """Gray planes uint8 `[h, w]` of a video -> uint8 `[T, H / P, W / P]`."""
    resized = [resize(plane, height, width).astype(np.int64) for plane in planes]
    differences = [np.abs(b - a).astype(np.uint8) for a, b in itertools.pairwise(resized)]
    first = differences[0] if differences else np.zeros((height, width), np.uint8)
    return np.stack([map_scores(each, patch_size) for each in (first, *differences)])


def token_targets(tokens: np.ndarray, is_normalized: bool, channels: int = 3) -> np.ndarray:
    """Tokens uint8 `[M, V]`, channel last -> targets float64 `[M, V]`."""
    pixels = tokens.reshape(len(tokens), -1, channels) / 255
    if is_normalized:
        mean = pixels.mean(1, keepdims=True)
        pixels = (pixels - mean) / (pixels.std(1, ddof=1, keepdims=True) + 1e-6)
    return pixels.reshape(len(tokens), -1)


def token_losses(
    tokens: np.ndarray, prediction: np.ndarray, is_normalized: bool, channels: int = 3
) -> np.ndarray:
    """Mean squared error of each token: uint8 `[M, V]`, float `[M, V]` -> float64 `[M]`."""
    return np.square(prediction - token_targets(tokens, is_normalized, channels)).mean(1)


def token_gradients(
    tokens: np.ndarray,
    prediction: np.ndarray,
    is_normalized: bool,
    factor: float,
    channels: int = 3,
) -> np.ndarray:
    """factor * (prediction - target), float64 `[M, V]`."""
    return factor * (prediction - token_targets(tokens, is_normalized, channels))
