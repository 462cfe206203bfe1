"""Draws are hashes: stable, uniform, and of nothing but seed, epoch and sample."""

from __future__ import annotations

import numpy as np
import pytest

from savimae.samples.randomness import (
    CLIP_START,
    CROP,
    epoch_order,
    hashes,
    integer_below,
    repeat_keys,
    sample_keys,
    uniform,
)


def test_an_epochs_order_is_a_permutation_of_its_own():
    first = epoch_order(0, 0, 1000)
    assert sorted(first.tolist()) == list(range(1000))
    others = [epoch_order(0, 1, 1000), epoch_order(1, 0, 1000), np.arange(1000)]
    for other in others:
        # Two unrelated permutations of 1000 agree in one place on average.
        assert (first == other).sum() < 10
    # A change here changes every run ever made: written out so that it is noticed.
    assert epoch_order(0, 0, 8).tolist() == [7, 6, 4, 3, 0, 1, 5, 2]


def test_uniform_draws_fill_the_interval():
    keys = sample_keys(3, 5, np.arange(20_000))
    draws = np.array([uniform(key, CLIP_START)[0] for key in keys])
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    # 1000 a bin; the standard deviation is 31.
    assert counts.min() > 850
    assert counts.max() < 1150
    again = np.array([uniform(key, CLIP_START, 3)[0] for key in keys[:50]])
    np.testing.assert_array_equal(again, draws[:50])


def test_purposes_and_places_are_independent():
    keys = sample_keys(0, 0, np.arange(5000))
    starts = hashes(keys, CLIP_START) / 2.0**64
    crops = hashes(keys, CROP) / 2.0**64
    pairs = np.stack([uniform(key, CROP, 2) for key in keys])
    # The correlation of 5000 independent pairs has a standard deviation of 0.014.
    assert abs(np.corrcoef(starts, crops)[0, 1]) < 0.07
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.07


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_integers_reach_every_value(limit):
    keys = sample_keys(0, 0, np.arange(300))
    assert {integer_below(limit, key, CROP) for key in keys} == set(range(limit))


def test_samples_of_one_clip_have_keys_of_their_own():
    keys = sample_keys(1, 2, np.arange(50))
    repeated = repeat_keys(keys, 3)
    assert repeated.dtype == np.uint64
    assert repeated[::3].tolist() == keys.tolist()  # what a clip draws does not depend on repeats
    assert len(set(repeated.tolist())) == 150
    assert repeat_keys(keys[7:8], 3).tolist() == repeated[21:24].tolist()
    assert repeat_keys(keys, 2).tolist() == repeated.reshape(50, 3)[:, :2].reshape(-1).tolist()
