"""Videos chosen by their names for a list."""

from __future__ import annotations

from pathlib import Path

import pytest
from media import moving_frames, savimae, touch, write_frames

from savimae.data.lists import read_list

NAMES = (
    "A/set1_01.avi", "A/set1_02.mp4", "A/set2_01.avi", "B b/deep/ü.mkv", "B b/set1_03.avi",
    "C/x[1].avi",
)  # fmt: skip
STEMS = [
    "A/set1_01", "A/set1_02", "A/set2_01", "B b/deep/ü", "B b/set1_03", "C/x[1]", "D/frames.v2"
]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_frames(tmp_path / "data/D/frames.v2", moving_frames(1))
    return touch(tmp_path / "data", *NAMES)


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        (["--match", "set1_*"], [0, 1, 4]),
        (["--match", "*.avi"], [0, 2, 4, 5]),
        (["--match", "set?_01"], [0, 2]),
        (["--match", "B b/*"], [3, 4]),  # * stands for a / as well
        (["--match", "A/set1_0[13]"], [0]),
        (["--match", "*/deep/ü.mkv"], [3]),
        (["--match", "x[[]1].avi", "--match", "set2*"], [2, 5]),
        (["--match", "frames.v2"], [6]),
        (["--exclude", "A/*", "--exclude", "frames*"], [3, 4, 5]),
        (["--match", "A/*", "--exclude", "*.mp4"], [0, 2]),
    ],
)
def test_what_patterns_match(root, tmp_path, options, chosen):
    done = savimae("index", root, tmp_path / "list.txt", *options)
    assert done.returncode == 0, done.stderr
    found = read_list(str(tmp_path / "list.txt"))
    assert [video.name for video in found.videos] == [STEMS[place] for place in chosen]
    # Labels are those of all of the data: lists of different parts agree.
    assert found.classes == ["A", "B b", "B b/deep", "C", "D"]
    assert [found.classes[video.label] for video in found.videos] == [
        video.name.rpartition("/")[0] for video in found.videos
    ]
    empty = sorted(set(found.classes) - {found.classes[video.label] for video in found.videos})
    note = f"note: these classes have a label and no videos here: {', '.join(empty)}"
    assert note in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--match", "SET1*"], "--match SET1*: none of 7 videos matches, such as A/set1_01.avi"),
        (["--match", "A"], "--match A: none of 7 videos matches"),
        (["--match", ""], "--match : none of 7 videos matches"),
        (["--match", "set1*", "--match", "set3*"], "--match set3*: none of 7 videos matches"),
        (["--match", "A/*", "--exclude", "C/*"], "--exclude C/*: none of 3 videos matches"),
        (["--match", "A/*", "--exclude", "set*"], "--exclude set*: none of the 7 videos is left"),
    ],
)
def test_patterns_that_match_nothing_are_refused(root, tmp_path, options, message):
    done = savimae("index", root, tmp_path / "list.txt", *options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert not (tmp_path / "list.txt").exists()


def test_patterns_choose_of_a_list_and_of_an_official_split(tmp_path):
    root = touch(tmp_path / "data", "A/v_A_g01_c01.avi", "A/v_A_g02_c01.avi", "B/v_B_g01_c01.avi")
    (tmp_path / "all.txt").write_text("data/A/v_A_g01_c01.avi 4\ndata/B/v_B_g01_c01.avi 7\n")
    done = savimae("index", tmp_path / "all.txt", tmp_path / "b.txt", "--match", "*/B/*")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "b.txt").read_text().splitlines()[-1].endswith("data/B/v_B_g01_c01.avi 7")
    (tmp_path / "classInd.txt").write_text("1 B\n2 A\n")
    (tmp_path / "trainlist01.txt").write_text("A/v_A_g01_c01.avi 2\nB/v_B_g01_c01.avi 1\n")
    (tmp_path / "testlist01.txt").write_text("A/v_A_g02_c01.avi\n")
    words = ("index", root, tmp_path / "list.txt", "--splits", tmp_path, "--exclude", "B/*")
    done = savimae(*words)
    assert done.returncode == 0, done.stderr
    assert [
        (video.name, video.label) for video in read_list(str(tmp_path / "list.txt")).videos
    ] == [("A/v_A_g01_c01", 1)]
