"""The C library's allocator, told to keep what it has.

glibc gives large blocks back to the kernel at every free, and each training step faults them in
again, page by page: that took 0.4 of the time of a step on the machine it was measured on.
"""

from __future__ import annotations

import ctypes
import sys

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_memory() -> bool:
    """Make malloc keep freed blocks for reuse; to be called before the first large allocation.

    Does what preloading tcmalloc or jemalloc does, for Linux with glibc; elsewhere nothing.

    Returns:
        Whether the settings were taken.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl
        return False
    # No block of its own mapping, and (-1) never a trim of the heap at its top.
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
