"""How many cores there are, by every limit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from savimae.system import cores


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


def test_threads_wait_briefly_unless_the_user_says_how(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    cores.wait_briefly()
    assert os.environ.pop("GOMP_SPINCOUNT") == "2000"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    cores.wait_briefly()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_the_command_line_says_how_before_torch_is_there():
    script = (
        "import os, sys, savimae.cli as c\n"
        "assert 'torch' not in sys.modules\n"
        "sys.argv = ['savimae', '--version']\n"
        "try:\n    c.main()\nfinally:\n    print(os.environ['GOMP_SPINCOUNT'])"
    )
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=clean)
    assert done.stdout.splitlines()[-1] == "2000", done.stderr
