"""The array of a video on disk: `.npy`, `[T, H_p, W_p]`, values 0 and 1, written as it grows."""

from __future__ import annotations

import functools
import io
import math
import os
from collections.abc import Iterable

import numpy as np

from savimae.errors import SavimaeError, shown
from savimae.files import atomic_file

DTYPES = ("uint8", "float32")
HEADER_BYTES = 128  # of arrays of up to three axes, whatever their lengths (NumPy pads to 64)


def array_path(root: str, name: str) -> str:
    """Where the array of the video called `name` lies below `root`."""
    return os.path.join(root, name + ".npy")


def write_array(
    path: str, chunks: Iterable[np.ndarray], grid_size: int, dtype: str
) -> tuple[int, int]:
    """Stream chunks uint8 `[n, H_p, W_p]` into `path`, atomically; memory stays that of one chunk.

    Returns:
        Frames written, and how many of their patches are salient.
    """
    n_frames = n_salient = 0
    with atomic_file(path) as file:
        # NumPy pads headers so that the first axis can grow; the final one is written over this.
        _write_header(file, 0, grid_size, dtype)
        start = file.tell()
        for chunk in chunks:
            n_frames += len(chunk)
            n_salient += int(np.count_nonzero(chunk))
            file.write(chunk.astype(dtype, copy=False).tobytes())
        file.seek(0)
        _write_header(file, n_frames, grid_size, dtype)
        if file.tell() != start:
            raise AssertionError("the header of a .npy file grew with its first axis")
    return n_frames, n_salient


def _write_header(file, n_frames: int, grid_size: int, dtype: str) -> None:  # type: ignore[no-untyped-def]
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": (n_frames, grid_size, grid_size),
    }
    np.lib.format.write_array_header_1_0(file, header)


def array_frames(path: str, grid_size: int, dtype: str) -> int | None:
    """T of a whole array with this grid and dtype; None if it is missing, truncated or another.

    Only the header and the size of the file are looked at.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            shape, size, found, fortran_order = _parse_header(file.read(HEADER_BYTES))
            whole = os.fstat(file.fileno()).st_size == size
    except (OSError, ValueError, EOFError):
        return None
    fits = len(shape) == 3 and shape[1:] == (grid_size, grid_size) and shape[0] > 0
    return shape[0] if whole and fits and found == dtype and not fortran_order else None


@functools.lru_cache(4096)  # parsing takes longer than reading, and videos of a length share theirs
def _parse_header(content: bytes) -> tuple[tuple[int, ...], int, np.dtype, bool]:
    """Shape, bytes of the file, dtype and order. Raises ValueError or EOFError for other bytes."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("a version that we do not write")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, file.tell() + math.prod(shape) * dtype.itemsize, dtype, fortran_order


def load_array(path: str) -> np.ndarray:
    """The array at `path`.

    Raises:
        SavimaeError: no such file, or not a whole array.
    """
    try:
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise SavimaeError(
            f"{shown(path)}: no such array; make it with `savimae preprocess`"
        ) from None
    except (ValueError, EOFError) as error:
        raise SavimaeError(
            f"{shown(path)}: not a whole array; delete it and run `savimae preprocess` again"
        ) from error
