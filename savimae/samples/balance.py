"""Balanced sampling: every class equally often, whatever its number of videos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from savimae.samples.randomness import BALANCE, hashes, sample_keys


class BalancedSamples:
    """Which video stands at which place of an epoch, if each class is to come equally often.

    Places are counted on from epoch to epoch: place g of all is of class g mod K, and is the
    g div K-th of its class. A class goes through all its videos, in an order drawn anew each time,
    before one comes again; so classes of few videos come again within an epoch, and those of many
    go on in the next. In an epoch of n places every class has n / K, rounded up or down.

    Args:
        labels: of the n videos, 0 to K - 1; each class has at least one.
        seed: of the run.
    """

    def __init__(self, labels: Sequence[int], seed: int):
        self.seed = seed
        self.n = len(labels)
        of_all = np.asarray(labels)
        self.of_class = [np.flatnonzero(of_all == label) for label in range(int(of_all.max()) + 1)]
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # the last cycle of each class

    def video(self, index: int, epoch: int) -> int:
        """Which of the n videos is at place `index` of an epoch; follows from both and the seed."""
        number, label = divmod(epoch * self.n + index, len(self.of_class))
        videos = self.of_class[label]
        cycle, place = divmod(number, len(videos))
        kept = self._orders.get(label)  # threads may replace it meanwhile, by one that is right too
        if kept is None or kept[0] != cycle:
            keys = hashes(sample_keys(self.seed, cycle, videos), BALANCE)
            kept = self._orders[label] = (cycle, np.argsort(keys, kind="stable"))
        return int(videos[kept[1][place]])
