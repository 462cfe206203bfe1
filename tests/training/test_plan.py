"""Which samples make up a step: each once, whoever computes it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from savimae.samples.randomness import epoch_order
from savimae.training.distributed import World
from savimae.training.plan import MicroBatch, Plan, load_batches


@pytest.mark.parametrize("n_samples", [1, 7, 24, 25, 26, 100])
@pytest.mark.parametrize(("size", "batch_size", "accumulate"), [(1, 8, 1), (2, 2, 2), (4, 1, 2)])
def test_every_sample_once_an_epoch_in_the_same_steps(n_samples, size, batch_size, accumulate):
    plans = [
        Plan(n_samples, batch_size, accumulate, World(rank, size), seed=3) for rank in range(size)
    ]
    n_steps = -(-n_samples // 8)
    assert {plan.steps_per_epoch for plan in plans} == {n_steps}
    assert {plan.effective_batch for plan in plans} == {8}
    for epoch in range(2):
        order = epoch_order(3, epoch, n_samples)
        for step in range(n_steps):
            parts = [plan.micro_batches(epoch * n_steps + step) for plan in plans]
            # As many backward passes everywhere, or the processes would wait for each other.
            assert len({len(part) for part in parts}) == 1
            assert all(len(batch) <= batch_size for part in parts for batch in part)
            taken = [int(index) for part in parts for batch in part for index in batch]
            assert sorted(taken) == sorted(order[8 * step : 8 * step + 8].tolist())


def test_a_clip_of_several_samples_is_loaded_once():
    plans = [Plan(11, 4, 2, World(rank, 2), seed=3, repeat=2) for rank in range(2)]
    assert [plan.effective_batch for plan in plans] == [16, 16]  # samples
    assert [plan.steps_per_epoch for plan in plans] == [2, 2]  # 8 clips, and 3
    batches = [plan.micro_batches(step) for plan in plans for step in range(2)]
    assert max(len(batch) for part in batches for batch in part) == 2
    taken = [int(index) for part in batches for batch in part for index in batch]
    assert sorted(taken) == list(range(11))


def collect(plan: Plan, steps: range, n_workers: int) -> list[MicroBatch[tuple[int, int]]]:
    return list(load_batches(plan, steps, lambda index, epoch: (index, epoch), n_workers))


@pytest.mark.parametrize("n_workers", [1, 3, 16])
def test_threads_keep_the_order_and_resuming_continues_it(n_workers):
    plan = Plan(23, 3, 2, seed=1)
    everything = collect(plan, range(12), 0)
    assert [batch.step for batch in everything] == [s for s in range(12) for _ in range(2)]
    assert collect(plan, range(12), n_workers) == everything
    assert collect(plan, range(5, 12), n_workers) == everything[10:]
    assert {epoch for batch in everything for _, epoch in batch.samples} == {0, 1, 2}


def test_a_process_without_samples_gets_a_filler():
    world = World(2, 3)
    batches = collect(Plan(4, 1, 1, world), range(2), 0)
    assert [batch.is_filler for batch in batches] == [False, True]
    assert len(batches[1].samples) == 1


def test_an_error_while_loading_comes_in_its_turn():
    def load(index: int, epoch: int) -> int:
        if epoch == 1:
            raise ValueError(f"sample {index}")
        return index

    batches = load_batches(Plan(6, 2), range(6), load, 2)
    first = list(itertools.islice(batches, 3))
    assert sorted(index for batch in first for index in batch.samples) == list(range(6))
    with pytest.raises(ValueError, match=f"sample {epoch_order(0, 1, 6)[0]}"):
        next(batches)


def test_only_what_is_soon_needed_is_loaded():
    loaded: list[int] = []

    def load(index: int, epoch: int) -> int:
        del epoch
        loaded.append(index)
        return index

    batches = load_batches(Plan(1000, 4), range(250), load, 2)
    next(batches)
    batches.close()
    assert len(loaded) <= 12  # one batch in use, two ahead
    np.testing.assert_array_equal(sorted(loaded[:4]), sorted(epoch_order(0, 0, 1000)[:4]))
