"""How many cores there are, by every limit."""

from __future__ import annotations

import os

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
