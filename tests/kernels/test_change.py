"""The kernels of change against plain NumPy, and against numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from savimae.data.video import GrayPlane
from savimae.kernels import change, reference
from savimae.saliency.config import CHANGE, SaliencyConfig
from savimae.saliency.frames import FrameChange


def planes_of(seed: int, n: int, height: int, width: int, step: int) -> list[np.ndarray]:
    """Gray planes that drift: each pixel moves by up to `step` levels from one to the next."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, (height, width))
    planes = []
    for _ in range(n):
        planes.append(levels.astype(np.uint8))
        levels = np.clip(levels + rng.integers(-step, step + 1, levels.shape), 0, 255)
    return planes


def scores_of(planes: list[np.ndarray], config: SaliencyConfig) -> np.ndarray:
    """Frame after frame as they come: zeros for the first."""
    saliency = FrameChange(config)
    out = np.full((len(planes), *config.grid), 77, np.uint8)
    for plane, scores in zip(planes, out, strict=True):
        saliency.patches(GrayPlane(np.ascontiguousarray(plane), *plane.shape), scores)
    return out


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 90), st.integers(1, 255),
    st.sampled_from([(1, 1), (16, 16), (48, 16), (35, 5), (21, 7), ((32, 80), 16), ((15, 5), 5)]),
)  # fmt: skip
def test_scores_equal_plain_numpy(seed, height, width, step, sizes):
    config = SaliencyConfig(*sizes, kind=CHANGE)
    planes = planes_of(seed, 3, height, width, step)
    expected = reference.change_scores(planes, *config.sides, config.patch_size)
    ours = scores_of(planes, config)
    np.testing.assert_array_equal(ours[1:], expected[1:])
    assert not ours[0].any()


@pytest.mark.parametrize(
    ("total", "score"),
    # Of a patch of 16 x 16: quarters of a level, rounded to the nearest, half upwards, up to 255.
    [
        (0, 0), (31, 0), (32, 1), (95, 1), (96, 2), (256, 4), (16287, 254), (16288, 255),
        (65280, 255),
    ],
)  # fmt: skip
def test_a_score_by_hand(total, score):
    levels, rest = divmod(total, 256)
    differences = np.full(256, levels, np.uint8)
    differences[:rest] += 1
    differences = differences.reshape(16, 16)
    out = np.empty((1, 1), np.uint8)
    change.map_scores(differences, 16, out)
    assert out[0, 0] == reference.map_scores(differences, 16)[0, 0] == score
    # The same from two frames, whichever is the brighter.
    for first, second in ((np.zeros_like(differences), differences), (differences, 0)):
        previous = np.ascontiguousarray(first + np.zeros_like(differences))
        gray = np.ascontiguousarray(np.zeros_like(differences) + second)
        change.patch_changes(gray, previous, 16, out)
        assert out[0, 0] == score
        np.testing.assert_array_equal(previous, gray)


def test_the_two_steps_equal_the_fused_one():
    config = SaliencyConfig(48, 8, kind=CHANGE)
    planes = planes_of(3, 6, 40, 60, 40)
    maps, patches = FrameChange(config), FrameChange(config)
    for plane, fused in zip(planes, scores_of(planes, config), strict=True):
        difference = maps.saliency_map(GrayPlane(plane, *plane.shape))
        out = np.empty((6, 6), np.uint8)
        patches.map_patches(GrayPlane(difference, 48, 48), out)
        np.testing.assert_array_equal(out, fused)


def test_frames_of_other_sizes_are_compared_after_resizing():
    config = SaliencyConfig(32, 16, kind=CHANGE)
    planes = [np.full((20, 30), 10, np.uint8), np.full((64, 48), 30, np.uint8)]
    assert (scores_of(planes, config)[1] == 80).all()  # 20 levels


def test_noise_that_is_everywhere_scores_alike_and_what_moves_more():
    rng = np.random.default_rng(0)
    frames = rng.integers(100, 110, (2, 64, 64)).astype(np.uint8)
    frames[0, 16:32, 16:32] = 200
    frames[1, 16:32, 20:36] = 200
    scores = scores_of(list(frames), SaliencyConfig(64, 16, kind=CHANGE))[1]
    assert sorted(map(tuple, np.argwhere(scores > 40))) == [(1, 1), (1, 2)]
    assert (scores[scores <= 40] < 18).all()
