"""Masks: exact counts, uniform draws, and nothing but the key decides."""

from __future__ import annotations

import numpy as np
import pytest

from savimae.samples.masking import (
    KINDS,
    MaskSpec,
    draw_decoded,
    draw_masks,
    most_salient,
    running_cells,
    token_saliency,
    token_scores,
)
from savimae.samples.randomness import sample_keys

GRID = 14


def keys(n: int, epoch: int = 0, seed: int = 0) -> np.ndarray:
    return sample_keys(seed, epoch, np.arange(n))


def saliency(n_clips: int, spec: MaskSpec, share: float = 0.3, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((n_clips, spec.n_tokens)) < share


def test_random_and_tube_counts():
    random = draw_masks(MaskSpec("random"), keys(50))
    assert random.shape == (50, 1568)
    assert (random.sum(1) == 1411).all()  # floor(0.9 * 1568)
    tube = draw_masks(MaskSpec("tube"), keys(50)).reshape(50, 8, 196)
    assert (tube == tube[:, :1]).all()
    assert (tube[:, 0].sum(1) == 176).all()  # floor(0.9 * 196): 160 tokens visible
    assert (draw_masks(MaskSpec("tube", mask_ratio=0.75), keys(3)).sum(1) == 8 * 147).all()


def test_savi_counts_of_both_groups():
    spec = MaskSpec("savi")
    salient = np.stack([saliency(1, spec, share, 7)[0] for share in np.linspace(0, 1, 60)])
    masks = draw_masks(spec, keys(60), salient)
    for mask, group in zip(masks, salient, strict=True):
        n = int(group.sum())
        assert mask[group].sum() == n * 85 // 100
        assert mask[~group].sum() == (1568 - n) * 95 // 100


def test_savi_tube_counts_and_tubes():
    spec = MaskSpec("savi-tube")
    salient = saliency(20, spec, 0.03)
    masks = draw_masks(spec, keys(20), salient).reshape(20, 8, 196)
    assert (masks == masks[:, :1]).all()
    positions = salient.reshape(20, 8, 196).any(1)
    for mask, group in zip(masks[:, 0], positions, strict=True):
        n = int(group.sum())
        assert 20 < n < 80
        assert mask[group].sum() == n * 85 // 100
        assert mask[~group].sum() == (196 - n) * 95 // 100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [0.0, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("grid", [2, 14])
def test_every_clip_shows_and_hides_something(kind, ratio, share, grid):
    spec = MaskSpec(kind, 2, grid, ratio, ratio, ratio)
    masks = draw_masks(spec, keys(9), saliency(9, spec, share))
    hidden = masks.sum(1)
    alone = 2 if spec.is_tube else 1  # a position is two tokens
    assert (hidden == (alone if ratio == 0 else spec.n_tokens - alone)).all()


def test_exceptions_favor_salient_tokens():
    # The one token shown against the ratios is salient; the one masked is not.
    for ratio, group_of_exception in ((1.0, True), (0.0, False)):
        spec = MaskSpec("savi", 1, 4, ratio, ratio, ratio)
        salient = saliency(40, spec, 0.5)
        masks = draw_masks(spec, keys(40), salient)
        exception = ~masks if ratio else masks
        assert (exception.sum(1) == 1).all()
        assert (salient[exception] == group_of_exception).all()


@pytest.mark.parametrize(("ratio", "n", "masked"), [(0.85, 20, 17), (0.95, 100, 95), (0.9, 10, 9)])
def test_floors_are_those_of_exact_arithmetic(ratio, n, masked):
    # 0.85 * 20 = 17 exactly, though a float product may fall below.
    spec = MaskSpec("savi", 1, 20, ratio, ratio, 0.5)
    salient = np.zeros((1, 400), bool)
    salient[0, :n] = True
    assert draw_masks(spec, keys(1), salient)[0, :n].sum() == masked


N_DRAWS = 8000


def chi_square(visible: np.ndarray, share: float) -> float:
    """Of the times each token was visible in N_DRAWS: deviations from Pearson's mean statistic."""
    z = (visible - N_DRAWS * share) ** 2 / (N_DRAWS * share * (1 - share))
    return float((z.sum() - visible.size) / np.sqrt(2 * visible.size))


@pytest.mark.parametrize("kind", ["random", "savi", "tube", "savi-tube"])
def test_draws_are_uniform_inside_a_group(kind):
    spec = MaskSpec(kind, 2, 8)
    one = saliency(1, MaskSpec("random", 2, 8), 0.2, 3)
    salient = np.repeat(one, N_DRAWS, 0)
    masks = draw_masks(spec, keys(N_DRAWS), salient)
    units = masks.reshape(N_DRAWS, 2, 64)[:, 0] if spec.is_tube else masks
    group = one.reshape(2, 64).any(0) if spec.is_tube else one[0]
    if not spec.uses_saliency:
        group = np.zeros_like(group)
    for member in (True, False):
        chosen = units[:, group == member]
        if chosen.size:
            visible = ~chosen
            assert abs(chi_square(visible.sum(0), visible[0].mean())) < 4.5


def test_draws_of_two_tokens_are_independent_but_for_the_fixed_count():
    # Without replacement: P(both visible) = k (k - 1) / (n (n - 1)).
    spec = MaskSpec("random", 1, 5, mask_ratio=0.8)
    visible = ~draw_masks(spec, keys(20000))
    both = (visible[:, :, None] & visible[:, None, :]).mean(0)
    pairs = both[np.triu_indices(25, 1)]
    probability = 5 * 4 / (25 * 24)
    deviations = (pairs - probability) / np.sqrt(probability / 20000)
    assert np.abs(deviations).max() < 4.5
    assert abs(deviations.std() - 1) < 0.2


@pytest.mark.parametrize("shift", ["sample", "epoch", "seed"])
def test_masks_of_neighbors_are_independent(shift):
    spec = MaskSpec("random", 1, 14)
    first = draw_masks(spec, keys(3000))
    second = {
        "sample": lambda: np.roll(first, 1, 0),
        "epoch": lambda: draw_masks(spec, keys(3000, epoch=1)),
        "seed": lambda: draw_masks(spec, keys(3000, seed=1)),
    }[shift]()
    overlap = (~first & ~second).sum(1)  # hypergeometric: 20 of 196 shown, twice
    mean, variance = 20 * 20 / 196, 20 * (20 / 196) * (176 / 196) * (176 / 195)
    assert abs(overlap.mean() - mean) < 4.5 * np.sqrt(variance / 3000)
    assert abs(overlap.var() / variance - 1) < 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_key_decides(kind):
    spec = MaskSpec(kind)
    salient = saliency(64, spec)
    masks = draw_masks(spec, keys(64), salient)
    order = np.random.default_rng(0).permutation(64)
    shuffled = draw_masks(spec, sample_keys(0, 0, order), salient[order])
    np.testing.assert_array_equal(shuffled, masks[order])
    alone = draw_masks(spec, sample_keys(0, 0, np.array([17])), salient[17:18])
    np.testing.assert_array_equal(alone[0], masks[17])
    assert not (draw_masks(spec, keys(64, epoch=1), salient) == masks).all(1).any()


STABLE_KEYS = [2558736989570252433, 3400964856525257824]


def test_keys_differ_and_are_stable():
    grid = [sample_keys(s, e, np.arange(1000)) for s in range(10) for e in range(10)]
    assert len(np.unique(np.concatenate(grid))) == 100_000
    # A change here changes every run ever made: written out so that it is noticed.
    assert sample_keys(0, 0, np.array([0, 1])).tolist() == STABLE_KEYS
    assert (sample_keys(-1, 3, np.array([5])) != sample_keys(1, 3, np.array([5]))).all()


def test_ratios_between_salient_and_others():
    # Salient tokens are visible three times as often: 0.15 against 0.05.
    spec = MaskSpec("savi")
    salient = saliency(200, spec)
    visible = ~draw_masks(spec, keys(200), salient)
    assert visible[salient].mean() / visible[~salient].mean() == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_type": "block"}, "'block' is not one of savi, savi-tube, tube, random"),
        ({"salient_mask_ratio": 1.2}, "salient_mask_ratio 1.2 is not between 0 and 1"),
        ({"time_steps": 1, "grid_size": 1}, "a clip of one token"),
        ({"mask_type": "tube", "grid_size": 1}, "more than one patch"),
    ],
)
def test_bad_specs(changes, message):
    with pytest.raises(ValueError, match=message):
        MaskSpec(**changes)


