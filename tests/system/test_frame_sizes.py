"""Sizes of frames as they are typed, kept and recorded."""

from __future__ import annotations

import numpy as np
import pytest

from savimae.system.sizes import Sides, frame_size, parse_size, recorded_size, sides, size_words


@pytest.mark.parametrize(
    ("text", "size", "both", "recorded", "words"),
    [
        ("224", 224, (224, 224), 224, "224 x 224"),
        ("224x224", 224, (224, 224), 224, "224 x 224"),
        ("160x288", Sides(160, 288), (160, 288), [160, 288], "160 x 288"),
    ],
)
def test_a_size(text, size, both, recorded, words):
    found = parse_size(text)
    assert found == size
    assert type(found) is type(size)
    assert sides(found) == both
    assert recorded_size(found) == recorded
    assert frame_size(recorded) == size  # as JSON has it
    assert size_words(found) == words
    assert parse_size(str(found)) == size


def test_whole_numbers_of_numpy_are_numbers():
    size = frame_size((np.int64(160), np.uint8(32)))
    assert size == (160, 32)
    assert [type(side) for side in size] == [int, int]
    assert type(frame_size(np.int64(224))) is int


@pytest.mark.parametrize(
    "text", ["", "x", "16x", "x16", "16x16x16", "-16", "16.0", "1e3", "16 x 16"]
)
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="neither a number nor height x width"):
        parse_size(text)


@pytest.mark.parametrize("value", [0, (16, 0), [-1, 16]])
def test_no_side_is_below_one(value):
    with pytest.raises(ValueError, match="at least 1"):
        frame_size(value)


@pytest.mark.parametrize("value", [1.5, True, None, "16", (16,), (16, 16, 16), (16, 2.0)])
def test_other_values_are_refused(value):
    with pytest.raises(ValueError, match="one number, or height and width"):
        frame_size(value)
