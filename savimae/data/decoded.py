"""What decoding gives, whatever is decoded: planes, frames, or the one error."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from savimae.system.errors import SavimaeError

GRAY, RGB = 1, 3  # channels of frames


class VideoError(SavimaeError):
    """A video or frame folder that cannot be decoded as a whole."""


class GrayPlane(NamedTuple):
    """One frame's luma: uint8 C-contiguous, read-only, of which [:height, :width] is the frame.

    The memory belongs to the decoder and is valid until the next frame.
    """

    plane: np.ndarray
    height: int
    width: int

    def pixels(self) -> np.ndarray:
        """The frame itself, uint8 `[height, width]`."""
        return self.plane[: self.height, : self.width]


class DecodedFrames(NamedTuple):
    """Some frames of a video."""

    # uint8 [height, width, channels] each, as decoded; repeated ones are shared
    frames: list[np.ndarray]
    indices: np.ndarray  # int64 [n], where they are in the video


ChooseFrames = Callable[[int], np.ndarray]  # T -> ascending frame indices, int64