def test_missing_saliency():
    with pytest.raises(ValueError, match=r"savi masks need saliency \(2, 1568\), not None"):
        draw_masks(MaskSpec(), keys(2))
    with pytest.raises(ValueError, match=r"not \(2, 100\)"):
        draw_masks(MaskSpec(), keys(2), np.zeros((2, 100), bool))


# ---------------------------------------------------------------------------- token saliency


def test_token_saliency_is_the_maximum_over_the_tubelet():
    array = np.zeros((10, 2, 2), np.uint8)
    array[3, 0, 1] = 1
    array[8, 1, 0] = 1
    # Tokens of the frames (1, 3) and (5, 8).
    tokens = token_saliency(array[[1, 3, 5, 8]], 2)
    assert tokens.tolist() == [False, True, False, False, False, False, True, False]
    # Repeated frames at the end of a short video are the same frame of the array.
    assert token_saliency(array[[8] * 4], 2).tolist() == [False, False, True, False] * 2


# --------------------------------------------------------------------------- decoded tokens


def test_running_cells():
    spec = MaskSpec("random", 4, 4, decoder_mask_ratio=0.5)
    keeps = running_cells(spec, np.array([0])).reshape(4, 4, 4)
    # [time, cell row, cell column, 2, 2]
    cells = keeps.reshape(4, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4)
    assert (cells.sum((3, 4)) == 2).all()  # half of every cell, at every time
    assert (keeps.sum(0) == 2).all()  # every place has its turn
    assert cells[0, 0, 0].tolist() == [[True, True], [False, False]]
    assert cells[1, 0, 0].tolist() == [[True, False], [True, False]]  # it runs
    one_later = running_cells(spec, np.array([1])).reshape(4, 4, 4)
    assert (one_later[:3] == keeps[1:]).all()  # a start is a place in the same cycle
    least = MaskSpec("random", 2, 2, decoder_mask_ratio=0.99)
    assert running_cells(least, np.array([0])).sum() == 2  # at least one of every cell


