"""The array of a video on disk: `.npy`, `[T, H_p, W_p]`, values 0 and 1, written as it grows."""

from __future__ import annotations

import errno
import functools
import io
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO

import numpy as np

from savimae.system.errors import SavimaeError, UsageError, shown
from savimae.system.files import atomic_file

HEADER_BYTES = 128  # of arrays of up to three axes, whatever their lengths (NumPy pads to 64)


def array_path(root: str, name: str, cut: int = 0) -> str:
    """Where the array of the video called `name` lies below `root`.

    Args:
        cut: folders at the start of the name that the array's path lacks; see `find_cut`.
    """
    return os.path.join(root, _end(name, cut) + ".npy")


def _end(name: str, cut: int) -> str:
    return name.split("/", cut)[-1]


def find_cut(root: str, names: Sequence[str]) -> int:
    """How many folders at the start of the videos' names the arrays below `root` lack.

    Arrays are called as the videos of the data set that was preprocessed, while a list may reach
    the same videos from another folder: `datasets/UCF-101/Class/video` for `Class/video.npy`. The
    number is the same for all videos, and the least with which all have arrays of their own. Looks
    at names only, not into files.

    Raises:
        UsageError: no such folder.
        SavimaeError: with no number all have arrays; or two would have the same one.
    """
    if not os.path.isdir(root):
        raise UsageError(
            f"{shown(root)}: no such folder of arrays; make it with `savimae preprocess`"
        )
    listings: dict[str, set[str]] = {}

    def is_there(path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        return name in listings[folder]

    fewest: list[str] | None = None  # the missing arrays with the number that fits best
    shared = ""
    last = 0
    for cut in range(min(name.count("/") for name in names) + 1):
        of_end: dict[str, str] = {}
        for name in names:
            other = of_end.setdefault(_end(name, cut), name)
            if other != name:
                shared = (
                    f"; without {_folders(cut)} {shown(other)} and {shown(name)} would share "
                    f"{shown(array_path(root, name, cut))}"
                )
        if shared:
            break
        paths = (array_path(root, name, cut) for name in names)
        missing = [path for path in paths if not is_there(path)]
        if not missing:
            return cut
        last = cut
        if fewest is None or len(missing) < len(fewest):
            fewest = missing
    if fewest is None:
        raise AssertionError("the names of videos differ")
    tried = f"; tried the list's names, and these without up to {_folders(last)}" if last else ""
    raise SavimaeError(
        f"{shown(fewest[0])}: no such array ({len(fewest)} of {len(names)} are missing){tried}"
        f"{shared}; run `savimae preprocess` on the data again, or use the list that its --list "
        "writes"
    )


def cut_words(root: str, name: str, cut: int) -> str:
    """How the arrays of videos are found with such a cut, by the example of one."""
    return (
        f"arrays are called like the videos without {_folders(cut)}: "
        f"{shown(array_path(root, name, cut))} is that of {shown(name)}"
    )


def _folders(cut: int) -> str:
    return "their first folder" if cut == 1 else f"their first {cut} folders"


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


def read_archive(path: str, *names: str) -> list[np.ndarray]:
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
    if array.dtype.kind not in "buif":
        raise SavimaeError(
            f"{shown(path)}: holds {array.dtype}, not numbers; delete it and run `savimae "
            "preprocess` again"
        )
    return array
