"""One writer for each output: who is refused, who is forgotten, who stops."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from media import encode, moving_frames, savimae
from runs import command, config, finish, hooked, log_of, make_videos, same_weights

from savimae.system import lock
from savimae.system.errors import EXIT_STOPPED, SavimaeError, UsageError
from savimae.system.lock import BEAT_S, GONE_AFTER_S, Writer, sole_writer
from savimae.training.pretrain import train

WHOLE = ".running/0-of-1.json"


def leave_note(folder: Path, name: str = WHOLE, age_s: float = 0.0, **changes: object) -> Path:
    """A note as another process leaves it; without changes, it is that of this live one."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**dataclasses.asdict(Writer.here()), **changes}))
    os.utime(path, ns=(0, path.stat().st_mtime_ns - round(1e9 * age_s)))
    return path


def is_refused(folder: Path, index: int = 0, count: int = 1) -> bool:
    try:
        with sole_writer(str(folder), index, count):
            return False
    except SavimaeError:
        return True


ELSEWHERE = {"host": "node7", "boot": "another", "pid": 4321, "started": "2026-01-02 03:04:05"}


# ---------------------------------------------------------------------------------- the rules


def test_a_note_says_who_writes_and_goes_with_its_writer(tmp_path):
    folder = tmp_path / "new/run"
    with sole_writer(str(folder)):
        noted = json.loads((folder / WHOLE).read_text())
        assert noted["pid"] == os.getpid()
        assert noted["host"] == os.uname().nodename
        with pytest.raises(SavimaeError) as refused, sole_writer(str(folder)):
            pass
        assert str(refused.value) == (
            f"{folder}: process {os.getpid()} on {noted['host']}, started {noted['started']}, is "
            "writing it; wait for its end, end it, or choose another output"
        )
        assert json.loads((folder / WHOLE).read_text()) == noted
    assert os.listdir(tmp_path) == []  # nothing was written, so no folder stays
    folder.mkdir(parents=True)
    with contextlib.suppress(KeyError), sole_writer(str(folder)):
        (folder / "result").touch()
        raise KeyError
    assert os.listdir(folder) == ["result"]


KILLED = """
import os, signal, sys
from savimae.system.lock import sole_writer
with sole_writer(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_blocks_nobody(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    dead = json.loads((tmp_path / WHOLE).read_text())
    with sole_writer(str(tmp_path)) as writer:
        noted = json.loads((tmp_path / WHOLE).read_text())
        assert noted["pid"] == os.getpid() != dead["pid"]
        writer.check()
    assert os.listdir(tmp_path) == []


def test_a_killed_process_that_nobody_waited_for(tmp_path):
    """A zombie has a number and a start, but writes nothing."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_refused(tmp_path)
    assert process.wait() == -signal.SIGKILL


def test_another_process_under_the_old_number(tmp_path):
    leave_note(tmp_path, ticks=1)
    assert not is_refused(tmp_path)


@pytest.mark.parametrize(
    ("changes", "age_s", "refused"),
    [
        # On another machine only the note's time says whether somebody is there.
        (ELSEWHERE, 0, True),
        (ELSEWHERE, GONE_AFTER_S - 20, True),
        (ELSEWHERE, GONE_AFTER_S + 20, False),
        ({**ELSEWHERE, "boot": None}, 0, True),
        # This machine, before it was started again: two beats, in case another has its name.
        ({"boot": "another"}, 2 * BEAT_S + 20, False),
        ({"boot": "another"}, 0, True),
        # A container: its numbers are not ours.
        ({"namespace": "pid:[1]", "ticks": 1}, 0, True),
        ({"namespace": "pid:[1]"}, GONE_AFTER_S + 20, False),
        # A live process of this machine may be suspended for as long as it likes.
        ({}, 1e6, True),
        # Slurm.
        ({**ELSEWHERE, "job": "c:77", "life": 0}, 0, False),
        ({**ELSEWHERE, "job": "c:77", "life": 1}, 0, True),  # two commands in one allocation
        ({**ELSEWHERE, "job": "c:78", "life": 0}, 0, True),
        ({**ELSEWHERE, "job": "d:77", "life": 0}, 0, True),
        ({**ELSEWHERE, "job": "c:78", "life": 0}, GONE_AFTER_S + 20, False),
    ],
)
def test_who_is_refused(tmp_path, monkeypatch, changes, age_s, refused):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    leave_note(tmp_path, age_s=age_s, **{"job": None, **changes})
    assert is_refused(tmp_path) == refused


