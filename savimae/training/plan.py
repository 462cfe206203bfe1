"""Which samples belong to which step, and loading them ahead of time.

A step takes the next `clips_per_step` samples of the epoch's order; the last step of an epoch
takes what is left. The samples of a step are shared among the processes as evenly as possible, and
each process goes through its own in micro-batches. All of it follows from the number of the step.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np

from savimae.samples.randomness import epoch_order
from savimae.training.distributed import World

Sample = TypeVar("Sample")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How `n_samples` are dealt to steps, processes and micro-batches."""

    n_samples: int
    batch_size: int  # of one process, at a time; counts every sample of a clip
    accumulate: int = 1  # micro-batches of a step
    world: World = dataclasses.field(default_factory=World)
    seed: int = 0
    repeat: int = 1  # samples that are made of each clip; divides `batch_size`
    shuffled: bool = True  # each epoch anew; else all go by their order

    @property
    def effective_batch(self) -> int:
        """Samples of a full step, over all processes and micro-batches."""
        return self.batch_size * self.accumulate * self.world.size

    @property
    def clips_at_a_time(self) -> int:
        """Clips that one process loads for a micro-batch."""
        return self.batch_size // self.repeat

    @property
    def clips_per_step(self) -> int:
        """Clips that are loaded for a full step, by all processes."""
        return self.effective_batch // self.repeat

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.n_samples / self.clips_per_step)

    def epoch_of(self, step: int) -> int:
        return step // self.steps_per_epoch

    def micro_batches(self, step: int) -> list[np.ndarray]:
        """Indices of the clips of this process's micro-batches, int64 each.

        Every process has as many; in the last step of an epoch one may be empty.
        """
        order = np.arange(self.n_samples)
        if self.shuffled:
            order = epoch_order(self.seed, self.epoch_of(step), self.n_samples)
        first = step % self.steps_per_epoch * self.clips_per_step
        of_step = order[first : first + self.clips_per_step]
        mine = of_step[self.world.rank :: self.world.size]
        most = math.ceil(len(of_step) / self.world.size)  # the first process has that many
        n = self.clips_at_a_time
        return [mine[i : i + n] for i in range(0, most, n)]


@dataclasses.dataclass(frozen=True)
class MicroBatch(Generic[Sample]):
    """Loaded samples of one forward and backward pass."""

    step: int
    number: int  # from 0, of `count` in this step
    count: int
    samples: list[Sample]
    is_filler: bool  # nothing was left for this process: its sample must count for nothing


def load_batches(
    plan: Plan,
    steps: range,
    load: Callable[[int, int], Sample],
    n_workers: int,
) -> Generator[MicroBatch[Sample]]:
    """The micro-batches of `steps` in order, loaded ahead on `n_workers` threads.

    Threads rather than processes: decoding, resizing and the kernels release Python's global lock,
    nothing is copied or forked, and they start at once. With none, samples are loaded when asked
    for.

    Args:
        load: (index of the sample, epoch) -> sample.
    """
    wanted = _micro_batches(plan, steps)
    if n_workers == 0:
        for batch, indices in wanted:
            samples = [load(int(index), plan.epoch_of(batch.step)) for index in indices]
            yield dataclasses.replace(batch, samples=samples)
        return
    executor = ThreadPoolExecutor(n_workers, "clips")
    ahead = max(
        2 * plan.clips_at_a_time, 2 * n_workers
    )  # samples: one batch in use, one on its way
    queue: collections.deque[tuple[MicroBatch[Any], list[Future[Sample]]]] = collections.deque()
    n_queued = 0
    try:
        while True:
            while n_queued < ahead:
                following = next(wanted, None)
                if following is None:
                    break
                batch, indices = following
                epoch = plan.epoch_of(batch.step)
                queue.append((batch, [executor.submit(load, int(i), epoch) for i in indices]))
                n_queued += len(indices)
            if not queue:
                return
            batch, futures = queue.popleft()
            n_queued -= len(futures)
            yield dataclasses.replace(batch, samples=[future.result() for future in futures])
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _micro_batches(plan: Plan, steps: range) -> Iterator[tuple[MicroBatch[Any], np.ndarray]]:
    for step in steps:
        parts = plan.micro_batches(step)
        filler = next(itertools.chain(*parts), None)
        for number, indices in enumerate(parts):
            batch: MicroBatch[Any] = MicroBatch(step, number, len(parts), [], len(indices) == 0)
            if batch.is_filler:
                indices = np.array([0 if filler is None else filler])
            yield batch, indices