def test_every_token_is_decoded_as_often():
    """With the same start for every clip half of them never were, whatever the epoch."""
    spec = MaskSpec("random", mask_ratio=0.9, decoder_mask_ratio=0.5)
    counts = np.zeros(spec.n_tokens)
    for epoch in range(8):
        mask = draw_masks(spec, keys(50, epoch))
        decoded = draw_decoded(spec, keys(50, epoch), mask)
        assert not (decoded & ~mask).any()
        assert decoded.sum() == pytest.approx(mask.sum() / 2, rel=0.02)
        counts += decoded.sum(0)
    # 400 clips x 0.9 masked x 0.5 decoded = 180; the bounds are six standard deviations.
    assert counts.min() > 120
    assert counts.max() < 240


def test_decoded_tokens_depend_on_the_key_alone():
    spec = MaskSpec("savi", decoder_mask_ratio=0.5)
    mask = draw_masks(spec, keys(40), saliency(40, spec))
    all_of_them = draw_decoded(spec, keys(40), mask)
    assert (draw_decoded(spec, keys(40)[7:9], mask[7:9]) == all_of_them[7:9]).all()
    assert (draw_decoded(spec, keys(40, seed=1), mask) != all_of_them).any()


def test_without_a_decoder_mask_and_where_nothing_would_be_left_all_are_decoded():
    mask = draw_masks(MaskSpec("savi"), keys(3), saliency(3, MaskSpec("savi")))
    assert draw_decoded(MaskSpec("savi"), keys(3), mask) is mask
    spec = MaskSpec("random", 1, 2, decoder_mask_ratio=0.75)  # four tokens, one is kept
    mask = np.zeros((50, 4), bool)
    mask[:, 0] = True  # what is masked is kept in a quarter of the clips, else decoded all the same
    assert (draw_decoded(spec, keys(50), mask) == mask).all()
    with pytest.raises(ValueError, match=r"decoder_mask_ratio 1.0 is not in \[0, 1\)"):
        MaskSpec(decoder_mask_ratio=1.0)


