"""Change from one frame to the next, averaged over patches, in one pass over the resized frame.

Legend: H, W sides of the resized frame, P side of a patch, H_p = H / P, W_p = W / P, g_i gray
levels of frame i.

    score of a patch = min(255, floor((4 * sum |g_i - g_(i-1)| + floor(P P / 2)) / (P P)))

is the mean difference over its pixels in quarters of a gray level, rounded. All in integers, so the
order of summation does not matter. A mean and not a maximum, because noise has large maxima.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint8, uint32, uint64

from savimae.kernels._jit import jit
from savimae.kernels.resize import ResizeBuffers, resize


@jit
def difference(gray, previous, out):
    """out = |gray - previous|, and previous[:, :W] becomes gray.

    gray, previous uint8 [H, >= W]; writes out uint8 [H, W].
    """
    height, width = out.shape
    for y in range(height):
        row, before, result = gray[y], previous[y], out[y]
        for x in range(uint64(width)):
            value = row[x]
            result[x] = uint8(max(value, before[x]) - min(value, before[x]))
            before[x] = value


@jit
def _patch_score(total, area):
    """The score of a patch, from the sum of its differences (int64) and its number of pixels."""
    return uint8(min(int64(255), (4 * total + area // 2) // area))


@jit
def patch_changes(gray, previous, patch_size, out):
    """Scores of the patches of a frame; previous[:, :W] becomes gray.

    gray, previous uint8 [H, >= W]; writes out uint8 [H_p, W_p].
    """
    width = out.shape[1] * patch_size
    area = int64(patch_size) * int64(patch_size)
    columns = np.empty(width, np.uint32)
    for j in range(out.shape[0]):
        columns[:] = 0
        for y in range(j * patch_size, (j + 1) * patch_size):
            row, before = gray[y], previous[y]
            for x in range(uint64(width)):
                value = row[x]
                columns[x] += uint32(uint8(max(value, before[x]) - min(value, before[x])))
                before[x] = value
        for i in range(out.shape[1]):
            total = uint32(0)
            for x in range(uint64(i * patch_size), uint64((i + 1) * patch_size)):
                total += columns[x]
            out[j, i] = _patch_score(int64(total), area)


@jit
def frame_changes(plane, height, width, buffers, previous, patch_size, out):
    """Gray plane -> scores of its patches, everything in one call.

    plane uint8 C-contiguous, its top left [height, width] is the frame; `buffers` as of `resize`;
    previous uint8 [H, >= W], the resized frame before, which becomes this one. Writes out uint8
    [H_p, W_p].
    """
    resize(plane, height, width, buffers)
    patch_changes(ResizeBuffers(*buffers).gray, previous, patch_size, out)


@jit
def map_scores(gray, patch_size, out):
    """Differences gray uint8 [H, >= W] -> scores of the patches; writes out uint8 [H_p, W_p]."""
    area = int64(patch_size) * int64(patch_size)
    for j in range(out.shape[0]):
        for i in range(out.shape[1]):
            total = int64(0)
            for y in range(j * patch_size, (j + 1) * patch_size):
                for x in range(i * patch_size, (i + 1) * patch_size):
                    total += int64(gray[y, x])
            out[j, i] = _patch_score(total, area)


def compile_change(buffers: ResizeBuffers) -> None:
    """Compile the kernels, or load them from the cache; `buffers` are of planes [2, 2]."""
    plane, out = np.zeros((2, 2), np.uint8), np.zeros((1, 1), np.uint8)
    plane.flags.writeable = False
    previous = np.zeros_like(buffers.gray)
    frame_changes(plane, 2, 2, tuple(buffers), previous, 2, out)
    difference(buffers.gray, previous, np.zeros((2, 2), np.uint8))
    map_scores(buffers.gray, 2, out)
