"""Threads of a training step: two against one, and what a busy neighbour costs.

    python benchmarks/threads.py [--model tiny] [--input-size 112] [--batch 8] [--rounds 5]

A step of `train_step.py` in a process of its own: with one thread and with all, and with threads
that wait for each other for so many turns of a loop before they sleep (GOMP_SPINCOUNT; "library" is
what GNU OpenMP does by itself, "ours" what the commands of savimae set). Then the same beside a
process that keeps one core busy. The settings take turns, `--rounds` times; ratios are medians of
ratios within a round. Prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from hardware import hardware, versions

from savimae.system.cores import SPIN_COUNT, available_cores

STEP = str(Path(__file__).with_name("train_step.py"))
WAITS = {"library": None, "500": 500, "ours": SPIN_COUNT, "10000": 10000, "100000": 100000}


@contextlib.contextmanager
def neighbour(is_there: bool) -> Iterator[None]:
    """A process that computes all the time."""
    if not is_there:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def clips_per_s(options: argparse.Namespace, threads: int, wait: int | None) -> float:
    setting = {
        "code": "savimae", "mask": "savi", "allocator": "keep", "decoder_mask_ratio": 0.0,
        "precision": options.precision, "batch": [options.batch],
    }  # fmt: skip
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["OMP_NUM_THREADS"] = str(threads)
    if wait is not None:
        environment["GOMP_SPINCOUNT"] = str(wait)
    words = ["--model", options.model, "--input-size", str(options.input_size)]
    words += ["--steps", str(options.steps), "--only", json.dumps(setting)]
    done = subprocess.run(
        [sys.executable, STEP, *words], stdout=subprocess.PIPE, text=True, check=True,
        env=environment,
    )  # fmt: skip
    return float(json.loads(done.stdout)["clips_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--input-size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cores = available_cores()
    settings = [(1, "ours"), *((cores, wait) for wait in WAITS)]
    rounds = []
    for _ in range(options.rounds):
        found = {}
        for is_busy in (False, True):
            with neighbour(is_busy):
                for threads, wait in settings:
                    name = f"{'busy' if is_busy else 'quiet'}, {threads} threads, {wait}"
                    found[name] = clips_per_s(options, threads, WAITS[wait])
                    print(name, found[name], file=sys.stderr, flush=True)
        rounds.append(found)
    base = f"quiet, {cores} threads, library"
    json.dump(
        {
            "hardware": hardware(),
            "versions": versions("savimae", "torch"),
            "options": vars(options),
            f"clips/s over those of: {base}": {
                name: round(statistics.median(each[name] / each[base] for each in rounds), 3)
                for name in rounds[0]
            },
            "clips/s": rounds,
        },
        sys.stdout,
        indent=2,
    )
    print()


if __name__ == "__main__":
    main()