# ------------------------------------------------------------------------------------- scores


def test_token_scores_are_sums_that_do_not_overflow():
    patches = np.full((4, 3, 3), 255, np.uint8)
    patches[:2, 0, 1] = (7, 9)
    scores = token_scores(patches, 2)
    assert scores.dtype == np.uint16
    assert scores.tolist() == [510, 16, *[510] * 16]


def test_the_highest_scores_are_salient_and_ties_are_drawn():
    scores = np.array([9, 1, 5, 5, 5, 5, 0, 7], np.uint16)
    counts = np.zeros(8, int)
    for key in keys(3000):
        chosen = most_salient(scores, 0.5, key)
        assert chosen.sum() == 4
        counts += chosen
        np.testing.assert_array_equal(most_salient(scores, 0.5, key), chosen)
    assert counts[[0, 7]].tolist() == [3000] * 2
    assert counts[[1, 6]].tolist() == [0] * 2
    # Two of four, drawn alike: 1,500 each, with a standard deviation of 27.
    assert abs(counts[2:6] - 1500).max() < 120
    assert most_salient(scores, 0.25, keys(1)[0]).nonzero()[0].tolist() == [0, 7]
    assert not most_salient(scores, 0.1, keys(1)[0]).any()  # floor(0.8)
    assert most_salient(scores, 1, keys(1)[0]).all()


def test_ties_do_not_lean_on_what_is_masked():
    """Salient tokens of a still clip are drawn with another hash than the mask."""
    spec = MaskSpec("savi", 4, 10)
    still, of_time = np.zeros(400, np.uint16), keys(400)
    salient = np.stack([most_salient(still, 0.25, key) for key in of_time])
    mask = draw_masks(spec, of_time, salient)
    assert (mask[salient].mean(), mask[~salient].mean()) == (0.85, 0.95)
    # Whether a salient token is masked does not follow from its place among the salient ones.
    early = salient & (np.arange(400) < 200)
    assert mask[early].mean() == pytest.approx(0.85, abs=0.02)


# ---------------------------------------------------------------------- decoding what is salient


def test_only_salient_tokens_are_decoded():
    spec = MaskSpec("savi", decode="salient")
    salient = saliency(20, spec)
    salient[3] = False
    mask = draw_masks(spec, keys(20), salient)
    decoded = draw_decoded(spec, keys(20), mask, salient)
    rest = np.arange(20) != 3
    np.testing.assert_array_equal(decoded[rest], (mask & salient)[rest])
    np.testing.assert_array_equal(decoded[3], mask[3])  # nothing else is left of it
    with pytest.raises(ValueError, match="needs saliency"):
        draw_decoded(spec, keys(20), mask)


def test_two_ways_to_choose_what_is_decoded_are_refused():
    with pytest.raises(ValueError, match="--decode salient and --decoder-mask-ratio both"):
        MaskSpec("savi", decoder_mask_ratio=0.5, decode="salient")
    with pytest.raises(ValueError, match="decode 'some' is not one of all, salient"):
        MaskSpec("savi", decode="some")


# -------------------------------------------------------------------------------- equal counts


