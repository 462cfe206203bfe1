"""A pack: the arrays of a data set in few files.

A pack is a folder with the files `00000-of-00064.pack` to `00063-of-00064.pack`. The part of an
array is a hash of its name, so tasks that write the parts need not know of each other, and a reader
knows where to look. A part is

    the arrays' `.npy` files, one after the other, byte by byte as they were
    the index: a `.npz` file with, ordered by (hash, name), for each of n arrays
        hashes uint64 [n], starts int64 [n], sizes int64 [n], sums uint32 [n] (CRC-32),
        and name_ends int64 [n] in names uint8 [all bytes], in UTF-8
    the tail: 8 bytes of magic, where the index starts (uint64), its CRC-32 (uint32), 4 zeros

Numbers are little-endian. Parts are read by memory map: what a reader holds is what it touches.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import mmap
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from savimae.data.shards import Shard
from savimae.saliency.arrays import array_path, check_numbers, parse_array, read_archive
from savimae.system.errors import SavimaeError, UsageError, shown
from savimae.system.files import (
    TEMPORARY_SUFFIX,
    atomic_file,
    read_json,
    refuse_file,
    remove_leftovers,
)
from savimae.system.lock import sole_writer
from savimae.system.progress import Progress
from savimae.system.settings import CONFIG, record_config
from savimae.system.signals import EndedBySignals

PART = re.compile(r"(\d{5,})-of-(\d{5,})\.pack")
MAGIC = b"savipak1"
TAIL = struct.Struct("<8sQII")
INDEX = ("hashes", "starts", "sizes", "sums", "name_ends", "names")
MOST_NAMED = 10  # damaged arrays


def name_hash(name: str) -> int:
    """Of an array's name; decides on its part and its place in the index."""
    digest = hashlib.blake2b(_encoded(name), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def part_name(shard: Shard) -> str:
    """The file of a part, such as `00003-of-00064.pack`."""
    return f"{shard.index:05d}-of-{shard.count:05d}.pack"


def is_pack(root: str) -> bool:
    """Whether the folder `root` holds parts of a pack."""
    return any(map(PART.fullmatch, os.listdir(root)))


# ------------------------------------------------------------------------------------------ reading


class PackPart:
    """One file of a pack, read by memory map. Several threads may use it at once.

    Raises:
        SavimaeError: it cannot be read, or is not a whole part.
    """

    def __init__(self, path: str):
        self.path = path
        try:
            with open(path, "rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            index = self._index()
            self._hashes, self._starts, self._sizes, self._sums, self._ends, self._names = index
        except (OSError, ValueError) as error:
            raise SavimaeError(
                f"{shown(path)}: not a whole part of a pack; delete it and run `savimae pack` again"
            ) from error

    def _index(self) -> list[np.ndarray]:
        """The arrays of INDEX. Raises ValueError if they are not whole."""
        end = len(self._bytes) - TAIL.size
        if end < 0:
            raise ValueError("too short")
        magic, start, crc, _ = TAIL.unpack(self._bytes[end:])
        if magic != MAGIC or start > end or zlib.crc32(memoryview(self._bytes)[start:end]) != crc:
            raise ValueError("no tail, or another index")
        return read_archive(io.BytesIO(self._bytes[start:end]), *INDEX)

    def __len__(self) -> int:
        return len(self._hashes)

    def name(self, place: int) -> str:
        """Of the array at this place of the index."""
        start = int(self._ends[place - 1]) if place else 0
        return self._names[start : self._ends[place]].tobytes().decode("utf-8", "surrogateescape")

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Names and bytes of all arrays, in the order of the index."""
        return ((self.name(place), int(size)) for place, size in enumerate(self._sizes))

    def find(self, name: str, hashed: int) -> int | None:
        """The place of an array, None if it is not here."""
        place = int(np.searchsorted(self._hashes, np.uint64(hashed)))
        while place < len(self) and self._hashes[place] == hashed:
            if self.name(place) == name:
                return place
            place += 1
        return None

    def read(self, place: int) -> np.ndarray:
        """The array at a place, with its sum compared.

        Raises:
            ValueError: it is damaged.
        """
        start = int(self._starts[place])
        content = self._bytes[start : start + int(self._sizes[place])]
        if zlib.crc32(content) != self._sums[place]:
            raise ValueError("another checksum")
        return parse_array(content)


class Pack:
    """The arrays of a pack; see `array_source.ArraySource`.

    Raises:
        SavimaeError: parts are missing, damaged, or of two packs.
    """

    def __init__(self, root: str):
        self.root = root
        found = [match for name in sorted(os.listdir(root)) if (match := PART.fullmatch(name))]
        counts = sorted({int(match[2]) for match in found})
        if len(counts) != 1:
            raise SavimaeError(
                f"{shown(root)}: holds parts of packs of {' and '.join(map(str, counts))} parts; "
                "delete those of one"
            )
        count = counts[0]
        there = {int(match[1]) for match in found}
        missing = [index for index in range(count) if index not in there]
        if missing:
            raise SavimaeError(
                f"{shown(root)}: {len(missing)} of {count} parts of the pack are missing; run "
                f"`savimae pack … --shard {missing[0]}/{count}`"
            )
        self.parts = [
            PackPart(os.path.join(root, part_name(Shard(index, count)))) for index in range(count)
        ]

    def _find(self, name: str) -> tuple[PackPart, int | None]:
        hashed = name_hash(name)
        part = self.parts[hashed % len(self.parts)]
        return part, part.find(name, hashed)

    def __contains__(self, name: str) -> bool:
        return self._find(name)[1] is not None

    def where(self, name: str) -> str:
        return f"{shown(self._find(name)[0].path)}, {shown(name)}"

    def load(self, name: str) -> np.ndarray:
        """The array of this name, as `arrays.load_array`; its checksum is compared.

        Raises:
            SavimaeError: no such array, damaged, or not one of numbers.
        """
        part, place = self._find(name)
        if place is None:
            raise SavimaeError(f"{self.where(name)}: no such array; pack the arrays again")
        try:
            array = part.read(place)
        except (ValueError, EOFError) as error:
            raise SavimaeError(
                f"{self.where(name)}: damaged ({error}); delete this part and run `savimae pack` "
                "again"
            ) from error
        return check_numbers(array, self.where(name))


# ------------------------------------------------------------------------------------------ writing


@dataclasses.dataclass(frozen=True)
class Packed:
    """What became of one part."""

    path: str
    arrays: int
    size: int  # bytes of the part
    was_there: bool
    seconds: float


def write_pack(arrays: str, out: str, shard: Shard, overwrite: bool = False) -> Packed:
    """Write one part of the pack of all arrays in the folder `arrays`.

    A part that holds arrays of these names and sizes is left as it is.

    Args:
        shard: which part of how many.
        overwrite: write it anew all the same.

    Raises:
        UsageError: no such folder, no arrays in it, or `out` holds something else.
        SavimaeError: arrays that are damaged (nothing is written), or another process writes the
            same part.
    """
    refuse_file(out)
    if not os.path.isdir(arrays):
        raise UsageError(
            f"{shown(arrays)}: no such folder of arrays; make it with `savimae preprocess`"
        )
    if is_pack(arrays):
        raise UsageError(f"{shown(arrays)} is a pack already")
    if os.path.isdir(out) and os.path.samefile(arrays, out):
        raise UsageError(f"{shown(out)} holds the arrays; name another folder for the pack")
    with sole_writer(out, shard.index, shard.count), Progress("packing", delay_s=1.0) as progress:
        names = sorted(_names(arrays, progress))
        if not names:
            raise UsageError(
                f"{shown(arrays)}: holds no arrays; make them with `savimae preprocess`"
            )
        record_config(out, _settings(arrays, shard.count))
        path = os.path.join(out, part_name(shard))
        mine = [(name_hash(name), name) for name in names]
        mine = sorted(each for each in mine if each[0] % shard.count == shard.index)
        remove_leftovers([path])
        was_there = not overwrite and _is_done(path, arrays, [name for _, name in mine])
        if not was_there:
            with EndedBySignals() as ending:
                _write_part(path, arrays, mine, progress, ending)
        size = os.path.getsize(path)
        return Packed(path, len(mine), size, was_there, progress.elapsed_s)


def _settings(arrays: str, count: int) -> dict[str, object]:
    """What the arrays' folder says of itself, as a pack of so many parts."""
    try:
        recorded = read_json(os.path.join(arrays, CONFIG))
    except (OSError, ValueError):  # arrays of another tool
        recorded = {}
    return {**recorded, "output": "pack", "parts": count}


def _names(arrays: str, progress: Progress) -> Iterator[str]:
    """Names of all arrays below a folder."""
    n_found = 0

    def stop(error: OSError) -> None:
        raise SavimaeError(f"{shown(str(error.filename))}: {error.strerror}") from error

    for folder, _, files in os.walk(arrays, onerror=stop, followlinks=True):
        inside = os.path.relpath(folder, arrays)
        for file in files:
            name, extension = os.path.splitext(file)
            if extension == ".npy" and not file.endswith(TEMPORARY_SUFFIX):
                n_found += 1
                yield name if inside == os.curdir else f"{inside}/{name}".replace(os.sep, "/")
        progress.show(0.0, f"{n_found} arrays found")


def _is_done(path: str, arrays: str, names: Sequence[str]) -> bool:
    """Whether a whole part is there, of these arrays, by their names and sizes."""
    if not os.path.exists(path):
        return False
    try:
        found = dict(PackPart(path).sizes())
    except SavimaeError:
        return False
    return found == {name: os.path.getsize(array_path(arrays, name)) for name in names}


def _write_part(
    path: str,
    arrays: str,
    names: Sequence[tuple[int, str]],
    progress: Progress,
    ending: EndedBySignals,
) -> None:
    """Write the arrays of these hashes and names, in this order."""
    damaged: list[str] = []
    sizes, sums = [], []
    with atomic_file(path, durable=True) as file:
        for number, (_, name) in enumerate(names):
            ending.check()
            progress.show(number / len(names), f"{number}/{len(names)} arrays")
            with open(array_path(arrays, name), "rb") as source:
                content = source.read()
            try:
                parse_array(content)
            except (ValueError, EOFError):
                damaged.append(name)
            sizes.append(len(content))
            sums.append(zlib.crc32(content))
            file.write(content)
        if damaged:
            shown_names = ", ".join(
                shown(array_path(arrays, name)) for name in damaged[:MOST_NAMED]
            )
            raise SavimaeError(
                f"{len(damaged)} arrays are damaged, so that nothing was packed: {shown_names}"
                f"{', …' if len(damaged) > MOST_NAMED else ''}; delete them and run `savimae "
                "preprocess` again"
            )
        _write_index(file, names, sizes, sums)


def _write_index(
    file: BinaryIO, names: Sequence[tuple[int, str]], sizes: list[int], sums: list[int]
) -> None:
    encoded = [_encoded(name) for _, name in names]
    start = file.tell()
    ends = np.cumsum(sizes, dtype="<i8")
    index = io.BytesIO()
    np.savez(
        index,
        hashes=np.array([hashed for hashed, _ in names], "<u8"),
        starts=ends - np.array(sizes, "<i8"),
        sizes=np.array(sizes, "<i8"),
        sums=np.array(sums, "<u4"),
        name_ends=np.cumsum([len(name) for name in encoded], dtype="<i8"),
        names=np.array(bytearray(b"".join(encoded)), np.uint8),
    )
    content = index.getvalue()
    file.write(content)
    file.write(TAIL.pack(MAGIC, start, zlib.crc32(content), 0))
