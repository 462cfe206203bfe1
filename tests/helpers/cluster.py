"""Jobs on the throw-away cluster of `local_slurm.sh`, for the tests."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

DEADLINE_S = 180.0  # for jobs that take seconds: after it they hang


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a job, or a task of an array, ended; times in whole seconds since 1970."""

    state: str
    code: int
    restarts: int
    start: float
    end: float


def slurm(*words: str) -> str:
    """Standard output of one of Slurm's commands."""
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def jobs(*ids: str) -> dict[str, Ended]:
    """All jobs and tasks of these, by what Slurm calls them: 7, or 7_0 and 7_1."""
    fields = ("JobArrayID", "State", "exit_code", "RestartCnt", "StartTime", "EndTime")
    form = ",".join(f"{field}:40" for field in fields)
    listed = slurm("squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(ids)}",
                   f"--Format={form}")  # fmt: skip
    found = {}
    for line in listed.splitlines():
        name, state, code, restarts, start, end = line.split()
        found[name] = Ended(state, int(code) >> 8, int(restarts), _seconds(start), _seconds(end))
    return found


def _seconds(text: str) -> float:
    return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S")) if text[0].isdigit() else 0.0


def finish(*ids: str) -> dict[str, Ended]:
    """Wait until none of these jobs waits or runs any more."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        found = jobs(*ids)
        if found and not any(
            job.state in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")
            for job in found.values()
        ):
            return found
        if time.monotonic() > deadline:
            slurm("scancel", *ids)
            raise TimeoutError(f"{found} after {DEADLINE_S} s")
        time.sleep(0.1)


def submit(*words: str | Path, cwd: Path) -> list[str]:
    """`savimae slurm … --submit`; the ids of its jobs. `words` must not hold a --."""
    done = subprocess.run(
        [sys.executable, "-m", "savimae", "slurm", *map(os.fspath, words)],
        capture_output=True, text=True, cwd=cwd, check=False, timeout=DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [
        line.split()[1].rstrip(":") for line in done.stdout.splitlines() if line.startswith("job ")
    ]


# A program for --program that runs the command line with a hook. HOOK may call once(), which is
# true the first time in all processes of all jobs, and ask(), which runs a command of Slurm and
# waits until it has reached this process as a signal. It must define arrived().
PROGRAM = """
import os, signal, subprocess, sys, time
def once():
    try:
        open(__file__ + ".once", "x").close()
    except FileExistsError:
        return False
    return True
def job():
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return os.environ["SLURM_JOB_ID"] if task is None else (
        os.environ["SLURM_ARRAY_JOB_ID"] + "_" + task)
def ask(*words):
    subprocess.run(words, check=True)
    deadline = time.monotonic() + 60
    while not arrived() and time.monotonic() < deadline:
        time.sleep(0.01)
{hook}
if __name__ == "__main__":  # worker processes import this as well
    from savimae.cli import main
    main()
"""

# What notes signals keeps them in `received`; {kind} is its class.
NOTING = """
from savimae.system.signals import {kind}
signals, original_enter = None, {kind}.__enter__
def enter(self):
    global signals
    signals = original_enter(self)
    return signals
def arrived():
    return signals.received is not None
{kind}.__enter__ = enter
"""

# In training: at_call(n) is run at the n-th forward pass of a step.
IN_TRAINING = (
    NOTING.replace("{kind}", "StopSignals")
    + """
import torch
from savimae.training.pretrain import Pretraining
calls, original_loss = 0, Pretraining.loss
def loss(self, batch):
    global calls
    if torch.is_grad_enabled():  # not the trial before the first step
        calls += 1
        at_call(calls)
    return original_loss(self, batch)
Pretraining.loss = loss
"""
)


def program(path: Path, hook: str) -> str:
    """Write a program with this hook; what --program takes to run it."""
    path.write_text(PROGRAM.replace("{hook}", hook))
    return f"{sys.executable} {path}"