@pytest.mark.parametrize("kind", ["savi", "savi-tube"])
@pytest.mark.parametrize("n_visible", [8, 96, 160, 1560])
def test_every_clip_shows_as_many(kind, n_visible):
    spec = MaskSpec(kind, visible_tokens=n_visible)
    shares = np.linspace(0, 1, 30)[:, None]
    salient = np.random.default_rng(0).random((30, spec.n_tokens)) < shares
    salient[5], salient[6] = True, False
    mask = draw_masks(spec, keys(30), salient)
    assert ((~mask).sum(1) == n_visible).all()
    if kind == "savi-tube":
        by_time = mask.reshape(30, 8, 196)
        assert (by_time == by_time[:, :1]).all()


def test_equal_counts_keep_the_proportion_of_the_ratios():
    spec = MaskSpec("savi", 4, 10, visible_tokens=40)  # 400 tokens, 0.85 and 0.95
    for n_salient, shown in ((100, 20), (200, 30), (0, 0), (400, 40), (1, 0), (4, 1)):
        # 100: 15 of the salient and 15 of the others; 200: 30 and 10; 4: 0.6 and 19.8.
        salient = np.zeros((1, 400), bool)
        salient[0, :n_salient] = True
        visible = ~draw_masks(spec, keys(1), salient)
        assert visible.sum() == 40
        assert (visible & salient).sum() == shown, n_salient
    # All salient tokens are shown where the ratio shows everything of them, and no more than that.
    spec = MaskSpec("savi", 4, 10, salient_mask_ratio=0, nonsalient_mask_ratio=1, visible_tokens=40)
    salient = np.zeros((2, 400), bool)
    salient[0, :10], salient[1, :200] = True, True
    visible = ~draw_masks(spec, keys(2), salient)
    assert (visible & salient).sum(1).tolist() == [10, 40]


def test_the_equal_count_is_what_the_ratios_give():
    assert MaskSpec("savi").equal_count(0.25) == round(1568 * (0.25 * 0.15 + 0.75 * 0.05)) == 118
    assert MaskSpec("savi-tube").equal_count(0.25) == 8 * round(196 * 0.075) == 120
    assert MaskSpec("savi", salient_mask_ratio=1, nonsalient_mask_ratio=1).equal_count(0.5) == 1
    assert MaskSpec("savi", salient_mask_ratio=0, nonsalient_mask_ratio=0).equal_count(0.5) == 1567
    salient = np.zeros(1568, bool)
    salient[:98] = True  # half of the first time step
    assert MaskSpec("savi").salient_share(salient) == 98 / 1568
    assert MaskSpec("savi-tube").salient_share(salient) == 0.5


def test_equal_counts_draw_uniformly_inside_a_group():
    spec = MaskSpec("savi", 2, 5, visible_tokens=12)
    salient = np.zeros((4000, 50), bool)
    salient[:, ::5] = True
    visible = (~draw_masks(spec, keys(4000), salient)).mean(0)
    # 10 * 0.15 against 40 * 0.05: of 12, 5.14 -> 5 of the salient.
    assert np.abs(visible[::5] - 0.5).max() < 0.04
    assert np.abs(np.delete(visible, np.s_[::5]) - 7 / 40).max() < 0.03


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mask_type": "tube"},
            "no effect on tube masks, of which every clip shows the same number",
        ),
        ({"visible_tokens": 0}, "--visible-tokens 0 is not between 1 and 1567"),
        ({"visible_tokens": 1568}, "--visible-tokens 1568 is not between 1 and 1567"),
        (
            {"mask_type": "savi-tube", "visible_tokens": 100},
            "100 is not a multiple of the 8 time steps",
        ),
    ],
)
def test_equal_counts_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        MaskSpec(**{"visible_tokens": 80, **changes})


def test_masks_of_shorter_clips():
    spec = MaskSpec("savi-tube", 8, 4, visible_tokens=24)
    assert spec.of_time_steps(2) == MaskSpec("savi-tube", 2, 4, visible_tokens=6)
    assert MaskSpec("savi", 8, 4, visible_tokens=3).of_time_steps(2).visible_tokens == 1
    assert MaskSpec("savi", 8, 4).of_time_steps(2) == MaskSpec("savi", 2, 4)
