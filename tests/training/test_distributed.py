"""Who takes part in a run, from the environment of torchrun or srun."""

from __future__ import annotations

import os
import stat

import pytest

from savimae.system.errors import SavimaeError
from savimae.training.distributed import World, _rendezvous, find_world

NAMES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES",
    "SLURM_NTASKS", "SLURM_CPUS_PER_TASK", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NODELIST",
    "SLURM_JOB_NODELIST",
)  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    """Sets exactly these variables of the ones that matter."""

    def give(**variables: str) -> None:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return give


def test_alone(environment):
    environment()
    assert find_world() == World(0, 1, 0, 1)


def test_torchrun(environment):
    environment(
        RANK="5", WORLD_SIZE="8", LOCAL_RANK="1", LOCAL_WORLD_SIZE="4",
        MASTER_ADDR="node7", MASTER_PORT="29500",
    )  # fmt: skip
    assert find_world() == World(5, 8, 1, 4)
    assert _rendezvous() == ("node7", 29500)


def test_srun(environment, tmp_path, monkeypatch):
    environment(
        SLURM_PROCID="3", SLURM_LOCALID="1", SLURM_STEP_NUM_TASKS="4", SLURM_STEP_NUM_NODES="2",
        SLURM_JOB_ID="123457", SLURM_STEP_ID="2", SLURM_STEP_NODELIST="node[03-04]",
    )  # fmt: skip
    assert find_world() == World(3, 4, 1, sharing=2)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")  # srun --cpus-per-task: each has its own
    assert find_world() == World(3, 4, 1, sharing=1)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$3" = "node[03-04]" ] && printf "node03\\nnode04\\n"\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    # 20000 + (123457 + 2) % 10000: the same on all nodes, another one for the next job.
    assert _rendezvous() == ("node03", 23459)


def test_a_batch_script_of_many_tasks_is_one_process(environment):
    """sbatch sets the tasks of the job and a rank; only srun makes them processes."""
    environment(SLURM_PROCID="0", SLURM_NTASKS="4", SLURM_JOB_ID="7")
    assert find_world() == World()


def test_incomplete_environments(environment):
    environment(RANK="x", WORLD_SIZE="2")
    with pytest.raises(SavimaeError, match="RANK is 'x' in the environment, not a number"):
        find_world()
    environment(RANK="2", WORLD_SIZE="2")
    with pytest.raises(SavimaeError, match="RANK is 2 in the environment, and WORLD_SIZE 2"):
        find_world()
    environment(RANK="0", WORLD_SIZE="2")
    with pytest.raises(SavimaeError, match="MASTER_ADDR and MASTER_PORT do not say where"):
        _rendezvous()
    environment(SLURM_JOB_ID="5", SLURM_STEP_NODELIST="a[1-2]", PATH="/nonexistent")
    with pytest.raises(SavimaeError, match="set MASTER_ADDR to the first node"):
        _rendezvous()
