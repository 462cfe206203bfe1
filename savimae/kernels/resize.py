"""Antialiased bilinear resizing of one gray plane, equal bit for bit to Pillow's.

Legend: h, w source height and width; H, W those of the result; n_in, n_out lengths of one axis; K
taps per output pixel.

Per axis, output i sees the source through a triangle of half-width s = max(n_in / n_out, 1) around
c = (i + 0.5) n_in / n_out; its weights are normalised and rounded to 22-bit fixed point, and each
of the two passes (horizontal, then vertical) rounds to uint8. That is the arithmetic of Pillow's
`Image.resize(..., BILINEAR)` on 8-bit images; Pillow 13 swaps the passes where the height shrinks
more than the width.

Both passes are one kernel: it resamples the last axis and transposes, so applying it twice resizes
both axes. Blocks of 64 rows are first transposed into columns of 64 bytes, by way of 64-bit words
that each hold 8 rows (little-endian, as on every platform that Numba compiles for). The weighted
sums then run along contiguous bytes and vectorise, whatever the scale.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numba import uint8, uint32, uint64

from savimae.kernels._jit import jit

PRECISION_BITS = 22  # Pillow: 32 bits - 8 bits of pixel - 2 bits of headroom
HALF = uint32(1 << (PRECISION_BITS - 1))
SHIFT = uint32(PRECISION_BITS)
WORDS = 8  # 64-bit words in a block
BLOCK = 8 * WORDS  # rows in a block: one byte of one word each
MIN_TAPS = 3  # the kernel sums three taps at once; short filters are padded with zeros


def bilinear_taps(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Fixed-point filter of one axis.

    Returns:
        starts: int64 `[n_out]`, first source index of each output.
        taps: int64 `[n_out, K]`, weights in 1 / 2**22, zero-padded; each row sums to about 2**22.
    """
    scale = n_in / n_out
    support = max(scale, 1.0)
    starts = np.zeros(n_out, np.int64)
    rows: list[list[int]] = []
    for i in range(n_out):
        center = (i + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        last = min(int(center + support + 0.5), n_in)
        weights = [
            max(1.0 - abs((k - center + 0.5) * (1.0 / support)), 0.0) for k in range(first, last)
        ]
        total = 0.0
        for weight in weights:  # not sum(): from Python 3.12 it compensates, which Pillow does not
            total += weight
        rows.append([int(0.5 + weight / total * (1 << PRECISION_BITS)) for weight in weights])
        starts[i] = first
    taps = np.zeros((n_out, max(map(len, rows))), np.int64)
    for i, row in enumerate(rows):
        taps[i, : len(row)] = row
    return starts, taps


class ResizeBuffers(NamedTuple):
    """Filters and scratch memory to resize planes of one source size; reused for every frame.

    Python hands kernels `tuple(buffers)`, which they name again: to find the type of a plain tuple
    takes Numba a microsecond less at each call.
    """

    x_starts: np.ndarray  # uint64 [W]
    x_taps: np.ndarray  # uint32 [W, K], K >= 3
    y_starts: np.ndarray  # as of x, for [H]
    y_taps: np.ndarray
    words: np.ndarray  # uint64 [8, longest]
    columns: np.ndarray  # uint64 [longest, 8]
    column_bytes: np.ndarray  # the bytes of `columns`, flat
    sums: np.ndarray  # uint32 [64]
    turned: np.ndarray  # uint8 [W, h rounded up to 64], the horizontal pass, transposed
    gray: np.ndarray  # uint8 [H, W rounded up to 64]; gray[:, :W] is the result


def resize_buffers(height: int, width: int, out_height: int, out_width: int) -> ResizeBuffers:
    """Buffers to resize planes `[height, width]` to `[out_height, out_width]`."""
    x_starts, x_taps = _kernel_taps(width, out_width)
    y_starts, y_taps = _kernel_taps(height, out_height)
    # Columns past the image are read with weight 0 where a filter is wider than the image.
    longest = max(width, height, x_taps.shape[1], y_taps.shape[1])
    columns = np.zeros((longest, WORDS), np.uint64)
    return ResizeBuffers(
        x_starts, x_taps, y_starts, y_taps,
        words=np.zeros((WORDS, longest), np.uint64),
        columns=columns,
        column_bytes=columns.reshape(-1).view(np.uint8),
        sums=np.zeros(BLOCK, np.uint32),
        turned=np.zeros((out_width, _round_up(height)), np.uint8),
        gray=np.zeros((out_height, _round_up(out_width)), np.uint8),
    )  # fmt: skip


def _round_up(rows: int) -> int:
    return math.ceil(rows / BLOCK) * BLOCK


@functools.lru_cache(maxsize=64)  # two milliseconds for a video's size: more than many frames
def _kernel_taps(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """`bilinear_taps` with every filter K >= 3 wide and, where possible, inside the source."""
    starts, taps = bilinear_taps(n_in, n_out)
    width = max(taps.shape[1], MIN_TAPS)
    inside = np.clip(starts, 0, max(n_in - width, 0))
    padded = np.zeros((n_out, width), np.uint32)
    for i, offset in enumerate(starts - inside):
        kept = min(taps.shape[1], width - offset)
        padded[i, offset : offset + kept] = taps[i, :kept]
    return inside.astype(np.uint64), padded


@jit
def _transpose_block(plane, height, width, top, words, columns):
    """columns[x] = 64 bytes: plane[top .. top + 63, x], the last row repeated past the bottom.

    plane uint8 [height, >= width]; writes words [8, >= width] and columns [>= width, 8] (uint64).
    """
    bottom = height - 1
    for j in range(WORDS):
        y = top + 8 * j
        row0, row1 = plane[min(y, bottom)], plane[min(y + 1, bottom)]
        row2, row3 = plane[min(y + 2, bottom)], plane[min(y + 3, bottom)]
        row4, row5 = plane[min(y + 4, bottom)], plane[min(y + 5, bottom)]
        row6, row7 = plane[min(y + 6, bottom)], plane[min(y + 7, bottom)]
        word = words[j]
        for x in range(width):
            word[x] = (
                uint64(row0[x])
                | uint64(row1[x]) << uint64(8)
                | uint64(row2[x]) << uint64(16)
                | uint64(row3[x]) << uint64(24)
                | uint64(row4[x]) << uint64(32)
                | uint64(row5[x]) << uint64(40)
                | uint64(row6[x]) << uint64(48)
                | uint64(row7[x]) << uint64(56)
            )
    for x in range(width):
        for j in range(WORDS):
            columns[x, j] = words[j, x]


@jit
def _weigh_columns(columns, starts, taps, sums, out, first, stride):
    """out[x * stride + first + r] = (half + sum_k taps[x, k] columns[64 (starts[x] + k) + r]) >> 22

    columns, out uint8, flat (indices are unsigned: no wrap-around test in the loops); taps uint32
    [n_out, K >= 3]; sums uint32 [64] is scratch. The weights of a row are >= 0 and sum to about
    2**22, so a sum stays below 2**31.
    """
    n_out, n_taps = taps.shape
    block = uint64(BLOCK)
    for x in range(n_out):
        source = starts[x] * block
        target = uint64(x) * uint64(stride) + uint64(first)
        tap0, tap1, tap2 = taps[x, 0], taps[x, 1], taps[x, 2]
        for r in range(block):
            sums[r] = (
                HALF
                + uint32(columns[source + r]) * tap0
                + uint32(columns[source + r + block]) * tap1
                + uint32(columns[source + r + uint64(2) * block]) * tap2
            )
        for k in range(uint64(MIN_TAPS), uint64(n_taps)):
            tap = taps[x, k]
            base = source + k * block
            for r in range(block):
                sums[r] += uint32(columns[base + r]) * tap
        for r in range(block):
            out[target + r] = uint8(sums[r] >> SHIFT)


@jit
def resample_transposed(plane, height, width, starts, taps, buffers, out):
    """Resample the last axis of `plane` [height, >= width] and write the transpose.

    Writes out uint8 [n_out, height rounded up to 64]; bytes past `height` in a row are padding.
    """
    flat = out.reshape(-1)
    for top in range(0, height, BLOCK):
        _transpose_block(plane, height, width, top, buffers.words, buffers.columns)
        _weigh_columns(buffers.column_bytes, starts, taps, buffers.sums, flat, top, out.shape[1])


@jit
def resize(plane, height, width, buffers):
    """Resize the top left [height, width] of `plane` (uint8, C-contiguous) to [H, W].

    Writes `gray` of the buffers, a tuple of those of `resize_buffers(height, width, H, W)`.
    """
    named = ResizeBuffers(*buffers)
    out_width = named.x_taps.shape[0]
    resample_transposed(plane, height, width, named.x_starts, named.x_taps, named, named.turned)
    resample_transposed(
        named.turned, out_width, height, named.y_starts, named.y_taps, named, named.gray
    )
