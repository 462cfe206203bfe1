"""Progress of long runs: a bar on a terminal, plain lines elsewhere (a Slurm log)."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

LINE_INTERVAL_S = 10.0


class Progress:
    """Shows a share done, counts and the time left; all on standard error.

    On a terminal a bar that is redrawn; elsewhere one line every ten seconds, with the clock time.

    Args:
        title: what is going on.
        stream: where to show it.
        start: the share that was done before.
        quiet: show nothing, as processes beside the first do.
        delay_s: show nothing before, for what mostly takes no time.
    """

    def __init__(
        self,
        title: str,
        stream: TextIO | None = None,
        start: float = 0.0,
        quiet: bool = False,
        delay_s: float = 0.0,
    ):
        self.title = title
        self.stream = stream or sys.stderr
        self.start = start
        self.quiet = quiet
        self.delay_s = delay_s
        self.started = time.monotonic()
        self.last_line = self.started
        self.bar = None
        if self.stream.isatty() and not quiet:
            self.bar = tqdm(
                total=1.0,
                desc=title,
                file=self.stream,
                leave=False,
                bar_format="{percentage:3.0f}%|{bar:20}| {desc}",
                delay=delay_s,
            )

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    def show(self, share: float | None, counts: str) -> None:
        """Show that `share` (0 to 1) is done, None if nobody knows.

        `counts` says it in words, such as rates.
        """
        if self.quiet or self.elapsed_s < self.delay_s:
            return
        text = counts if share is None else f"{counts}, {self._time_left(share)}"
        if self.bar is not None:
            self.bar.set_description_str(f"{self.title}: {text}", refresh=False)
            self.bar.n = min(share or 0.0, 1.0)
            self.bar.refresh()
        elif time.monotonic() - self.last_line >= LINE_INTERVAL_S:
            self.last_line = time.monotonic()
            done = "" if share is None else f" {share:.0%}"
            self.write(f"{time.strftime('%H:%M:%S')} {self.title}{done}: {text}")

    def write(self, line: str) -> None:
        """Print a line without tearing the bar."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.write(line, file=self.stream)
        else:
            print(line, file=self.stream, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def _time_left(self, share: float) -> str:
        done = share - self.start
        if done <= 0:
            return "time left unknown"
        return f"{duration(self.elapsed_s * (1 - min(share, 1.0)) / done)} left"


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"
