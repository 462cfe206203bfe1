"""Sizes of frames in pixels: 224, the side of a square, or 160x288, height x width."""

from __future__ import annotations

import numbers
import re
from typing import Any, NamedTuple


class Sides(NamedTuple):
    """Height and width: of a frame in pixels, or of its grid in patches."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


FrameSize = int | Sides  # of a square always the one number


def frame_size(value: Any) -> FrameSize:
    """A size from a number, or from height and width, as JSON or a caller has them.

    Raises:
        ValueError: anything else, or a side below 1.
    """
    sizes = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(sizes) != 2 or not all(
        isinstance(side, numbers.Integral) and not isinstance(side, bool) for side in sizes
    ):
        raise ValueError(f"a size is one number, or height and width, not {value!r}")
    sizes = int(sizes[0]), int(sizes[1])
    if min(sizes) < 1:
        raise ValueError(f"a size must be at least 1, not {'x'.join(map(str, sizes))}")
    return sizes[0] if sizes[0] == sizes[1] else Sides(*sizes)


def parse_size(text: str) -> FrameSize:
    """`224` or `160x288`. Raises ValueError for other text, or a side below 1."""
    if not re.fullmatch("[0-9]{1,9}(x[0-9]{1,9})?", text):
        raise ValueError(f"{text!r} is neither a number nor height x width, such as 160x288")
    numbers = [int(part) for part in text.split("x")]
    return frame_size(numbers if len(numbers) > 1 else numbers[0])


def sides(size: FrameSize) -> Sides:
    """Height and width of a size."""
    return Sides(size, size) if isinstance(size, int) else size


def recorded_size(size: FrameSize) -> int | list[int]:
    """A size as JSON has it."""
    return size if isinstance(size, int) else list(size)


def size_words(size: FrameSize) -> str:
    """A size for people: "224 x 224"."""
    return "{} x {}".format(*sides(size))
