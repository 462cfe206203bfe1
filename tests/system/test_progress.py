"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import io

from savimae.system import progress


def test_progress_writes_plain_lines_elsewhere(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    lines = progress.Progress("preprocess", stream)
    for seconds, share in ((5, 0.1), (11, 0.25), (15, 0.3), (20.9, 0.4), (21, 0.5)):
        now[0] = 100 + seconds
        lines.show(share, f"{share:.0%} of the videos")
    assert [line[9:] for line in stream.getvalue().splitlines()] == [  # after the clock time
        "preprocess 25%: 25% of the videos, 0:00:33 left",
        "preprocess 50%: 50% of the videos, 0:00:21 left",
    ]


def test_progress_draws_a_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with progress.Progress("preprocess", stream) as bar:
        bar.show(0.5, "5 videos")
        bar.write("failed: x")
    assert "50%" in stream.getvalue()
    assert "| preprocess: 5 videos, 0:00:00 left" in stream.getvalue()
    assert "failed: x\n" in stream.getvalue()


def test_progress_of_what_may_take_no_time_waits(monkeypatch):
    now, stream = [0.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = progress.Progress("listing", stream, delay_s=60.0)
    for moment in (20.0, 59.0, 61.0):
        now[0] = moment
        lines.show(None, f"{moment:.0f} found")
    assert [line.split(" ", 1)[1] for line in stream.getvalue().splitlines()] == [
        "listing: 61 found"
    ]
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    with progress.Progress("listing", terminal, delay_s=60.0) as bar:
        bar.show(None, "3 found")
    assert "3 found" not in terminal.getvalue()


def test_durations():
    assert progress.duration(3725.4) == "1:02:05"
