"""The array of a video on disk: `.npy`, `[T, H_p, W_p]`, values 0 and 1, written as it grows."""

from __future__ import annotations

import errno
import functools
import io
import math
import os
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np

from savimae.system.errors import SavimaeError, shown
from savimae.system.files import atomic_file
from savimae.system.sizes import Sides

HEADER_BYTES = 128  # of arrays of up to three axes, whatever their lengths (NumPy pads to 64)


def array_path(root: str, name: str) -> str:
    """The file below `root` that holds the array of this name."""
    return os.path.join(root, name + ".npy")


def write_array(
    path: str, chunks: Iterable[np.ndarray], grid: Sides, dtype: str
) -> tuple[int, int]:
    """Stream chunks uint8 `[n, H_p, W_p]` into `path`, atomically; memory stays that of one chunk.

    Returns:
        Frames written, and how many of their patches are salient.
    """
    n_frames = n_salient = 0
    with atomic_file(path) as file:
        # NumPy pads headers so that the first axis can grow; the final one is written over this.
        _write_header(file, 0, grid, dtype)
        start = file.tell()
        for chunk in chunks:
            n_frames += len(chunk)
            n_salient += int(np.count_nonzero(chunk))
            file.write(chunk.astype(dtype, copy=False).tobytes())
        file.seek(0)
        _write_header(file, n_frames, grid, dtype)
        if file.tell() != start:
            raise AssertionError("the header of a .npy file grew with its first axis")
    return n_frames, n_salient


def _write_header(file, n_frames: int, grid: Sides, dtype: str) -> None:  # type: ignore[no-untyped-def]
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": (n_frames, *grid),
    }
    np.lib.format.write_array_header_1_0(file, header)


def array_frames(path: str, grid: Sides, dtype: str) -> int | None:
    """T of a whole array with this grid and dtype; None if it is missing, truncated or another.

    Only the header and the size of the file are looked at.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            shape, size, found, fortran_order = _parse_header(file.read(HEADER_BYTES))
            whole = os.fstat(file.fileno()).st_size == size
    except (OSError, ValueError, EOFError):
        return None
    fits = len(shape) == 3 and shape[1:] == grid and shape[0] > 0
    return shape[0] if whole and fits and found == dtype and not fortran_order else None


@functools.lru_cache(4096)  # parsing takes longer than reading, and videos of a length share theirs
def _parse_header(content: bytes) -> tuple[tuple[int, ...], int, np.dtype, bool]:
    """Shape, bytes of the file, dtype and order. Raises ValueError or EOFError for other bytes."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("a version that we do not write")
    return _parse_rest(file, np.lib.format.read_array_header_1_0)


def _parse_rest(
    file: BinaryIO, read: Callable[[BinaryIO], Any]
) -> tuple[tuple[int, ...], int, np.dtype, bool]:
    """As `_parse_header`, of a file that is behind its version; `read` is NumPy's for that one."""
    try:
        shape, fortran_order, dtype = read(file)
    except Exception as error:  # NumPy evaluates the header as Python, which raises many types
        raise ValueError("not a header of an array") from error
    if dtype.hasobject or dtype.itemsize == 0 or any(length < 0 for length in shape):
        raise ValueError("not an array of plain numbers")
    return shape, file.tell() + math.prod(shape) * dtype.itemsize, dtype, fortran_order


def parse_array(content: bytes) -> np.ndarray:
    """The array in the bytes of a `.npy` file, of any format version; read-only.

    What the header claims is compared with the bytes that are there before anything is allocated.

    Raises:
        ValueError: not a whole array, or one of Python objects.
    """
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0
    }.get(version)  # fmt: skip
    if read is None:
        raise ValueError(f"format version {version}")
    shape, n_bytes, dtype, fortran_order = _parse_rest(file, read)
    if n_bytes != len(content):
        raise ValueError(f"{len(content)} bytes, its header claims {n_bytes}")
    flat = np.frombuffer(content, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C")


def read_archive(path: str | BinaryIO, *names: str) -> list[np.ndarray]:
    """Arrays of these names in a `.npz` file, as `np.savez` writes it: not compressed.

    Raises:
        ValueError: not such a file, or an array that is missing or not whole.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [archive.getinfo(name + ".npy") for name in names]
            # An entry that is stored is no larger than the file, whatever it claims.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("compressed")
            return [parse_array(archive.read(entry)) for entry in entries]
    except Exception as error:  # bad bytes raise many types, EINVAL for a place before the file
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(f"not a whole archive of {', '.join(names)}") from error


def load_array(path: str) -> np.ndarray:
    """The array at `path`.

    Raises:
        SavimaeError: no such file, not a whole array, or not one of numbers.
    """
    try:
        with open(path, "rb") as file:
            array = parse_array(file.read())
    except FileNotFoundError:
        raise SavimaeError(
            f"{shown(path)}: no such array; make it with `savimae preprocess`"
        ) from None
    except (ValueError, EOFError) as error:
        raise SavimaeError(
            f"{shown(path)}: not a whole array; delete it and run `savimae preprocess` again"
        ) from error
    return check_numbers(array, shown(path))


def check_numbers(array: np.ndarray, where: str) -> np.ndarray:
    """The array itself. Raises SavimaeError, which says where it is, if it holds no numbers."""
    if array.dtype.kind not in "buif":
        raise SavimaeError(
            f"{where}: holds {array.dtype}, not numbers; delete it and run `savimae preprocess` "
            "again"
        )
    return array
