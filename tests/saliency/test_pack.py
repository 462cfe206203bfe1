"""A pack: the same arrays, in few files."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from media import encode, moving_frames
from torch.utils.data import DataLoader

from savimae import SavimaeError, VideoClips
from savimae.cli import cli
from savimae.data.shards import Shard
from savimae.saliency import pack
from savimae.saliency.array_source import find_cut, open_arrays
from savimae.saliency.pack import Pack, PackPart, name_hash, part_name, write_pack
from savimae.system.errors import UsageError

NAMES = ["a/v", "a/w", "b/v", "b/é ☃", "top", "b/line\nbreak", "b/" + os.fsdecode(b"\xff")]


def make_arrays(root: Path, names: list[str], first: int = 0) -> dict[str, np.ndarray]:
    """Arrays of different lengths and values."""
    found = {}
    for index, name in enumerate(names):
        path = root / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (3 + index, 2, 2)
        found[name] = np.random.default_rng(first + index).integers(0, 2, size, np.uint8)
        np.save(path, found[name])
    return found


def write_all(arrays: Path, out: Path, count: int) -> list[pack.Packed]:
    return [write_pack(str(arrays), str(out), Shard(index, count)) for index in range(count)]


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [*map(str, words)], catch_exceptions=False)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_a_pack_holds_the_same_arrays(tmp_path, count):
    expected = make_arrays(tmp_path / "arrays", NAMES)
    (tmp_path / "arrays/notes.txt").write_text("no array")
    parts = write_all(tmp_path / "arrays", tmp_path / "pack", count)
    assert sum(part.arrays for part in parts) == len(NAMES)
    files = sorted(name for name in os.listdir(tmp_path / "pack") if name.endswith(".pack"))
    assert files == [f"{index:05d}-of-{count:05d}.pack" for index in range(count)]
    source = open_arrays(str(tmp_path / "pack"))
    assert isinstance(source, Pack)
    for name, array in expected.items():
        found = source.load(name)
        assert name in source
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
        # The part of an array follows from its name alone.
        path = tmp_path / "pack" / part_name(Shard(name_hash(name) % count, count))
        assert (tmp_path / f"arrays/{name}.npy").read_bytes() in path.read_bytes()
    assert pack.PART.fullmatch(part_name(Shard(count - 1, 10**6)))
    for name in ("a/x", "v", "a"):
        assert name not in source
        with pytest.raises(SavimaeError, match="no such array"):
            source.load(name)
    assert find_cut(str(tmp_path / "pack"), ["data/a/v", "data/b/v"]) == 1
    with pytest.raises(SavimaeError, match=r"a/x: no such array \(1 of 2 .* and `savimae pack`"):
        find_cut(str(tmp_path / "pack"), ["a/v", "a/x"])


def test_names_of_one_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "name_hash", lambda _name: 5)
    expected = make_arrays(tmp_path / "arrays", NAMES)
    write_all(tmp_path / "arrays", tmp_path / "pack", 2)
    source = Pack(str(tmp_path / "pack"))
    assert [len(part) for part in source.parts] == [0, len(NAMES)]
    assert all(np.array_equal(source.load(name), array) for name, array in expected.items())
    assert "z" not in source


def test_the_same_arrays_give_the_same_bytes_and_are_packed_once(tmp_path):
    make_arrays(tmp_path / "arrays", NAMES)
    (first,) = write_all(tmp_path / "arrays", tmp_path / "pack", 1)
    content = Path(first.path).read_bytes()
    (again,) = write_all(tmp_path / "arrays", tmp_path / "pack", 1)
    assert (first.was_there, again.was_there) == (False, True)
    (other,) = write_all(tmp_path / "arrays", tmp_path / "other", 1)
    assert Path(other.path).read_bytes() == content

    # A new array, and one of another length.
    changed = make_arrays(tmp_path / "arrays", ["a/new"], first=50)
    np.save(tmp_path / "arrays/top.npy", np.ones((30, 2, 2), np.uint8))
    (packed,) = write_all(tmp_path / "arrays", tmp_path / "pack", 1)
    source = Pack(str(tmp_path / "pack"))
    assert not packed.was_there
    assert np.array_equal(source.load("a/new"), changed["a/new"])
    assert source.load("top").sum() == 120

    # Of the same length: told apart by nothing but --overwrite.
    np.save(tmp_path / "arrays/top.npy", np.zeros((30, 2, 2), np.uint8))
    assert write_pack(str(tmp_path / "arrays"), str(tmp_path / "pack"), Shard()).was_there
    assert not write_pack(str(tmp_path / "arrays"), str(tmp_path / "pack"), Shard(), True).was_there
    assert Pack(str(tmp_path / "pack")).load("top").sum() == 0


def test_damage_is_found_and_named(tmp_path):
    make_arrays(tmp_path / "arrays", NAMES)
    (done,) = write_all(tmp_path / "arrays", tmp_path / "pack", 1)
    path = Path(done.path)
    whole = path.read_bytes()
    place = whole.index((tmp_path / "arrays/top.npy").read_bytes())
    flipped = bytearray(whole)
    flipped[place + 140] ^= 1  # in its numbers
    path.write_bytes(flipped)
    source = Pack(str(tmp_path / "pack"))
    assert source.load("a/v").shape == (3, 2, 2)
    with pytest.raises(SavimaeError, match=r"\.pack, top: damaged .* `savimae pack` again"):
        source.load("top")

    of_index = bytearray(whole)
    of_index[-200] ^= 1
    for content in (b"", whole[:10], whole[:-1], whole[: len(whole) // 2], bytes(of_index)):
        path.write_bytes(content)
        with pytest.raises(SavimaeError, match="not a whole part of a pack; delete it"):
            PackPart(str(path))
        # Packing mends it.
        assert not write_pack(str(tmp_path / "arrays"), str(tmp_path / "pack"), Shard()).was_there
        assert path.read_bytes() == whole


def test_what_cannot_be_packed_is_refused(tmp_path):
    arrays, out = str(tmp_path / "arrays"), str(tmp_path / "pack")
    with pytest.raises(UsageError, match="no such folder of arrays"):
        write_pack(arrays, out, Shard())
    os.mkdir(arrays)
    with pytest.raises(UsageError, match="holds no arrays"):
        write_pack(arrays, out, Shard())
    make_arrays(tmp_path / "arrays", NAMES)
    with pytest.raises(UsageError, match="name another folder"):
        write_pack(arrays, arrays, Shard())
    whole = (tmp_path / "arrays/a/w.npy").read_bytes()
    (tmp_path / "arrays/a/w.npy").write_bytes(whole[:-1])
    with pytest.raises(SavimaeError, match=r"1 arrays are damaged, .*nothing .*a/w\.npy"):
        write_pack(arrays, out, Shard(name_hash("a/w") % 3, 3))
    assert not [name for name in os.listdir(out) if "pack" in name]
    (tmp_path / "arrays/a/w.npy").write_bytes(whole)

    write_pack(arrays, out, Shard(1, 3))
    with pytest.raises(SavimaeError, match=r"2 of 3 parts .* are missing; .*--shard 0/3"):
        Pack(out)
    with pytest.raises(UsageError, match="parts"):
        write_pack(arrays, out, Shard(0, 2))
    write_pack(arrays, out, Shard(0, 3))
    write_pack(arrays, out, Shard(2, 3))
    with pytest.raises(UsageError, match="is a pack already"):
        write_pack(out, str(tmp_path / "again"), Shard())
    shutil.copy(tmp_path / "pack/00000-of-00003.pack", tmp_path / "pack/00000-of-00002.pack")
    with pytest.raises(SavimaeError, match="packs of 2 and 3 parts"):
        Pack(out)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Videos, their arrays, and a pack of these in two parts."""
    home = tmp_path_factory.mktemp("packed")
    for index in range(4):
        encode(home / f"videos/c{index % 2}/v{index}.avi", moving_frames(12 + index))
    for words in (
        ("preprocess", home / "videos", home / "arrays", "--input-size", "32"),
        ("pack", home / "arrays", home / "pack", "--shard", "0/2"),
        ("pack", home / "arrays", home / "pack", "--shard", "1/2"),
    ):
        done = invoke(*words)
        assert done.exit_code == 0, done.output
    return home


