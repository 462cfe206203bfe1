"""Damaged inputs: 200 fixed cases of benchmarks/fuzz.py, and whether it notices what it is to."""

from __future__ import annotations

import importlib.util
import json
import mmap
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from media import encode, moving_frames

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPT = BENCHMARKS / "fuzz.py"


def test_200_cases_end_well_or_are_one_line(tmp_path):
    # In a process of its own: the cases are forked, and this one may have threads.
    done = subprocess.run(
        [sys.executable, SCRIPT, "--cases", "200", "--seed", "7", "--unchecked", "--out",
         tmp_path / "out"],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["cases"] == 200
    assert found["bad"] == 0
    # Damage that nothing notices, or that everything does, would test nothing.
    assert 40 < found["total"]["right"] < 160
    assert 40 < found["total"]["refused"] < 160
    assert len(found["counts"]) == 28
    assert not (tmp_path / "out/findings").exists()


@pytest.fixture(scope="module")
def fuzz():
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARKS))


def say(text: str, code: int) -> None:
    click.echo(text, err=True)
    sys.exit(code)


def endless() -> None:
    while True:
        pass


def leave_something() -> None:
    Path("../../.x.savimae-tmp").touch()
    say("savimae: bad.avi: damaged; mend it", 1)


@pytest.mark.parametrize(
    ("call", "outcome"),
    [
        (lambda: sys.exit(0), "right"),
        (lambda: say("warning: something", 0), "right"),
        (lambda: say("savimae: bad.avi: damaged; mend it", 1), "refused"),
        (lambda: say("failed: x/bad.avi: damaged", 1), "refused"),
        (lambda: say("savimae: damaged", 1), "several lines"),
        (lambda: say("UserWarning: x\nsavimae: bad.avi: damaged", 1), "several lines"),
        (lambda: say("savimae: a bug in savimae: x", 1), "bug"),
        (lambda: 1 / 0, "traceback"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "crash"),
        (endless, "slow"),
        (lambda: np.empty(3 * 2**30, np.uint8), "memory"),
        (leave_something, "leftovers"),
    ],
)
def test_what_a_case_did_is_noticed(fuzz, tmp_path, monkeypatch, call, outcome):
    monkeypatch.setattr(fuzz, "LIMIT_S", 0.5 if outcome == "slow" else 60)
    box = fuzz.Box(tmp_path, None, random.Random(0), damaged=[tmp_path / "bad.avi"])
    assert fuzz.run_case(box, ["x"], call).outcome == outcome


def test_the_memory_of_a_case_is_its_own(fuzz, tmp_path, monkeypatch):
    """What the forking process holds is no case's: a long test run holds gigabytes."""
    monkeypatch.setattr(fuzz, "LIMIT_MIB", 100)
    held = np.ones(150 * 2**20, np.uint8)

    def fill(mib: int) -> None:
        pages = mmap.mmap(-1, mib << 20)  # new ones; malloc may have some that are free
        for start in range(0, len(pages), mmap.PAGESIZE):
            pages[start] = 1
        sys.exit(0)

    for name, own_mib, outcome in (("little", 1, "right"), ("much", 120, "memory")):
        box = fuzz.Box(tmp_path / name, None, random.Random(0))
        box.folder.mkdir()
        result = fuzz.run_case(box, ["x"], lambda n=own_mib: fill(n))
        assert result.outcome == outcome
        assert own_mib - 2 < result.mib < own_mib + 50
    assert held.all()


def test_lost_frames_are_noticed(fuzz, tmp_path):
    video = encode(tmp_path / "v.avi", moving_frames(9))
    for n_frames, outcome in ((9, "right"), (8, "frames"), (10, "frames")):
        np.save(tmp_path / "v.npy", np.zeros((n_frames, 2, 2), np.uint8))
        folder = tmp_path / str(n_frames)
        folder.mkdir()
        box = fuzz.Box(folder, None, random.Random(0), arrays={tmp_path / "v.npy": (video, 9)})
        assert fuzz.run_case(box, ["x"], lambda: sys.exit(0)).outcome == outcome


def test_a_run_that_was_killed_goes_on_from_its_record(fuzz, tmp_path, monkeypatch):
    done = []

    def try_case(*case):
        *_, kind, number = case
        done.append((kind, number))
        return fuzz.Result("crash" if number == 2 else "right")

    monkeypatch.setattr(fuzz, "try_case", try_case)
    for name in ("load_whole", "check_whole", "path_of_commands"):
        monkeypatch.setattr(fuzz, name, lambda *_: None)
    whole = fuzz.fuzz(tmp_path, ["avi", "log"], 6, 0, None)
    assert done == [(kind, number) for number in range(3) for kind in ("avi", "log")]
    assert fuzz.tally(whole)["log"]["crash"] == 1
    record = tmp_path / "record.jsonl"
    record.write_text(record.read_text()[:-5])  # the last line is cut
    done.clear()
    assert fuzz.fuzz(tmp_path, ["avi", "log"], 6, 0, None) == whole
    assert done == [("log", 2)]
    done.clear()
    assert fuzz.fuzz(tmp_path, ["avi", "log"], 8, 0, None)[:6] == whole
    assert done == [("avi", 3), ("log", 3)]
    with pytest.raises(SystemExit, match="is of other cases"):
        fuzz.fuzz(tmp_path, ["avi"], 6, 1, None)


def test_the_same_seed_gives_the_same_damage(fuzz):
    damage = sys.modules["fuzz_damage"]
    whole = bytes(range(256)) * 20

    def draw(seed):
        rng = random.Random(seed)
        return [
            damage.damaged_bytes(rng, whole, (b"\x10\x11",)),
            damage.damaged_text(rng, "a 1\nb 2\n"),
            damage.damaged_json(rng, {"a": [1, {"b": 2}]}),
        ]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert fuzz.KINDS
