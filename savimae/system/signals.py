"""Signals that ask a process to stop."""

from __future__ import annotations

import signal
import sys
from typing import Any

from savimae.system.errors import EXIT_STOPPED


class StopSignals:
    """SIGTERM, SIGINT and SIGUSR1 ask for a stop after the step; a second SIGINT kills at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.may_save = True
        self._before: dict[int, Any] = {}  # handlers

    def __enter__(self) -> StopSignals:
        names = ("SIGTERM", "SIGINT", "SIGUSR1")
        known = [getattr(signal, name) for name in names if hasattr(signal, name)]
        self._before = {number: signal.signal(number, self._handle) for number in known}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop_unsaved(self) -> None:
        """Ask for a stop that writes nothing; another thread may call this."""
        self.may_save = False
        self.received = self.received or signal.SIGTERM

    def _handle(self, number: int, _: object) -> None:
        self.received = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


class EndedBySignals:
    """INT, TERM and USR1 become exceptions where `check` is called: workers are stopped, temporary
    files removed. A second INT kills at once.

    The handler itself raises nothing: an exception may come between a lock and the code that
    releases it, and what waits for that lock then waits forever; or in a destructor, where Python
    drops it. USR1 asks to stop and to go on later, as in training; the exit code says so.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}  # handlers

    def __enter__(self) -> EndedBySignals:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def check(self) -> None:
        """Raise the exception that a signal asked for, if there was a signal."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            is_pause = self.received == signal.SIGUSR1
            sys.exit(EXIT_STOPPED if is_pause else 128 + self.received)