def test_training_evaluation_and_report_take_a_pack(data, tmp_path):
    printed = []
    for name in ("arrays", "pack"):
        run = tmp_path / name
        trained = invoke(
            "train", "--data", data / "videos", "--saliency-root", data / name, "--out", run,
            "--model", "tiny", "--encoder-depth", "1", "--decoder-depth", "1", "--epochs", "2",
            "--input-size", "32", "--num-frames", "8", "--sampling-rate", "1", "--lr", "1e-3",
            "--batch-size", "2", "--threads", "1", "--precision", "fp32", "--allocator", "default",
        )  # fmt: skip
        assert trained.exit_code == 0, trained.output
        scored = invoke(
            "evaluate", run, "--data", data / "videos", "--saliency-root", data / name,
            "--mask-type", "savi", "--threads", "1",
        )  # fmt: skip
        assert scored.exit_code == 0, scored.output
        weights = torch.load(run / "checkpoints/last.pt", weights_only=True)["model"]
        printed.append((weights, scored.stdout.splitlines()[-1].replace(str(run), "").split()))
    (first, table), (second, other_table) = printed
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert table == other_table
    page = invoke("report", tmp_path / "pack", "--out", tmp_path / "page.html")
    assert page.exit_code == 0, page.output
    assert "patches are salient, by arrays" in (tmp_path / "page.html").read_text()


def test_processes_that_load_read_a_pack(data):
    samples = []
    for name, workers in (("arrays", 0), ("pack", 2)):
        clips = VideoClips(
            str(data / "videos"), num_frames=4, sampling_rate=1, input_size=32,
            saliency_root=str(data / name),
        )  # fmt: skip
        assert clips[0]["salient"].any()  # the pack is open here already
        context = "spawn" if workers else None
        loader = DataLoader(clips, 2, num_workers=workers, multiprocessing_context=context)
        samples.append(torch.cat([batch["salient"] for batch in loader]))
        assert len(pickle.dumps(clips)) < 10_000
    assert torch.equal(*samples)


def test_a_pack_is_no_place_for_arrays(data, tmp_path):
    done = invoke("preprocess", data / "videos", data / "arrays", "--input-size", "32", "--check")
    assert done.exit_code == 0, done.output
    with pytest.raises(UsageError, match="pack"):
        invoke("preprocess", data / "videos", data / "pack", "--input-size", "32")
    with pytest.raises(UsageError, match="--shard"):
        invoke("pack", data / "arrays", tmp_path / "new", "--shard", "2/2")
    os.makedirs(tmp_path / "half")
    shutil.copy(data / "pack/00001-of-00002.pack", tmp_path / "half")
    with pytest.raises(SavimaeError, match="1 of 2 parts of the pack are missing"):
        invoke(
            "train", "--data", data / "videos", "--saliency-root", tmp_path / "half",
            "--input-size", "32", "--out", tmp_path / "run",
        )  # fmt: skip
