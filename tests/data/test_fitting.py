"""Where frames of any shape go in frames of another one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from savimae.data.fitting import (
    CROP,
    FITS,
    PAD,
    PRESS,
    Box,
    largest_part,
    padded_patches,
    place_frame,
    place_part,
)
from savimae.system.sizes import Sides

WIDE = Sides(160, 288)


@pytest.mark.parametrize(
    ("frame", "fit", "part", "place"),
    [
        ((240, 320), PRESS, Box(0, 0, 320, 240), Box(0, 0, 288, 160)),
        # 320 x 160 / 288 = 177.8 rows, in the middle of 240
        ((240, 320), CROP, Box(0, 31, 320, 178), Box(0, 0, 288, 160)),
        # 160 / 240 of 320 columns are 213.3: 13 patches of 16, two free ones left, three right
        ((240, 320), PAD, Box(0, 0, 320, 240), Box(32, 0, 208, 160)),
        ((1080, 1920), CROP, Box(0, 6, 1920, 1067), Box(0, 0, 288, 160)),
        ((1080, 1920), PAD, Box(0, 0, 1920, 1080), Box(0, 0, 288, 160)),  # 162 rows are 160
        ((1920, 1080), PAD, Box(0, 0, 1080, 1920), Box(96, 0, 96, 160)),  # 90 columns: 96
        ((100, 1000), PAD, Box(0, 0, 1000, 100), Box(0, 64, 288, 32)),  # 28.8 rows
        ((2, 1000), PAD, Box(0, 0, 1000, 2), Box(0, 64, 288, 16)),  # never nothing
    ],
)
def test_places_by_hand(frame, fit, part, place):
    assert place_frame(*frame, WIDE, 16, fit) == (part, place)


@settings(max_examples=300)
@given(
    st.integers(1, 400), st.integers(1, 400), st.integers(1, 20), st.integers(1, 20),
    st.sampled_from([1, 8, 16]), st.sampled_from(FITS),
)  # fmt: skip
def test_any_frame_fits(height, width, rows, columns, patch_size, fit):
    size = Sides(rows * patch_size, columns * patch_size)
    part, place = placed = place_frame(height, width, size, patch_size, fit)
    assert 0 <= part.left <= part.left + part.width <= width
    assert 0 <= part.top <= part.top + part.height <= height
    assert part.width > 0 < part.height
    assert place.left >= 0 <= place.top
    assert place.left + place.width <= size.width
    assert place.top + place.height <= size.height
    assert all(side % patch_size == 0 for side in place)
    assert placed.mirrored(size).mirrored(size) == placed
    padding = padded_patches(place, size, patch_size)
    assert padding.shape == (rows, columns)
    assert (~padding).sum() == place.width * place.height // patch_size**2
    if fit != PAD:
        assert not padding.any()
        assert (part == (0, 0, width, height)) or fit == CROP
        return
    # One side is full, the other within half a patch of what its shape wants.
    scale = min(size.height / height, size.width / width)
    assert place.height == size.height or place.width == size.width
    for side, wanted in ((place.height, height * scale), (place.width, width * scale)):
        assert abs(side - max(wanted, patch_size)) <= patch_size / 2 + 1e-9
    # In the middle, but for a patch.
    assert abs(size.width - place.width - 2 * place.left) <= patch_size
    # What is seen in a place is placed there again: the model's own frames are in it already.
    assert place_frame(place.height, place.width, size, patch_size, PAD).place == place


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 100))
def test_of_squares_the_largest_part_is_the_shorter_side(height, width, side):
    assert largest_part(height, width, Sides(side, side)) == (min(height, width),) * 2


def test_parts_go_everywhere_or_keep_their_shape():
    part = Box(10, 20, 100, 100)
    assert place_part(part, WIDE, 16, PRESS) == (part, Box(0, 0, 288, 160))
    assert place_part(part, WIDE, 16, CROP) == (part, Box(0, 0, 288, 160))
    assert place_part(part, WIDE, 16, PAD) == (part, Box(64, 0, 160, 160))


def test_boxes_cut():
    frame = np.arange(48).reshape(6, 8)
    np.testing.assert_array_equal(Box(2, 1, 3, 2).of(frame), [[10, 11, 12], [18, 19, 20]])
    assert Box(16, 32, 48, 64).per(16) == Box(1, 2, 3, 4)
