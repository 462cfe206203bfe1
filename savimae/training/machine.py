"""Where and how a model computes: CPU or GPU, bf16 or fp32."""

from __future__ import annotations

import os
import shutil
import sys

import torch

from savimae.system.errors import UsageError
from savimae.training.distributed import World

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
PRECISIONS = tuple(DTYPES)


def choose_device(name: str, world: World) -> torch.device:
    """ "auto", "cpu" or "cuda" -> this process's device; auto takes a GPU where there is one.

    Raises:
        UsageError: CUDA is asked for and not there.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda, but PyTorch finds no GPU here; use --device cpu")
    if name == "cpu" or not available:
        return torch.device("cpu")
    device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """ "auto", "bf16" or "fp32" -> bf16 or fp32; auto is bf16 where it is multiplied natively."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if _cpu_multiplies_bf16() else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which matrix products are computed in this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def default_workers() -> int:
    """Threads that load clips if --workers is not given: a quarter of the threads that compute."""
    return max(1, torch.get_num_threads() // 4)


def check_compiler() -> None:
    """torch.compile needs a C++ compiler on CPUs. Raises UsageError where there is none."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise UsageError(
            f"--compile needs a C++ compiler, and there is no {compiler} here; install one, name "
            "it in CXX, or leave --compile out"
        )


def _cpu_multiplies_bf16() -> bool:
    """Whether the processor has bf16 products of its own (AVX-512 BF16, AMX, Arm's BF16)."""
    try:
        with open("/proc/cpuinfo") as file:
            words = set(file.read().split())
    except OSError:
        return False
    return not words.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})
