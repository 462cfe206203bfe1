"""Where a frame of any shape goes in the frames that a model sees.

    press   the whole frame, whatever its shape
    crop    the largest middle part of the model's shape
    pad     the whole frame in its own shape, black beside it

Beside a padded frame there are whole patches only: its sides are the nearest multiples of the patch
size, so that its shape is kept but for half a patch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from savimae.system.sizes import Sides

PRESS, CROP, PAD = "press", "crop", "pad"
FITS = (PRESS, CROP, PAD)


class Box(NamedTuple):
    """A part of a frame, in pixels."""

    left: int
    top: int
    width: int
    height: int

    def of(self, frame: np.ndarray) -> np.ndarray:
        """This part of a frame `[H, W, …]`, a view."""
        return frame[self.top : self.top + self.height, self.left : self.left + self.width]

    def per(self, unit: int) -> Box:
        """The same in units of so many pixels, which it is made of."""
        return Box(*(side // unit for side in self))


class Placement(NamedTuple):
    """Which part of a frame is seen, and where in the model's frame."""

    part: Box
    place: Box

    def mirrored(self, size: Sides) -> Placement:
        """The same in a frame of `size` that is mirrored."""
        left, _, width, _ = self.place
        return self._replace(place=self.place._replace(left=size.width - left - width))


def place_frame(height: int, width: int, size: Sides, patch_size: int, fit: str) -> Placement:
    """Where a frame `[height, width]` goes in one of `size`, which is in whole patches."""
    part = middle_part(height, width, size) if fit == CROP else Box(0, 0, width, height)
    return place_part(part, size, patch_size, fit)


def place_part(part: Box, size: Sides, patch_size: int, fit: str) -> Placement:
    """Where a part of the frame goes as a whole: everywhere, or padded in its own shape."""
    if fit == PAD:
        return Placement(part, padded_place(part.height, part.width, size, patch_size))
    return Placement(part, Box(0, 0, size.width, size.height))


def largest_part(height: int, width: int, size: Sides) -> Sides:
    """Sides of the largest part of a frame `[height, width]` that has the shape of `size`."""
    if width * size.height >= height * size.width:
        return Sides(height, min(width, max(1, round(height * size.width / size.height))))
    return Sides(min(height, max(1, round(width * size.height / size.width))), width)


def middle_part(height: int, width: int, size: Sides) -> Box:
    """The `largest_part` in the middle."""
    part = largest_part(height, width, size)
    return Box((width - part.width) // 2, (height - part.height) // 2, part.width, part.height)


def padded_place(height: int, width: int, size: Sides, patch_size: int) -> Box:
    """Where a frame `[height, width]` goes as a whole, in whole patches."""
    scale = min(size.height / height, size.width / width)
    rows, columns = (
        min(max(round(side * scale / patch_size), 1), room // patch_size)
        for side, room in ((height, size.height), (width, size.width))
    )
    place_height, place_width = rows * patch_size, columns * patch_size
    left = (size.width - place_width) // 2 // patch_size * patch_size
    top = (size.height - place_height) // 2 // patch_size * patch_size
    return Box(left, top, place_width, place_height)


def padded_patches(place: Box, size: Sides, patch_size: int) -> np.ndarray:
    """The patches beside a frame that fills `place`: bool `[H_p, W_p]`."""
    padding = np.ones((size.height // patch_size, size.width // patch_size), bool)
    place.per(patch_size).of(padding)[:] = False
    return padding
