"""Gray from color: ITU-R 601 luma in 16-bit fixed point, what Pillow's "L" holds."""

from __future__ import annotations

import numpy as np
from numba import uint8, uint32

from savimae.kernels._jit import jit


@jit
def _luma(words, out):
    """out = (19595 R + 38470 G + 7471 B + 32768) >> 16

    words uint32 [h, w], a pixel each, R in the lowest byte, then G, then B; the highest is ignored.
    Reading whole pixels lets the loop vectorise. Writes out uint8 [h, w].
    """
    byte = uint32(255)
    for y in range(words.shape[0]):
        for x in range(words.shape[1]):
            word = words[y, x]
            red = word & byte
            green = (word >> uint32(8)) & byte
            blue = (word >> uint32(16)) & byte
            weighted = uint32(19595) * red + uint32(38470) * green + uint32(7471) * blue
            out[y, x] = uint8((weighted + uint32(32768)) >> uint32(16))


def luma(pixels: np.ndarray) -> np.ndarray:
    """Gray of uint8 `[h, w, 4]` (R, G, B and a byte that is ignored): read-only uint8 `[h, w]`."""
    out = np.empty(pixels.shape[:2], np.uint8)
    _luma(pixels.view("<u4")[..., 0], out)
    out.flags.writeable = False
    return out
