"""How pixels of other depths become 8 bits, by one rule for all frames of a video.

A camera of 12 bits fills a sixteenth of what 16 bits can hold, and a thermal one a narrow band of
it: their high bytes would be black pictures, or flat ones. So pixels of 16 bits are scaled, from
`low` to 0 and from `high` to 255, both found once for each video:

    low, high: of the n pixels of 16 frames, spread evenly from the first to the last, the
               (n // 10,000 + 1)th smallest and the (n // 10,000 + 1)th largest
    out = ((v - low) * 255 + (high - low) // 2) // (high - low), v clipped to [low, high] before

A ten-thousandth may be cut off at either end, so that a few dead or hot pixels do not take the
whole range. Floating point goes from 0 to 1, as scikit-image has it: out = floor(255 v + 1/2).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from savimae.data.decoded import VideoError

SAMPLED_FRAMES = 16
CUT_OFF = 10_000  # one pixel of so many, at either end
LEVELS = 2**16
INTEGERS = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.int16))
REMEDY = "save it as 8 or 16 bits, or as floating point from 0 to 1"


def check_dtype(dtype: np.dtype) -> None:
    """Raises VideoError for pixels that are neither 8 nor 16 bits nor floating point."""
    if dtype.newbyteorder("=") not in INTEGERS and dtype.kind != "f":
        raise VideoError(f"has pixels of {dtype}; {REMEDY}")


def is_scaled(dtype: np.dtype) -> bool:
    """Whether pixels of this kind are scaled by the range of their video."""
    return dtype.itemsize == 2 and dtype.kind in "iu"


def sampled_frames(n_frames: int) -> np.ndarray:
    """Frames that tell a video's range: at most 16 of T, ascending int64, from first to last."""
    return np.unique(np.linspace(0, n_frames - 1, SAMPLED_FRAMES).round().astype(np.int64))


def pixel_range(frames: Iterable[np.ndarray]) -> tuple[int, int]:
    """`low` and `high` of the frames uint16 or int16 `[…]`, as places in 0 to 65535."""
    counts = np.zeros(LEVELS, np.int64)
    for frame in frames:
        counts += np.bincount(_places(frame).ravel(), minlength=LEVELS)
    cut = int(counts.sum()) // CUT_OFF
    low = int(np.searchsorted(np.cumsum(counts), cut, side="right"))
    high = LEVELS - 1 - int(np.searchsorted(np.cumsum(counts[::-1]), cut, side="right"))
    return low, high


def scaling_table(low: int, high: int) -> np.ndarray:
    """What each of the 65536 places becomes: uint8. Of equal ends, all above is 255."""
    width = max(high - low, 1)
    above = np.clip(np.arange(LEVELS, dtype=np.int64) - low, 0, width)
    return ((above * 255 + width // 2) // width).astype(np.uint8)


HIGH_BYTE = (np.arange(LEVELS) >> 8).astype(np.uint8)  # a table for what fills its 16 bits


def to_8_bits(frame: np.ndarray, table: np.ndarray | None) -> np.ndarray:
    """A frame of any known kind -> uint8 of the same shape.

    Args:
        table: of pixels of 16 bits, as of `scaling_table`.

    Raises:
        VideoError: floating point that is not in 0 to 1.
    """
    if frame.dtype.kind == "f":
        if not ((frame >= 0) & (frame <= 1)).all():  # NaN is not either
            worst = "NaN" if np.isnan(frame).any() else f"{frame.min():g} to {frame.max():g}"
            raise VideoError(f"has floating-point pixels that are not in 0 to 1: {worst}; {REMEDY}")
        return np.floor(frame.astype(np.float64) * 255 + 0.5).astype(np.uint8)
    return frame if table is None else table[_places(frame)]


def _places(frame: np.ndarray) -> np.ndarray:
    """uint16 as it is, of any byte order; int16 from -32768 on."""
    if frame.dtype.kind == "i":
        return (frame.astype(np.int32) + LEVELS // 2).astype(np.uint16)
    return frame.astype(np.uint16, copy=False)
