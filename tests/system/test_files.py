"""Files that are whole or not there, and what errors say of paths."""

from __future__ import annotations

import contextlib
import os

import pytest

from savimae.system import files
from savimae.system.errors import UsageError, one_line, shown
from savimae.system.settings import record_config


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "x.npy"
    target.write_bytes(b"old")
    with (
        contextlib.suppress(RuntimeError),
        files.atomic_file(str(target)) as file,
    ):
        file.write(b"half of the n")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
    assert target.read_bytes() == b"old"


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    target = tmp_path / "maps"
    target.mkdir()
    (target / "1.png").write_bytes(b"old")
    with contextlib.suppress(RuntimeError), files.atomic_folder(str(target)) as folder:
        open(os.path.join(folder, "1.png"), "wb").close()
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["maps"]
    assert (target / "1.png").read_bytes() == b"old"


def test_leftovers_of_others_are_left_alone(tmp_path):
    # Two names that agree in their first 40 characters are two videos, maybe of two shards.
    ours, theirs = (str(tmp_path / ("x" * 60 + end)) for end in ("a.npy", "b.npy"))
    for target in (ours, theirs):
        open(files.temporary_name(target), "wb").close()
    files.remove_leftovers([ours])
    assert os.listdir(tmp_path) == [os.path.basename(files.temporary_name(theirs))]


def test_temporary_names_fit_the_file_system(tmp_path):
    target = str(tmp_path / ("ü" * 120 + ".npy"))
    with files.atomic_file(target) as file:
        file.write(b"x")
    assert os.path.exists(target)


def test_only_one_creates(tmp_path):
    path = str(tmp_path / "config.json")
    assert files.create_json(path, {"a": 1})
    assert not files.create_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1}
    record_config(str(tmp_path), {"a": 1})
    with pytest.raises(UsageError, match="a is 1 there and 2 here"):
        record_config(str(tmp_path), {"a": 2})
    assert os.listdir(tmp_path) == ["config.json"]


def test_paths_are_shown_in_one_line():
    assert shown("a b/ü\n\t\udcff") == "a b/ü\\n\\t\\udcff"
    assert one_line(ValueError("two\nlines")) == "ValueError: two lines"