def test_a_task_of_an_array_is_a_job_of_its_own(tmp_path, monkeypatch):
    for name, value in (
        ("SLURM_JOB_ID", "80"), ("SLURM_ARRAY_JOB_ID", "77"), ("SLURM_ARRAY_TASK_ID", "3"),
        ("SLURM_CLUSTER_NAME", "c"), ("SLURM_RESTART_COUNT", "2"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    note = leave_note(tmp_path, **{**ELSEWHERE, "job": "c:77_4", "life": 0})
    with pytest.raises(SavimaeError) as refused, sole_writer(str(tmp_path)):
        pass
    assert re.fullmatch(
        rf"{tmp_path}: process 4321 on node7, Slurm job 77_4, started 2026-01-02 03:04:05, is "
        r"writing it \(last sign of life \d s ago; had it been killed, it would be forgotten after "
        r"120 s\); wait for its end, end it, or choose another output",
        str(refused.value),
    )
    note.unlink()
    leave_note(tmp_path, **{**ELSEWHERE, "job": "c:77_3", "life": 1})
    assert not is_refused(tmp_path)


def test_the_clock_is_that_of_the_file_system(tmp_path, monkeypatch):
    """A file server an hour ahead of this machine."""
    path = leave_note(tmp_path, age_s=-3600, **ELSEWHERE)
    assert is_refused(tmp_path)
    server = path.stat().st_mtime
    monkeypatch.setattr(lock, "_now_there", lambda _: server + GONE_AFTER_S + 1)
    assert not is_refused(tmp_path)


def test_a_process_of_another_user_that_the_system_hides(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    monkeypatch.setattr(lock, "_start_ticks", lambda _: None)
    leave_note(tmp_path)
    assert is_refused(tmp_path)
    leave_note(tmp_path, age_s=GONE_AFTER_S + 20)
    assert not is_refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"pid": 1}', b"[]", b"\xff\xfe", b"foreign"])
def test_a_note_that_is_not_whole_counts_for_a_while(tmp_path, content):
    path = leave_note(tmp_path)
    path.write_bytes(content)
    with (
        pytest.raises(SavimaeError, match="a process that has just started, is writing it"),
        sole_writer(str(tmp_path)),
    ):
        pass
    os.utime(path, (0, path.stat().st_mtime - GONE_AFTER_S - 20))
    assert not is_refused(tmp_path)
    assert os.listdir(tmp_path) == []


def test_parts_of_one_partition_go_side_by_side(tmp_path):
    with sole_writer(str(tmp_path), 1, 4):
        assert not is_refused(tmp_path, 2, 4)
        assert is_refused(tmp_path, 1, 4)
        assert is_refused(tmp_path, 0, 2)  # has some of the same videos
        assert is_refused(tmp_path)
        assert os.listdir(tmp_path / ".running") == ["1-of-4.json"]
        with pytest.raises(SavimaeError, match=r"is writing part 1/4 of it;"):
            sole_writer(str(tmp_path)).__enter__()
    with sole_writer(str(tmp_path)):
        assert is_refused(tmp_path, 1, 4)
    leave_note(tmp_path, ".running/3-of-8.json", ticks=1)  # dead
    assert not is_refused(tmp_path)
    assert not is_refused(tmp_path, 1, 4)


@pytest.mark.parametrize("is_claimed", [False, True])
def test_of_many_that_find_a_dead_note_one_takes_over(tmp_path, is_claimed):
    """The claim is that of a process that died while it took over."""
    n = 8
    for number in range(20):
        folder = tmp_path / str(number)
        dead = json.loads(leave_note(folder, ticks=1).read_text())
        if is_claimed:
            leave_note(folder, f"{WHOLE}.after-{dead['token']}", ticks=1)
        together = threading.Barrier(n)

        def attempt(_, folder=folder, together=together) -> bool:
            together.wait(60)
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(sole_writer(str(folder)))
                    return True
                except SavimaeError:
                    return False
                finally:
                    together.wait(60)  # all have tried

        with ThreadPoolExecutor(n) as pool:
            assert sum(pool.map(attempt, range(n))) == 1
        assert not folder.exists() or os.listdir(folder) == []


# ------------------------------------------------------------------------------ signs of life


def test_signs_of_life(tmp_path, monkeypatch):
    with sole_writer(str(tmp_path)) as writer:
        os.utime(tmp_path / WHOLE, (0, 1000))
        writer.check()  # it was written a moment ago
        assert (tmp_path / WHOLE).stat().st_mtime == 1000
        later = lock._seconds() + 3 * BEAT_S
        monkeypatch.setattr(lock, "_seconds", lambda: later)
        writer.check()
        assert (tmp_path / WHOLE).stat().st_mtime > 1000
        (tmp_path / WHOLE).unlink()  # by hand
        writer.beat()
        assert json.loads((tmp_path / WHOLE).read_text())["token"] == writer.me.token


def test_a_thread_gives_them_and_tells_of_a_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.001)
    touched, lost = threading.Event(), threading.Event()
    original = os.utime

    def utime(path, *times, **options):
        original(path, *times, **options)
        touched.set()

    monkeypatch.setattr(os, "utime", utime)
    with sole_writer(str(tmp_path), on_loss=lost.set) as writer:
        assert touched.wait(60)
        assert not lost.is_set()
        os.replace(leave_note(tmp_path, "theirs.json", **ELSEWHERE), tmp_path / WHOLE)
        assert lost.wait(60)
        with pytest.raises(SavimaeError, match=r"process 4321 on node7, started .* for dead"):
            writer.check()
    assert json.loads((tmp_path / WHOLE).read_text())["host"] == "node7"  # is left alone


def test_a_file_server_that_does_not_answer_is_asked_again(tmp_path, monkeypatch):
    def silent(*_):
        raise OSError(5, "Input/output error")

    with sole_writer(str(tmp_path)) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "utime", silent)
            writer.beat()
        writer.beat()
        writer.check()


