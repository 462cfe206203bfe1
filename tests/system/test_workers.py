"""The pool of processes: ended in the middle of its work."""

from __future__ import annotations

import math
import os

import pytest

from savimae.system import workers

STUBBORN = """
import time
open({started!r}, "w").close()
while True:
    try:
        time.sleep(60)
    except SystemExit:
        pass
"""


def test_left_early_it_is_quiet(capfd):
    for n_results in (0, 1, 5):
        results = workers.run_tasks(math.sqrt, range(10_000), 2, ["math"], lambda *_: None)
        found = [next(results) for _ in range(n_results)]
        assert sorted(found) == sorted((task, math.sqrt(task)) for task, _ in found)
        results.close()
    assert capfd.readouterr().err == ""


def test_an_exception_from_poll_ends_it(capfd):
    def poll(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(workers.run_tasks(math.sqrt, range(10_000), 2, ["math"], poll))
    assert capfd.readouterr().err == ""


def test_a_task_that_does_not_end_is_killed(tmp_path, monkeypatch):
    started = tmp_path / "started"
    monkeypatch.setattr(workers, "CLEAN_UP_S", 0.1)
    task = STUBBORN.format(started=str(started))

    def poll(*_):
        if os.path.exists(started):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(workers.run_tasks(exec, [task], 1, [], poll))
