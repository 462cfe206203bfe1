"""Stacks: files that hold the frames of a video as pixels, TIFF with several pages and NumPy's.

| file           | frames                                                                        |
|----------------|-------------------------------------------------------------------------------|
| `.tif`, `.tiff`| one series of pages, as microscopes, ImageJ and OME write them                |
| `.npy`         | an array `[T, H, W]` or `[T, H, W, C]`, C 1 or 3                              |
| `.npz`         | such an array, alone in the file or called `frames`                           |

Arrays that are stored as they are, and TIFF whose pages lie one after the other, are read by memory
map: only the frames that are asked for are touched. Compressed pages are read one by one; a
compressed `.npz` is read from its start. How deeper pixels become 8 bits is in `depth`.

A stack says nothing of time: its frames are counted.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import tifffile

from savimae.data.decoded import GRAY, RGB, ChooseFrames, DecodedFrames, GrayPlane, VideoError
from savimae.data.depth import (
    check_dtype,
    is_scaled,
    pixel_range,
    sampled_frames,
    scaling_table,
    to_8_bits,
)
from savimae.kernels.luma import luma
from savimae.system.errors import SavimaeError, one_line, shown

TIFF_EXTENSIONS = frozenset({".tif", ".tiff"})
STACK_EXTENSIONS = TIFF_EXTENSIONS | {".npy", ".npz"}
IN_NPZ = "frames"  # the array of a .npz file that holds others as well
MAX_PIXELS = 2**27  # of a frame, as of other videos
MOST_PATCHES = 32  # a side: what saliency arrays have, and hardly a video
AXES = "as [T, H, W], or [T, H, W, C] with 1 or 3 channels"
# What tifffile says of a damaged file comes without its name; what matters raises here.
logging.getLogger("tifffile").addHandler(logging.NullHandler())
logging.getLogger("tifffile").propagate = False


class Pixels(Protocol):
    """An open stack. Frames are `[H, W]` or `[H, W, C]` as they are stored."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`[T, H, W]` or `[T, H, W, C]`."""

    @property
    def dtype(self) -> np.dtype: ...

    def frames(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """The frames at these ascending indices. Raises what the file's library raises."""


class _Mapped(NamedTuple):
    """Pixels that lie in the file as they are in memory."""

    array: np.ndarray  # a memory map

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def frames(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        for index in indices:
            yield np.array(self.array[index])


class _Pages(NamedTuple):
    """Pages of a TIFF file that are decoded one by one."""

    pages: Any
    shape: tuple[int, ...]
    dtype: np.dtype

    def frames(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        for index in indices:
            frame = self.pages[index].asarray()
            yield np.ascontiguousarray(frame.reshape(self.shape[1:]))


class _Streamed(NamedTuple):
    """Compressed pixels, which come one frame after the other."""

    file: Any
    shape: tuple[int, ...]
    dtype: np.dtype

    def frames(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        n_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        place = 0
        for index in indices:
            while place <= index:
                content = self.file.read(n_bytes)
                if len(content) < n_bytes:
                    raise VideoError(f"truncated: frame {place} is not whole")
                place += 1
            yield np.frombuffer(content, self.dtype).reshape(self.shape[1:])


class Stack:
    """A file of frames, whose name ends in one of STACK_EXTENSIONS."""

    frames_per_s: float | None = None  # a stack does not say

    def __init__(self, path: str):
        self.path = path
        self.expected_frames = 0  # T, once it is open

    def frame_name(self, index: int) -> str:
        """A name for frame `index`, as frame folders number theirs: from 1."""
        return f"img_{index + 1:05}"

    def gray_planes(self) -> Iterator[GrayPlane]:
        """Every frame's gray in order: itself, or RGB -> L by ITU-R 601."""
        with self._opened() as pixels:
            for frame in self._decoded(pixels, range(pixels.shape[0]), GRAY):
                plane = frame[..., 0]
                plane.flags.writeable = False
                yield GrayPlane(plane, *plane.shape)

    def rgb_frames(self) -> Iterator[np.ndarray]:
        """Every frame in order, uint8 `[height, width, 3]`."""
        with self._opened() as pixels:
            yield from self._decoded(pixels, range(pixels.shape[0]), RGB)

    def frames_at(self, indices: np.ndarray, channels: int = RGB) -> Iterator[np.ndarray]:
        """The frames at these ascending indices, uint8 `[height, width, channels]`.

        Raises:
            VideoError: a frame cannot be read.
        """
        with self._opened() as pixels:
            yield from self._decoded(pixels, indices.tolist(), channels)

    def count_frames(self) -> int:
        """T."""
        with self._opened() as pixels:
            return pixels.shape[0]

    def read_clip(
        self, choose: ChooseFrames, n_frames: int | None = None, channels: int = RGB
    ) -> DecodedFrames:
        """The frames that `choose` wants; see `VideoFile.read_clip`. `n_frames` is not needed."""
        del n_frames
        with self._opened() as pixels:
            indices = choose(pixels.shape[0])
            wanted = np.unique(indices).tolist()
            frames = self._decoded(pixels, wanted, channels)
            distinct = dict(zip(wanted, frames, strict=True))
        return DecodedFrames([distinct[index] for index in indices.tolist()], indices)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Pixels]:
        with _opened_stack(self.path) as pixels:
            self.expected_frames = pixels.shape[0]
            yield pixels

    def _decoded(
        self, pixels: Pixels, indices: Iterable[int], channels: int
    ) -> Iterator[np.ndarray]:
        """Frames uint8 `[height, width, channels]` at these ascending indices."""
        table = _table_of(self.path) if is_scaled(pixels.dtype) else None
        wanted = list(indices)
        for index, frame in zip(wanted, pixels.frames(wanted), strict=True):
            try:
                yield with_channels(to_8_bits(frame, table), channels)
            except VideoError as error:
                raise VideoError(f"frame {index} {error}") from None


def with_channels(frame: np.ndarray, channels: int) -> np.ndarray:
    """uint8 `[H, W]` or `[H, W, 1 or 3]` -> uint8 `[H, W, channels]`, which may share memory."""
    frame = frame if frame.ndim == 3 else frame[..., None]
    if frame.shape[2] == channels:
        return frame
    if channels == RGB:
        return np.repeat(frame, RGB, axis=2)
    height, width, _ = frame.shape
    pixels = np.empty((height, width, 4), np.uint8)
    pixels[..., :RGB] = frame
    gray = luma(pixels)
    gray.flags.writeable = True
    return gray[..., None]


def is_stack(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in STACK_EXTENSIONS and not name.startswith(".")


def is_tiff(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in TIFF_EXTENSIONS and not name.startswith(".")


def holds_one_image(path: str) -> bool:
    """Whether a TIFF file is a single image: a frame of a folder, and no video of its own."""
    try:
        with _opened_tiff(path) as tiff:
            series = tiff.series[0]
            return bool(math.prod(series.shape) == math.prod(tiff.pages[0].shape))
    except VideoError:
        return False


# ---------------------------------------------------------------------------------- opening


@contextlib.contextmanager
def _opened_stack(path: str) -> Iterator[Pixels]:
    """The pixels of a stack, of which shape and dtype are known to be those of a video."""
    extension = os.path.splitext(path)[1].lower()
    opened: Callable[[str], contextlib.AbstractContextManager[Pixels]] = _opened_npy
    if extension == ".npz":
        opened = _opened_npz
    elif extension in TIFF_EXTENSIONS:
        opened = _opened_pages
    with _reading_errors(path), opened(path) as pixels:
        _check(pixels, extension)
        yield pixels


@contextlib.contextmanager
def _reading_errors(path: str) -> Iterator[None]:
    """What NumPy, zipfile and tifffile raise of a damaged file becomes a VideoError."""
    try:
        yield
    except (PermissionError, FileNotFoundError, MemoryError, SavimaeError):
        raise
    except Exception as error:  # bad bytes raise many types
        kind = os.path.splitext(path)[1].lower()
        raise VideoError(f"not a whole {kind} file ({one_line(error)})") from error


def _check(pixels: Pixels, extension: str) -> None:
    """Raises VideoError unless these can be the frames of a video."""
    shape, what = pixels.shape, f"holds {pixels.dtype} {list(pixels.shape)}"
    if pixels.dtype.hasobject:
        raise VideoError(f"{what}: Python objects, which are never read; save plain numbers")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (GRAY, RGB)):
        raise VideoError(f"{what}, not the frames of a video; save them {AXES}")
    if len(shape) == 3 and shape[2] in (1, RGB, 4):
        raise VideoError(f"{what}: a single image? a video is saved {AXES}")
    if min(shape) < 1:
        raise VideoError(f"{what}: there are no pixels in it")
    if shape[1] * shape[2] > MAX_PIXELS:
        raise VideoError(f"{what}: a frame has at most {MAX_PIXELS} pixels")
    check_dtype(pixels.dtype)
    if extension == ".npy" and shape[1] == shape[2] <= MOST_PATCHES and not is_scaled(pixels.dtype):
        few = pixels.frames(sampled_frames(shape[0]).tolist())
        if all(((frame == 0) | (frame == 1)).all() for frame in few):
            raise VideoError(f"{what} of 0 and 1: an array of salient patches, and not a video")


@functools.lru_cache(1024)
def _range_of(path: str, size: int, changed_ns: int) -> tuple[int, int]:
    """The range of a stack of 16 bits; size and time of change tell the file from a later one."""
    del size, changed_ns
    with _opened_stack(path) as pixels:
        return pixel_range(pixels.frames(sampled_frames(pixels.shape[0]).tolist()))


def _table_of(path: str) -> np.ndarray:
    status = os.stat(path)
    return scaling_table(*_range_of(path, status.st_size, status.st_mtime_ns))


# ----------------------------------------------------------------------------------- NumPy's


class _Header(NamedTuple):
    """What the head of a `.npy` file says."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _read_header(file: BinaryIO | Any) -> _Header:
    """Reads the head and leaves the file behind it."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0
    }.get(version)  # fmt: skip
    if read is None:
        raise VideoError(f"a .npy file of version {version}; save it with numpy.save")
    return _Header(*read(file))


def _mapped(path: str, header: _Header, offset: int) -> _Mapped:
    order = "F" if header.is_fortran else "C"
    if min(header.shape, default=0) < 1 or header.dtype.hasobject:  # nothing to map: refused later
        return _Mapped(np.broadcast_to(np.zeros((), header.dtype), header.shape))
    mapped = np.memmap(path, header.dtype, "r", offset, header.shape, order)  # type: ignore[call-overload]
    return _Mapped(mapped)


@contextlib.contextmanager
def _opened_npy(path: str) -> Iterator[Pixels]:
    with open(path, "rb") as file:
        header = _read_header(file)
        start, size = file.tell(), os.path.getsize(path)
    if size != start + header.n_bytes and not header.dtype.hasobject:
        raise VideoError(
            f"truncated or damaged: {size} bytes, its header claims {start + header.n_bytes}"
        )
    yield _mapped(path, header, start)


@contextlib.contextmanager
def _opened_npz(path: str) -> Iterator[Pixels]:
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if len(names) != 1 and IN_NPZ not in names:
            found = ", ".join(map(shown, names[:4])) + (", …" if len(names) > 4 else "")
            raise VideoError(
                f"holds {len(names)} arrays ({found}); which are the frames? save them alone, or "
                f"under the name {IN_NPZ}"
            )
        entry = archive.getinfo((IN_NPZ if IN_NPZ in names else names[0]) + ".npy")
        with archive.open(entry) as file:
            header = _read_header(file)
            start = file.tell()
            if entry.file_size != start + header.n_bytes and not header.dtype.hasobject:
                raise VideoError(
                    f"damaged: {entry.file_size} bytes, its header claims {start + header.n_bytes}"
                )
            if entry.compress_type == zipfile.ZIP_STORED:
                yield _mapped(path, header, _start_of(path, entry) + start)
                return
            if header.is_fortran:
                raise VideoError("is compressed and in Fortran's order; save it in C's order")
            yield _Streamed(file, header.shape, header.dtype)


def _start_of(path: str, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored entry begin: behind its own header, which has its own lengths."""
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        head = file.read(30)
    n_name, n_extra = struct.unpack_from("<2H", head, 26)
    return int(entry.header_offset + len(head) + n_name + n_extra)


# -------------------------------------------------------------------------------------- TIFF


@contextlib.contextmanager
def _opened_tiff(path: str) -> Iterator[tifffile.TiffFile]:
    with _reading_errors(path), tifffile.TiffFile(path) as tiff:
        yield tiff


@contextlib.contextmanager
def _opened_pages(path: str) -> Iterator[Pixels]:
    with _opened_tiff(path) as tiff:
        if not len(tiff.series) or not len(tiff.pages):
            raise VideoError("damaged: a TIFF file without pages")
        series, page = tiff.series[0], tiff.pages[0]
        shape = _frame_axes(series, len(tiff.series))
        _check_page(page)
        status = os.stat(path)
        n_pages = _count_pages(path, status.st_size, status.st_mtime_ns)
        claimed = (tiff.imagej_metadata or {}).get("images", 0)
        if claimed > shape[0]:  # tifffile goes by the pages where the rest is not there
            raise VideoError(f"truncated: {shape[0]} frames are there, ImageJ wrote {claimed}")
        # A file of ImageJ's beyond 4 GB has one page, which says how many frames lie behind it.
        if n_pages != shape[0] and (n_pages > 1 or series.dataoffset is None):
            raise VideoError(f"damaged: {n_pages} pages, its first one claims {shape[0]}")
        size = status.st_size
        if series.dataoffset is not None:
            end = series.dataoffset + series.nbytes
            if end > size:
                raise VideoError(f"truncated: {size} bytes of {end} are there")
            dtype = series.dtype.newbyteorder(tiff.byteorder)
            yield _mapped(path, _Header(shape, False, dtype), series.dataoffset)
            return
        yield _Pages(series.pages, shape, series.dtype)


def _frame_axes(series: Any, n_series: int) -> tuple[int, ...]:
    """`[T, H, W]` or `[T, H, W, 3]` of a series of pages. Raises VideoError for other axes."""
    what = f"holds {series.axes} {list(series.shape)}"
    if n_series > 1:
        raise VideoError(
            f"holds {n_series} series of pages of different kinds; save each as a file of its own"
        )
    if series.is_multifile:
        raise VideoError("is a part of a set of OME files; save the frames in one file")
    sizes = [
        (axis, n)
        for axis, n in zip(series.axes, series.shape, strict=True)
        if n > 1 or axis in "YX"
    ]
    axes = "".join(axis for axis, _ in sizes)
    time = axes.removesuffix("S").removesuffix("YX")
    if not axes.removesuffix("S").endswith("YX") or len(time) > 1 or time in ("C", "S"):
        raise VideoError(
            f"{what}: frames have one axis of time, before rows (Y), columns (X) and colors (S); "
            "save each channel or plane as a file of its own"
        )
    shape = tuple(n for _, n in sizes)
    return shape if time else (1, *shape)


def _check_page(page: Any) -> None:
    """Raises VideoError for pages whose numbers are no brightness."""
    if page.photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
        raise VideoError(
            f"has pages of kind {page.photometric.name}; save it as grayscale or RGB, 0 for black"
        )
    if page.compression in (1, 8, 32946):  # none, Deflate: what tifffile reads alone
        return
    try:
        import imagecodecs  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        raise VideoError(
            f"is compressed by {page.compression.name}, which needs `pip install imagecodecs`; or "
            "save it uncompressed"
        ) from None


@functools.lru_cache(1024)  # they are found one by one: 20 microseconds each
def _count_pages(path: str, size: int, changed_ns: int) -> int:
    """Pages of a TIFF file; size and time of change tell it from a later one.

    tifffile ends a chain of pages that leads out of the file without an error.

    Raises:
        VideoError: the last page that was found says that another one follows.
    """
    del size, changed_ns
    with _opened_tiff(path) as tiff:
        layout, file, n_pages = tiff.tiff, tiff.filehandle, len(tiff.pages)
        offset = tiff.pages[n_pages - 1].offset
        file.seek(offset)
        n_tags = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))[0]
        file.seek(offset + layout.tagnosize + n_tags * layout.tagsize)
        if struct.unpack(layout.offsetformat, file.read(layout.offsetsize))[0]:
            raise VideoError(f"truncated: {n_pages} pages are there, and more are announced")
        return n_pages
