"""Saliency of a frame and its pooling to patches, in one pass over the resized frame.

Legend: H, W sides of the resized frame, P side of a patch, H_p = H / P, W_p = W / P.

With p = g / 255 for the gray level g, m = mean(p), all in float32:

    saliency(g) = |p - m| / max |p - m|,  map(g) = uint8(saliency * 255), truncated
    a patch is salient where any of its pixels has map / 255 >= threshold

map(g) grows with |g - m|, so the greatest map value of a patch is that of its darkest or of its
brightest pixel, and the greatest deviation of the frame that of its darkest or brightest pixel.
One pass that keeps minimum and maximum of each patch and the sum of the frame decides everything;
no map is written. The mean comes from the integer sum: the order of summation does not matter.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int64, uint8, uint64

from savimae.kernels._jit import compile_lock, jit
from savimae.kernels.change import compile_change
from savimae.kernels.luma import luma
from savimae.kernels.resize import ResizeBuffers, resize, resize_buffers
from savimae.kernels.rgb import luma_rgb, resize_gray, resize_rgb


def smallest_salient_level(threshold: float) -> int:
    """The smallest map value v in 0..255 with v / 255 >= threshold (128 for 0.5).

    `threshold` is in [0, 1]; 0 makes every patch salient.
    """
    return int(np.argmax(np.arange(256) / 255 >= threshold))


@jit
def _mean(total, pixels):
    """Mean of g / 255 over a frame as float32, from the integer sum of g."""
    return float32(total / (255.0 * pixels))


@jit
def _deviation(level, mean):
    """|g / 255 - mean| in float32."""
    return abs(float32(level) / float32(255) - mean)


@jit
def _map_value(level, mean, peak):
    """Map value (0..255) of gray `level` in a frame with this mean and greatest deviation."""
    if peak == float32(0):
        return uint8(0)
    return uint8(_deviation(level, mean) / peak * float32(255))


@jit
def patch_extrema(gray, patch_height, patch_width, low, high):
    """Darkest and brightest pixel of each patch; returns the sum of the frame (int64).

    gray uint8 [H, >= W]; writes low, high uint8 [H_p, W_p].
    """
    rows, columns = low.shape
    width = columns * patch_width
    column_low = np.empty(width, np.uint8)
    column_high = np.empty(width, np.uint8)
    total = int64(0)
    for j in range(rows):
        column_low[:] = 255
        column_high[:] = 0
        for y in range(j * patch_height, (j + 1) * patch_height):
            row = gray[y]
            row_total = np.uint32(0)
            for x in range(width):
                value = row[x]
                row_total += np.uint32(value)
                column_low[x] = min(column_low[x], value)
                column_high[x] = max(column_high[x], value)
            total += int64(row_total)
        # One loop each, with unsigned indices (no wrap-around test), so that both vectorise.
        for i in range(columns):
            darkest = uint8(255)
            for x in range(uint64(i * patch_width), uint64((i + 1) * patch_width)):
                darkest = min(darkest, column_low[x])
            low[j, i] = darkest
        for i in range(columns):
            brightest = uint8(0)
            for x in range(uint64(i * patch_width), uint64((i + 1) * patch_width)):
                brightest = max(brightest, column_high[x])
            high[j, i] = brightest
    return total


@jit
def _frame_range(low, high):
    """Darkest and brightest pixel of the frame, from those of its patches."""
    darkest, brightest = uint8(255), uint8(0)
    for j in range(low.shape[0]):
        for i in range(low.shape[1]):
            darkest = min(darkest, low[j, i])
            brightest = max(brightest, high[j, i])
    return darkest, brightest


@jit
def _peak(darkest, brightest, mean):
    """Greatest deviation of a frame; 0 for a constant frame, whatever the mean was rounded to."""
    if darkest == brightest:
        return float32(0)
    return max(_deviation(darkest, mean), _deviation(brightest, mean))


@jit
def frame_patches(plane, height, width, buffers, patch_size, smallest_level, out):
    """Gray plane -> salient patches, everything in one call.

    plane uint8 C-contiguous, its top left [height, width] is the frame; `buffers` as of `resize`.
    Writes out uint8 [H_p, W_p]: 1 where the patch is salient, else 0.
    """
    resize(plane, height, width, buffers)
    gray = ResizeBuffers(*buffers).gray
    low = np.empty(out.shape, np.uint8)
    high = np.empty(out.shape, np.uint8)
    total = patch_extrema(gray, patch_size, patch_size, low, high)
    mean = _mean(total, out.size * patch_size * patch_size)
    darkest, brightest = _frame_range(low, high)
    peak = _peak(darkest, brightest, mean)
    for j in range(out.shape[0]):
        for i in range(out.shape[1]):
            value = max(_map_value(low[j, i], mean, peak), _map_value(high[j, i], mean, peak))
            out[j, i] = uint8(value >= smallest_level)


@jit
def saliency_map(gray, out):
    """Resized frame gray uint8 [H, >= W] -> its saliency map; writes out uint8 [H, W]."""
    height, width = out.shape
    low = np.empty((1, 1), np.uint8)
    high = np.empty((1, 1), np.uint8)
    total = patch_extrema(gray, height, width, low, high)
    mean = _mean(total, height * width)
    peak = _peak(low[0, 0], high[0, 0], mean)
    levels = np.empty(256, np.uint8)  # a frame has at most 256 different answers
    for level in range(256):
        # Levels outside the frame's range could exceed 255; they do not occur.
        levels[level] = _map_value(min(max(level, low[0, 0]), high[0, 0]), mean, peak)
    for y in range(height):
        for x in range(width):
            out[y, x] = levels[gray[y, x]]


@jit
def map_patches(gray, patch_size, smallest_level, out):
    """Saliency map gray uint8 [H, >= W] -> salient patches; writes out uint8 [H_p, W_p], 0 or 1."""
    low = np.empty(out.shape, np.uint8)
    high = np.empty(out.shape, np.uint8)
    patch_extrema(gray, patch_size, patch_size, low, high)
    for j in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[j, i] = uint8(high[j, i] >= smallest_level)


def compile_kernels() -> None:
    """Compile every kernel, or load it from the cache, once for all processes that share it."""
    plane = np.zeros((2, 2), np.uint8)
    plane.flags.writeable = False  # planes belong to the decoder: kernels see them read-only
    buffers = resize_buffers(2, 2, 2, 2)
    out = np.zeros((1, 1), np.uint8)
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels.flags.writeable = False
    with compile_lock(frame_patches):
        luma(pixels)
        frame_patches(plane, 2, 2, tuple(buffers), 2, 128, out)
        resize(plane, 2, 2, tuple(buffers))
        saliency_map(buffers.gray, np.zeros((2, 2), np.uint8))
        map_patches(buffers.gray, 2, 128, out)
        compile_change(buffers)
        frame = np.zeros((2, 2, 3), np.uint8)
        frame.flags.writeable = False
        planes, rgb = np.zeros((3, 2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8)
        resize_rgb(frame, 0, 0, 2, 2, False, tuple(buffers), planes, rgb)
        luma_rgb(rgb, np.zeros((2, 2), np.uint8))
        frame = frame[:, :, :1].copy()
        frame.flags.writeable = False
        resize_gray(
            frame, 0, 0, 2, 2, False, tuple(buffers), planes[:1], np.zeros((2, 2, 1), np.uint8)
        )
