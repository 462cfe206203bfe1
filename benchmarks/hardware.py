"""What a benchmark ran on, for its JSON."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

from savimae.system.cores import available_cores


def hardware() -> dict[str, object]:
    """Processor, cores and memory of this machine."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
        model = names[0] if names else model
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"processor": model, "cores": available_cores(), "memory_gib": round(pages / 2**30)}


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of these installed packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
