"""Arrays on disk: what a damaged header claims is refused before it is allocated."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from savimae.saliency.arrays import array_frames, load_array, parse_array, read_archive
from savimae.system.errors import SavimaeError
from savimae.system.sizes import Sides


def npy(shape: str, dtype: str = "'|u1'", content: bytes = bytes(56)) -> bytes:
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


@pytest.mark.parametrize(
    "content",
    [
        npy("(1000000000, 1000000000, 2)"), npy("(1000000000,)"), npy("(-1, 2, 2)"), npy("(57,)"),
        npy("(55,)"), npy("(" + "9" * 5000 + ",)"), npy("(" * 150 + ")" * 150), npy("(14.0, 2, 2)"),
        npy("(7,)", "'|O'"), npy("(7,)", "'|S0'"), npy("(1,)", "'<U1000000000'"), npy("None"),
        npy("(7,)", "3"), npy("(7,)", "'\\ud800'"), b"", b"\x93NUMPY\x09\x00",
    ],
    ids=lambda content: content[:70].decode("latin-1"),
)  # fmt: skip
def test_headers_that_claim_what_is_not_there(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(SavimaeError, match=r"a\.npy: not a whole array; delete it"):
        load_array(str(path))
    assert array_frames(str(path), Sides(2, 2), "uint8") is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_arrays_of_something_else_than_numbers(tmp_path):
    for name, array in (("text", np.array(["a"])), ("complex", np.zeros(3, complex))):
        np.save(tmp_path / name, array)
        with pytest.raises(SavimaeError, match=rf"{name}\.npy: holds .*, not numbers"):
            load_array(str(tmp_path / f"{name}.npy"))


@pytest.mark.parametrize("order", ["C", "F"])
def test_whole_arrays_are_read_as_numpy_reads_them(order):
    array = np.asarray(np.arange(24, dtype=">f4").reshape(2, 3, 4), order=order)
    file = io.BytesIO()
    np.save(file, array)
    assert np.array_equal(parse_array(file.getvalue()), array)
    assert parse_array(file.getvalue()).dtype == array.dtype


def test_archives(tmp_path):
    path = str(tmp_path / "a.npz")
    np.savez(path, x=np.arange(5), y=np.array("text"))
    x, y = read_archive(path, "x", "y")
    assert (x.tolist(), str(y)) == ([0, 1, 2, 3, 4], "text")
    with pytest.raises(ValueError, match="not a whole archive of z"):
        read_archive(path, "z")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # a bomb: 1 MB of 1 GB
        archive.writestr("x.npy", npy("(100000000,)", content=bytes(10**8)))
    tracemalloc.start()
    with pytest.raises(ValueError, match="not a whole archive of x"):
        read_archive(path, "x")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