# ------------------------------------------------------------------------------------ commands


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_videos(tmp_path_factory.mktemp("data"))


# One that has begun, has saved after step 2, and waits.
WAITS = """
def at_call(n):
    if n == 4:
        print("ready", flush=True)
        signal.pause()
"""


def test_two_trainings_and_what_only_reads(data, tmp_path):
    run, expected = tmp_path / "run", tmp_path / "expected"
    first = hooked(WAITS, command(data, run))
    try:
        assert any(line == "ready\n" for line in iter(first.stdout.readline, ""))
        files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        done = savimae(*command(data, run))
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert f"savimae: {run}: process {first.pid} on {os.uname().nodename}, st" in done.stderr
        assert done.stdout == ""
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
        for words in (
            ("slurm", "status", run), ("compare", run), ("plot", run, "--out", tmp_path / "x.png"),
        ):  # fmt: skip
            done = savimae(*words)
            assert done.returncode == 0, done.stderr
    finally:
        first.kill()
        first.communicate()
    assert (run / WHOLE).exists()
    assert savimae(*command(data, run)).returncode == 0
    assert not (run / ".running").exists()
    assert train(config(data, expected)) == 0
    assert same_weights(run, expected)


def test_a_signal_and_an_error_leave_no_note(data, tmp_path):
    run = tmp_path / "run"
    hook = "at_call = lambda n: n == 3 and os.kill(os.getpid(), signal.SIGUSR1)"
    assert finish(hooked(hook, command(data, run)))[0] == EXIT_STOPPED
    assert not (run / ".running").exists()
    with pytest.raises(UsageError, match="seed is 0 there and 5 here"):
        train(config(data, run, seed=5))
    assert not (run / ".running").exists()


# The third step comes after so long that another process has taken over.
SUSPENDED = """
import json
from savimae.system import lock
def at_call(n):
    if n == 3:
        path = os.environ["NOTE"]
        note = {**json.load(open(path)), "token": "0" * 32, "host": "node7"}
        json.dump(note, open(path + ".new", "w"))
        os.replace(path + ".new", path)
        now = lock._seconds()
        lock._seconds = lambda: now + 1000
"""


@pytest.mark.parametrize("sent", ["", "\n        os.kill(os.getpid(), signal.SIGTERM)"])
def test_a_training_that_was_taken_over_writes_nothing_more(data, tmp_path, sent):
    run = tmp_path / "run"
    arguments = command(data, run, save_every="1steps")
    code, printed = finish(hooked(SUSPENDED + sent, arguments, NOTE=str(run / WHOLE)))
    assert code == 1
    assert re.search(
        rf"^savimae: {run}: process \d+ on node7, started .*, took this process for dead and "
        "writes into it now; this one stops and writes nothing more$",
        printed,
        re.MULTILINE,
    )
    assert "saved" not in printed
    assert [line["step"] for line in log_of(run)] == [1, 2]
    assert sorted(os.listdir(run / "checkpoints")) == [
        "last.pt", "step-00000001.pt", "step-00000002.pt",
    ]  # fmt: skip
    assert json.loads((run / WHOLE).read_text())["host"] == "node7"


def test_shards(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for index in range(3):
        encode(source / f"c/{index}.avi", moving_frames(3 + index))
    words = ("preprocess", source, out, "--input-size", "32", "--workers", "1")
    with sole_writer(str(out), 0, 2):
        for shard in ("0/2", "0/1", "1/3"):
            done = savimae(*words, "--shard", shard)
            assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
            assert f"{out}: process {os.getpid()} on " in done.stderr
            assert "is writing part 0/2 of it" in done.stderr
        assert os.listdir(out) == [".running"]
        assert savimae(*words, "--shard", "1/2").returncode == 0
        assert savimae(*words[:-2], "--check", "--shard", "1/2").returncode == 0
        assert savimae("saliency", source, out, "--input-size", "32").returncode == 1
    assert savimae(*words).returncode == 0
    assert sorted(os.listdir(out)) == ["c", "config.json"]
