"""A pool of processes that take tasks one at a time and outlive each other's crashes.

Each worker is a pool of one from the standard library, so that a crash (a decoder that segfaults, a
kill for memory) is known to belong to one task: that task fails, the worker is replaced, the others
go on.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_processes
from typing import Any, TypeVar

Work = TypeVar("Work")

POLL_INTERVAL_S = 0.1
CLEAN_UP_S = 10.0  # for a process that was asked to end; one that decodes cannot be interrupted


class WorkerDiedError(Exception):
    """The process that worked on a task ended without an answer."""


class Counter:
    """What a worker has done so far, in memory that its parent reads: frames, share of its task."""

    def __init__(self, values: Any):
        self._values = values

    @property
    def frames(self) -> int:
        return int(self._values[0])

    @property
    def share(self) -> float:
        return float(self._values[1])

    def start_task(self) -> None:
        self._values[1] = 0.0

    def add(self, frames: int, share: float) -> None:
        self._values[0] += frames
        self._values[1] = min(share, 1.0)


class _Worker:
    """One process, the counter it writes, and the task it works on."""

    def __init__(self, context: multiprocessing.context.BaseContext):
        self.context = context
        self.values = context.RawArray("d", 2)
        self.counter = Counter(self.values)
        self.executor = self._start()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, self.context, _start_worker, (self.values,))

    def submit(self, function: Callable[..., Any], task: Any) -> Future[Any]:
        self.counter.start_task()
        try:
            return self.executor.submit(_run_task, function, task)
        except BrokenProcessPool:
            self.executor.shutdown(wait=False)
            self.executor = self._start()
            return self.executor.submit(_run_task, function, task)

    def ask_to_stop(self) -> None:
        """Send TERM, without waiting."""
        for process in self._processes():
            process.terminate()

    def stop(self, at_once: bool) -> None:
        """Wait for the process to end; `at_once`, for so long only."""
        for process in self._processes() if at_once else []:
            if not wait_for_processes([process.sentinel], CLEAN_UP_S):
                process.kill()
        self.executor.shutdown(wait=True, cancel_futures=True)

    def _processes(self) -> list[multiprocessing.process.BaseProcess]:
        return list((self.executor._processes or {}).values())


def run_tasks(
    function: Callable[[Work], Any],
    tasks: Iterable[Work],
    n_workers: int,
    preload: list[str],
    poll: Callable[[list[tuple[Work, Counter]], list[Counter]], None],
) -> Generator[tuple[Work, Any]]:
    """Run `function(task)` for every task on `n_workers` processes; yield results as they come.

    Args:
        function, tasks: must be picklable; `function` reports to `counter()`.
        preload: modules that are imported once, before the workers fork from that state.
        poll: called about ten times a second with the tasks that are being worked on and with the
            counters of all workers.

    Yields:
        (task, result), where the result is what `function` returned, or the exception it raised, or
        WorkerDiedError.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(preload)
    workers = [_Worker(context) for _ in range(n_workers)]
    counters = [worker.counter for worker in workers]
    queue = iter(tasks)
    running: dict[Future[Any], tuple[_Worker, Work]] = {}
    idle = list(workers)
    finished = False
    try:
        while True:
            while idle and (task := next(queue, None)) is not None:
                worker = idle.pop()
                running[worker.submit(function, task)] = (worker, task)
            if not running:
                break
            done, _ = wait(running, timeout=POLL_INTERVAL_S, return_when=FIRST_COMPLETED)
            poll([(task, worker.counter) for worker, task in running.values()], counters)
            for future in done:
                worker, task = running.pop(future)
                idle.append(worker)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    error = WorkerDiedError()
                yield task, error if error is not None else future.result()
        finished = True
    finally:
        for worker in workers if not finished else []:
            worker.ask_to_stop()
        for worker in workers:
            worker.stop(at_once=not finished)


_counter: Counter | None = None  # set once in each worker process, before its first task


def counter() -> Counter:
    """The counter of this worker process."""
    if _counter is None:
        raise AssertionError("counter() is for worker processes")
    return _counter


def _start_worker(values: Any) -> None:
    global _counter
    _counter = Counter(values)
    # Control-C reaches the whole process group; the parent decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _run_task(function: Callable[[Any], Any], task: Any) -> Any:
    """One task of this worker. TERM ends it as an exception, so that its temporary file goes.

    Between tasks TERM ends the process as usual: no exception may come into the pool's own code.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        return function(task)
    except SystemExit:
        os._exit(1)
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit_with_parent() -> None:
    """End this process when its parent is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        with contextlib.suppress(OSError):
            wait_for_processes([parent.sentinel])
        os._exit(1)
