"""Several processes that train one model: which ones, and the sums over all of them.

Started by torchrun, by Slurm's srun, or by whatever else sets RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT. Gradients go over gloo on CPUs and over NCCL on GPUs, counts over gloo always.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from savimae.system.errors import SavimaeError, one_line

# How long to wait for a process that is alive; one that has died is noticed at once. A checkpoint
# is written by one process while the others wait.
TIMEOUT = datetime.timedelta(minutes=10)
BUCKET_VALUES = 25 * 2**18  # 25 MiB of float32: large enough to be fast, small enough to overlap


@dataclasses.dataclass(frozen=True)
class World:
    """The processes of a run, and which of them this one is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this node
    sharing: int = 1  # processes that share the cores this one sees

    @property
    def is_main(self) -> bool:
        """The one that prints and writes."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> np.ndarray:
        """Sums over all processes, float64 `[n]`; every process must call it."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            with peer_errors():
                dist.all_reduce(total)
        return total.numpy()

    def barrier(self) -> None:
        """Wait until every process has come here; every process must call it."""
        self.sum([0])

    def gather(self, value: Any) -> list[Any]:
        """`value` of every process, in the order of ranks; every process must call it."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        with peer_errors():
            dist.all_gather_object(gathered, value)
        return gathered

    def share_state(self, model: nn.Module) -> None:
        """Give every process the parameters of the first."""
        if self.size > 1:
            with peer_errors():
                for value in model.state_dict().values():
                    dist.broadcast(value, 0)


@contextlib.contextmanager
def peer_errors() -> Iterator[None]:
    """If a collective operation fails, another process is gone. That one's own message says why."""
    try:
        yield
    except RuntimeError as error:
        raise SavimaeError(
            "another process of this run stopped or cannot be reached; its own message says why "
            f"({one_line(error)})"
        ) from error


def find_world() -> World:
    """This process's place, from the environment that torchrun or srun set; else it is alone.

    Raises:
        SavimaeError: one of torchrun's variables is not a number, or a rank beyond the last.
    """
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ:
        rank, size = _number("RANK"), _number("WORLD_SIZE")
        if rank >= size:
            raise SavimaeError(f"RANK is {rank} in the environment, and WORLD_SIZE {size}")
        return World(rank, size, _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1))
    # Only srun sets the number of tasks of a step: a batch script or an interactive shell is not
    # one of several processes, whatever its job asked for.
    if "SLURM_STEP_NUM_TASKS" in os.environ and "SLURM_PROCID" in os.environ:
        tasks, nodes = _number("SLURM_STEP_NUM_TASKS"), _number("SLURM_STEP_NUM_NODES", 1)
        # With CPUs per task Slurm says what one process may use, else what a node's share.
        sharing = 1 if "SLURM_CPUS_PER_TASK" in os.environ else max(1, tasks // max(nodes, 1))
        return World(_number("SLURM_PROCID"), tasks, _number("SLURM_LOCALID", 0), sharing)
    return World()


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise SavimaeError(f"{name} is {text!r} in the environment, not a number")
    return int(text)


@contextlib.contextmanager
def joined(world: World, device: torch.device) -> Iterator[None]:
    """Meet the other processes of the run, and leave them at the end.

    Raises:
        SavimaeError: they cannot be met.
    """
    if world.size == 1:
        yield
        return
    address, port = _rendezvous()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend, init_method=f"tcp://{address}:{port}", rank=world.rank,
            world_size=world.size, timeout=TIMEOUT,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise SavimaeError(
            f"process {world.rank} of {world.size} cannot meet the others at {address}:{port} "
            f"({one_line(error)})"
        ) from error
    yield
    # Not after an error: the others may be waiting for what this process will not do any more.
    dist.destroy_process_group()


def _rendezvous() -> tuple[str, int]:
    """Where the first process listens: MASTER_ADDR and MASTER_PORT, else from Slurm's job."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    if address is None and nodes:
        try:
            listed = subprocess.run(
                ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise SavimaeError(
                f"`scontrol show hostnames {nodes}` fails ({one_line(error)}); set MASTER_ADDR to "
                "the first node"
            ) from error
        address = listed.stdout.split()[0]
    if port is None and "SLURM_JOB_ID" in os.environ:
        # Above the ports that systems give away (ephemeral ones begin at 32768 on Linux).
        port = str(20000 + (_number("SLURM_JOB_ID") + _number("SLURM_STEP_ID", 0)) % 10000)
    if address is None or port is None:
        raise SavimaeError(
            "several processes, but MASTER_ADDR and MASTER_PORT do not say where they meet; start "
            "them with torchrun or srun"
        )
    return address, int(port)


class GradientSum:
    """Adds up the gradients of all processes while the backward pass still runs.

    Gradients are sent in fixed buckets, the last parameters first, since theirs come first. What is
    added to what never changes, so a resumed run gets the same sums bit for bit.
    """

    def __init__(self, world: World, parameters: Sequence[nn.Parameter]):
        self.is_distributed = world.size > 1
        self.buckets: list[list[nn.Parameter]] = [[]]
        self._bucket_of: dict[nn.Parameter, int] = {}
        self._armed = False
        self._missing: list[int] = []  # gradients of each bucket that are not whole yet
        self._sent: list[tuple[Tensor, Any]] = []
        if not self.is_distributed:
            return
        filled = 0
        for parameter in reversed(parameters):
            if filled >= BUCKET_VALUES:
                self.buckets.append([])
                filled = 0
            self.buckets[-1].append(parameter)
            filled += parameter.numel()
        self._bucket_of = {
            parameter: index for index, bucket in enumerate(self.buckets) for parameter in bucket
        }
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._ready)

    def arm(self) -> None:
        """The next backward pass is the last of its step: send its gradients to the others."""
        if not self.is_distributed:
            return
        self._armed = True
        self._missing = [len(bucket) for bucket in self.buckets]
        self._sent = []

    def _ready(self, parameter: nn.Parameter) -> None:
        if not self._armed:
            return
        self._missing[self._bucket_of[parameter]] -= 1
        # In order, whatever the order in which they become whole: all processes must agree.
        while len(self._sent) < len(self.buckets) and self._missing[len(self._sent)] == 0:
            bucket = self.buckets[len(self._sent)]
            flat = torch.cat([_gradient(each).flatten() for each in bucket])
            with peer_errors():
                self._sent.append((flat, dist.all_reduce(flat, async_op=True)))

    def wait(self) -> None:
        """Put the sums where the gradients were."""
        if not self._armed:
            return
        self._armed = False
        if len(self._sent) < len(self.buckets):
            raise AssertionError("a parameter got no gradient")
        for (flat, work), bucket in zip(self._sent, self.buckets, strict=True):
            with peer_errors():
                work.wait()
            parts = flat.split([parameter.numel() for parameter in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                _gradient(parameter).copy_(part.view_as(parameter))
        self._sent = []


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise AssertionError("a parameter without a gradient")
    return parameter.grad
