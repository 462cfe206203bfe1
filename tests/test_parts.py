"""The small parts: cores, progress, atomic files."""

from __future__ import annotations

import contextlib
import io
import os

import pytest

from savimae import cores, files, progress
from savimae.config import record_config
from savimae.errors import UsageError, one_line, shown


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """A function that writes a cgroup tree and answers with the cores it allows."""
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)

    def limit(membership: str, contents: dict[str, str]) -> int | None:
        for name, text in contents.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        own = tmp_path / "own"
        own.write_text(membership)
        return cores._cgroup_cores(str(tmp_path / "fs"), str(own))

    return limit


def test_cgroup_quotas(cgroup):
    assert cgroup("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000\n"}) == 3
    assert cgroup("0::/c\n", {"c/cpu.max": "max 100000\n"}) is None
    assert cgroup("0::/d\n", {"d/cpu.max": "nonsense"}) is None


def test_cgroup_version_1(cgroup):
    contents = {"cpu/job/cpu.cfs_quota_us": "200000", "cpu/job/cpu.cfs_period_us": "100000"}
    assert cgroup("4:memory:/job\n3:cpu,cpuacct:/job\n", contents) == 2
    assert cgroup("3:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1"}) is None


def test_available_cores_is_the_tightest_limit(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(cores, "_cgroup_cores", lambda: 12)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "8")
    assert cores.available_cores() == 8
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    assert cores.available_cores() == 4
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")
    assert cores.available_cores() == 12


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


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "x.npy"
    target.write_bytes(b"old")
    with (
        contextlib.suppress(RuntimeError),
        files.atomic_file(str(target)) as file,
    ):
        file.write(b"half of the n")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
    assert target.read_bytes() == b"old"


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    target = tmp_path / "maps"
    target.mkdir()
    (target / "1.png").write_bytes(b"old")
    with contextlib.suppress(RuntimeError), files.atomic_folder(str(target)) as folder:
        open(os.path.join(folder, "1.png"), "wb").close()
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["maps"]
    assert (target / "1.png").read_bytes() == b"old"


def test_leftovers_of_others_are_left_alone(tmp_path):
    # Two names that agree in their first 40 characters are two videos, maybe of two shards.
    ours, theirs = (str(tmp_path / ("x" * 60 + end)) for end in ("a.npy", "b.npy"))
    for target in (ours, theirs):
        open(files.temporary_name(target), "wb").close()
    files.remove_leftovers([ours])
    assert os.listdir(tmp_path) == [os.path.basename(files.temporary_name(theirs))]


def test_temporary_names_fit_the_file_system(tmp_path):
    target = str(tmp_path / ("ü" * 120 + ".npy"))
    with files.atomic_file(target) as file:
        file.write(b"x")
    assert os.path.exists(target)


def test_only_one_creates(tmp_path):
    path = str(tmp_path / "config.json")
    assert files.create_json(path, {"a": 1})
    assert not files.create_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1}
    record_config(str(tmp_path), {"a": 1})
    with pytest.raises(UsageError, match="a is 1 there and 2 here"):
        record_config(str(tmp_path), {"a": 2})
    assert os.listdir(tmp_path) == ["config.json"]


def test_paths_are_shown_in_one_line():
    assert shown("a b/ü\n\t\udcff") == "a b/ü\\n\\t\\udcff"
    assert one_line(ValueError("two\nlines")) == "ValueError: two lines"
