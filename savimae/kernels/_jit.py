"""The one way this package compiles with Numba, and the one place that guards its cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numba

# error_model="numpy": no branch for division by zero, which keeps loops free to vectorise.
# fastmath stays off: float32 results must equal NumPy's to the last bit.
FLAGS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def jit(function: Callable[..., Any]) -> Any:
    """Compile `function` in nopython mode without the GIL and cache the machine code on disk.

    Numba writes the cache beside the package, or under the user's cache folder if the package is
    read-only, or where NUMBA_CACHE_DIR points. Where none of these is writable (a read-only
    container without a home) the function is compiled in memory, anew in each process.
    """
    try:
        return numba.njit(cache=True, **FLAGS)(function)
    except RuntimeError:  # Numba's "cannot cache function: no locator available"
        return numba.njit(**FLAGS)(function)


@contextlib.contextmanager
def compile_lock(dispatcher: Any) -> Iterator[None]:
    """Let one process at a time compile into the cache folder of `dispatcher`.

    Many jobs that start at once with a cold cache would each compile the same code. Under this
    lock the first compiles and saves, the others load what it saved. The kernel drops the lock
    when its holder dies. Where the file system has no locks the jobs compile side by side, which
    is slower and equally safe: Numba replaces its cache files atomically.
    """
    folder = dispatcher.stats.cache_path
    if folder is None:
        yield
        return
    try:
        import fcntl

        os.makedirs(folder, exist_ok=True)
        handle = open(os.path.join(folder, "savimae-compile.lock"), "w")  # noqa: SIM115
    except (ImportError, OSError):
        yield
        return
    with handle:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
