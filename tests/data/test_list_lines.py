"""Lists that other tools write: read where the form is certain, else one line that says what is."""

from __future__ import annotations

from pathlib import Path

import pytest
from media import moving_frames, savimae, touch, write_frames

from savimae.data.lists import VideoList, read_list
from savimae.system.errors import SavimaeError


def read(folder: Path, text: str, name: str = "list.txt") -> VideoList:
    (folder / name).write_text(text)
    return read_list(str(folder / name))


def pairs(found: VideoList) -> list[tuple[str, object]]:
    """Names of the videos and of their classes."""
    labels = [video.label for video in found.videos]
    return [
        (video.name, found.classes[label] if found.classes and label is not None else label)
        for video, label in zip(found.videos, labels, strict=True)
    ]


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        # A video's extension says where its path ends, whether it is there or not.
        ("a b/x 1.avi 3\ny.mp4 0\n", "path label", [("a b/x 1", 3), ("y", 0)]),
        ("a b/x 1.avi\ny.mp4\n", "path label", [("a b/x 1", None), ("y", None)]),
        ("a, b/x.avi,3\ny.mp4, 0\n", "path,label", [("a, b/x", 3), ("y", 0)]),
        ("x.avi\t3\ny.mp4\t0\n", "path label", [("x", 3), ("y", 0)]),
        ("x.avi 120 3\ny.mp4 9 0\n", "path frames label", [("x", 3), ("y", 0)]),
        ("x.avi,120,3\n", "path,frames,label", [("x", 3)]),
        ("x.avi riding a horse\ny.mp4 archery\n", "path class",
         [("x", "riding a horse"), ("y", "archery")]),
        ("x.avi,riding a horse\ny.mp4,archery\n", "path,class",
         [("x", "riding a horse"), ("y", "archery")]),
        # A header says what the columns are.
        ('video_path,label\n"a, b.avi",1\nc.avi,0\n', "video_path,label",
         [("a, b", 1), ("c", 0)]),
        ("id,Path,Class\n7,x.avi,run\n8,y.avi,walk\n", "id,path,class",
         [("x", "run"), ("y", "walk")]),
    ],
)  # fmt: skip
def test_forms_that_an_extension_or_a_header_makes_certain(tmp_path, text, form, expected):
    found = read(tmp_path, text)
    assert found.form == form
    assert pairs(found) == expected


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        ("f/v 1,3\n", "path,label", [("f/v 1", 3)]),
        ("f/v 1 2 3\n", "path frames label", [("f/v 1", 3)]),
        ("f/v 1 2\n", "path label", [("f/v 1", 2)]),
        ("f/v 1\n", "path label", [("f/v", 1)]),  # as ever: a number at the end is the label
        ("f/v 1 archery\n", "path class", [("f/v 1", "archery")]),
        ("f/v 1,riding a horse\n", "path,class", [("f/v 1", "riding a horse")]),
        ("gone/v x\n", "path label", [("gone/v x", None)]),  # a path without a label, as ever
    ],
)
def test_folders_of_frames_are_recognised_by_being_there(tmp_path, text, form, expected):
    write_frames(tmp_path / "f/v 1", moving_frames(2))
    found = read(tmp_path, text)
    assert found.form == form
    assert pairs(found) == expected


@pytest.mark.parametrize("text", ["gone/v 120 3\n", "gone/v,3\n", "gone/v,120,3\n"])
def test_what_could_be_one_form_as_well_as_another_is_refused(tmp_path, text):
    with pytest.raises(SavimaeError, match=r"list\.txt:1: `path.*` and `path label` are both poss"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x.avi 3\ny.avi archery\n", r":2: `path label` is expected, as in line 1, not y.avi arch"),
        ("x.avi,3\n# fine\ny.avi 3\n", r":3: `path,label` is expected, as in line 1"),
        ("x.avi 9 3\ny.avi 3\n", r":2: `path frames label` is expected"),
        ("x.avi run\ny.avi,run\n", r":2: `path class` is expected"),
        ("path,label\nx.avi,1,2\n", r":2: 3 fields, the header has 2: path,label"),
        ("path,label\nx.avi,\n", r":2: no label in this line"),
        ('# classes: ["a", "b"]\nx.avi c\n', r":2: c is not one of the classes that the list n"),
        ('# classes: ["a", "b"]\nx.avi 2\n', r":2: label 2 has no name; classes names 2, from 0"),
    ],
)
def test_a_line_of_another_form_is_named(tmp_path, text, message):
    with pytest.raises(SavimaeError, match=message):
        read(tmp_path, text)


KINETICS = (
    "label,youtube_id,time_start,time_end,split\n"
    "riding a horse,SOX5yA1l24A,4,14,train\narchery,0abcdefghij,1000,1010,train\n"
)


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ("archery/0abcdefghij_001000_001010.mp4", "riding a horse/SOX5yA1l24A_000004_000014"),
        ("riding_a_horse/SOX5yA1l24A.webm", "riding_a_horse/SOX5yA1l24A"),
        ("SOX5yA1l24A_000004_000014.mkv", "SOX5yA1l24A_000004_000014"),
    ],
)
def test_kinetics_csv(tmp_path, there, expected):
    touch(tmp_path, there)
    found = read(tmp_path, KINETICS, "train.csv")
    assert found.classes == ["archery", "riding a horse"]
    assert found.videos[0].name == expected
    assert [video.label for video in found.videos] == [1, 0]
    assert found.form == "Kinetics' CSV"


def test_kinetics_without_videos_says_what_it_looked_for(tmp_path):
    with pytest.raises(SavimaeError, match=r"called riding a horse/SOX5yA1l24A_000004_000014\.mp4"):
        read(tmp_path, KINETICS, "train.csv")
    with pytest.raises(SavimaeError, match=r":2: time_start and time_end are not whole numbers"):
        read(tmp_path, KINETICS.replace(",4,", ",4.5,"), "train.csv")


def test_the_form_found_is_printed(tmp_path):
    write_frames(tmp_path / "f/v", moving_frames(2))
    (tmp_path / "list.csv").write_text("f/v,3\n")
    done = savimae("preprocess", tmp_path / "list.csv", tmp_path / "out")
    assert done.returncode == 0
    assert f"note: {tmp_path}/list.csv: read as `path,label`" in done.stderr
    assert (tmp_path / "out/f/v.npy").exists()
