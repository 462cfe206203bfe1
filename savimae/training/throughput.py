"""How fast a run goes, and how much memory it holds."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator


class Meter:
    """Clips a second and the share of the time spent waiting for data, since `restart`."""

    def __init__(self) -> None:
        self.clips_per_s = 0.0
        self.wait_share = 0.0
        self._started = time.perf_counter()
        self._n_clips = 0.0
        self._waited_s = 0.0

    def restart(self) -> float:
        """Begin anew; returns the seconds since the last time. The rates stay until a step ends."""
        now = time.perf_counter()
        seconds = now - self._started
        self._started, self._n_clips, self._waited_s = now, 0.0, 0.0
        return seconds

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._waited_s += time.perf_counter() - before

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no part of training."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - before

    def count_step(self, n_clips: float) -> None:
        """A step of so many clips, of all processes, is done."""
        self._n_clips += n_clips
        seconds = time.perf_counter() - self._started
        self.clips_per_s = self._n_clips / seconds
        self.wait_share = self._waited_s / seconds


def resident_gib() -> float:
    """Memory that this process holds; where the system does not say, the most it ever held."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
