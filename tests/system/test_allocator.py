"""The allocator setting, seen by the page faults it saves."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from savimae.system.allocator import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    a = torch.ones(16 * 2**20)  # 64 MiB: 16384 pages
    b = a + 1
    return (b * 2).sum()
for _ in range(20):  # until the heap has found its shape
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_kept():
    def faults(mode: str) -> int:
        command = [sys.executable, "-c", FAULTS, mode]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    default = faults("default")
    assert default > 9 * 3 * 16384 / 512  # three tensors a step; 512 small pages to a huge one
    assert faults("keep") < default / 10
