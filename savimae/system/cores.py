"""How many cores this process may use, and how its threads wait for each other."""

from __future__ import annotations

import contextlib
import math
import os

# Turns of GNU OpenMP's waiting loop, some 30 to 90 microseconds: longer than from one product of a
# step to the next, shorter than what another program would miss. By itself it waits 300,000.
SPIN_COUNT = 2000
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def available_cores() -> int:
    """The smallest of: this process's CPU affinity, Slurm's share of a task, the cgroup's quota."""
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()]
    limits += [_slurm_cores(), _cgroup_cores()]
    return max(1, min(limit for limit in limits if limit))


def wait_briefly() -> None:
    """Let threads that wait for others sleep after a moment, to be called before torch is imported.

    A thread that keeps a core busy with waiting takes it from a neighbour, or from the very thread
    that it waits for. What the user set in the environment stays.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def _slurm_cores() -> int | None:
    """Cores per task, else of the job on this node; not every cluster confines jobs to them."""
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        with contextlib.suppress(ValueError):
            return int(os.environ.get(name, ""))
    return None


def _cgroup_cores(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> int | None:
    """The tightest CPU quota of this process's cgroup and its parents, rounded up; v2 and v1."""
    quotas = []
    try:
        with open(own) as file:
            memberships = [line.strip().split(":", 2) for line in file]
    except OSError:
        return None
    for _, controllers, path in memberships:
        if controllers and "cpu" not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts), -1, -1):
            folder = os.path.join(root, *(["cpu"] if controllers else []), *parts[:depth])
            quotas.append(_quota(folder, bool(controllers)))
    found = [quota for quota in quotas if quota]
    return min(found) if found else None


def _quota(folder: str, version_1: bool) -> int | None:
    """CPU quota of one cgroup folder in cores, rounded up; None where there is none."""
    try:
        if version_1:
            with open(os.path.join(folder, "cpu.cfs_quota_us")) as file:
                quota = file.read()
            with open(os.path.join(folder, "cpu.cfs_period_us")) as file:
                period = file.read()
        else:
            with open(os.path.join(folder, "cpu.max")) as file:
                quota, period = file.read().split()
        return max(1, math.ceil(int(quota) / int(period))) if int(quota) > 0 else None
    except (OSError, ValueError):  # no such controller, or "max"
        return None
