"""Lists, folders and official splits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from media import encode, moving_frames, random_bytes, savimae, touch, write_frames

from savimae.data.lists import (
    distinct_videos,
    find_videos,
    group_of,
    output_name,
    read_list,
    read_split,
    shared_groups,
)
from savimae.data.make_list import make_index
from savimae.system.errors import SavimaeError, UsageError


def entries(path: Path, root: str | None = None) -> list[tuple[str, int | None]]:
    return [(video.name, video.label) for video in read_list(str(path), root).videos]


def test_index_round_trip_with_odd_names(tmp_path):
    names = ["B b/ two  spaces.avi", "B b/x 12.avi", "A/#hash.mp4", "A/ü.mkv", "A/trailing .avi"]
    root = touch(tmp_path / "data", *names)
    done = savimae("index", root, tmp_path / "lists/all.txt")
    assert done.returncode == 0, done.stderr
    assert "5 videos, 2 classes, 0 missing" in done.stdout
    found = read_list(str(tmp_path / "lists/all.txt"))
    assert found.classes == ["A", "B b"]
    assert [(video.name, video.label) for video in found.videos] == [
        ("A/#hash", 0), ("A/trailing ", 0), ("A/ü", 0), ("B b/ two  spaces", 1), ("B b/x 12", 1),
    ]  # fmt: skip
    assert all(os.path.exists(video.path) for video in found.videos)
    lines = (tmp_path / "lists/all.txt").read_text().splitlines()
    assert lines[:3] == [
        "# 5 videos, 2 classes", '# root: "../data"', '# classes: ["A", "B b"]',
    ]  # fmt: skip
    assert "B b/x 12.avi 1" in lines


def test_noted_sizes_stand_for_the_files(tmp_path):
    """Shards of a list with sizes are dealt without a look at the files, and in the same way."""
    root = touch(tmp_path / "data", "A/x.avi", "A/y.avi")
    (root / "A/y.avi").write_bytes(bytes(1234))
    listed = tmp_path / "list.txt"
    assert savimae("index", root, listed, "--sizes").returncode == 0
    assert "# bytes: [0, 1234]" in listed.read_text().splitlines()
    (root / "A/y.avi").unlink()
    assert [video.cost for video in find_videos(str(listed)).videos] == [0, 1234]
    assert [video.cost for video in find_videos(str(listed), weigh=False).videos] == [0, 0]
    listed.write_text(listed.read_text() + "A/z.avi 0\n")
    with pytest.raises(SavimaeError, match="bytes is not one number for each of 3 videos"):
        find_videos(str(listed))
    listed.write_text(listed.read_text().replace("1234", '"many", 1'))
    with pytest.raises(SavimaeError, match="bytes is not one number for each of 3 videos"):
        find_videos(str(listed))


def test_lists_move_with_their_data(tmp_path):
    touch(tmp_path / "here/data", "A/x.avi")
    assert savimae("index", tmp_path / "here/data", tmp_path / "here/list.txt").returncode == 0
    (tmp_path / "here").rename(tmp_path / "there")
    (video,) = read_list(str(tmp_path / "there/list.txt")).videos
    assert os.path.exists(video.path)


def test_published_lists(tmp_path, monkeypatch):
    # `frames_dir label`, absolute or relative to the working directory.
    write_frames(tmp_path / "frames/Archery/v_1", moving_frames(2))
    listed = tmp_path / "lists/train.txt"
    listed.parent.mkdir()
    listed.write_text(f"# a comment\n\n{tmp_path}/frames/Archery/v_1 0\n")
    assert entries(listed) == [("Archery/v_1", 0)]
    listed.write_text("frames/Archery/v_1 3\r\n")
    monkeypatch.chdir(tmp_path)
    (video,) = read_list(str(listed)).videos
    assert (video.name, video.label) == ("frames/Archery/v_1", 3)
    assert os.path.exists(video.path)
    assert entries(listed, root=str(tmp_path / "frames")) == [("frames/Archery/v_1", 3)]


def test_a_part_of_the_data_has_the_names_of_the_whole(tmp_path):
    root = str(tmp_path / "data")
    assert output_name(f"{root}/A/x.avi", root) == "A/x"
    assert output_name(f"{root}/A/B/x.y.mp4", root) == "A/B/x.y"
    assert output_name("/elsewhere/A/x", root) == "A/x"
    assert output_name("/x.avi", root) == "x"


@pytest.mark.parametrize(
    ("line", "message"),
    [("x.avi -1", r":1: label -1"), ("x.avi 1.5", r":1: label 1\.5"), ("# root: oops", "not JSON")],
)
def test_malformed_lines_are_named(tmp_path, line, message):
    (tmp_path / "list.txt").write_text(line + "\n")
    with pytest.raises(SavimaeError, match=message):
        read_list(str(tmp_path / "list.txt"))


def test_lines_without_labels(tmp_path):
    (tmp_path / "list.txt").write_text("a b.avi\nc.avi\n")
    assert entries(tmp_path / "list.txt") == [("a b", None), ("c", None)]


def test_random_bytes_as_a_list(tmp_path):
    path = random_bytes(tmp_path / "list.txt")
    done = savimae("preprocess", path, tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "not a list of videos" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_list_whose_lines_end_in_carriage_returns_alone_is_not_one_long_path(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"a.avi 0\rb.avi 1\r")
    with pytest.raises(SavimaeError, match=r"list\.txt: not a list of videos"):
        read_list(str(tmp_path / "list.txt"))


def test_missing_videos_of_a_list_fail_and_are_named(tmp_path):
    encode(tmp_path / "A/x.avi", moving_frames(3))
    (tmp_path / "list.txt").write_text("A/x.avi 0\nA/gone.avi 0\n")
    done = savimae("preprocess", tmp_path / "list.txt", tmp_path / "out")
    assert done.returncode == 1
    assert "gone.avi: no such file or folder" in done.stderr
    assert (tmp_path / "out/A/x.npy").exists()


def test_a_line_break_in_a_name_cannot_be_listed(tmp_path):
    root = touch(tmp_path / "data", "A/new\nline.avi")
    done = savimae("index", root, tmp_path / "list.txt")
    assert done.returncode == 1
    assert r"A/new\nline.avi: a list cannot hold a line break" in done.stderr
    assert not (tmp_path / "list.txt").exists()


def test_two_videos_with_one_output_are_refused_where_there_is_one(tmp_path):
    root = touch(tmp_path / "data", "A/x.avi", "A/x.mp4")
    found = find_videos(str(root)).videos
    assert len(found) == 2
    with pytest.raises(UsageError, match=r"x\.avi and .*x\.mp4: both would be written to A/x"):
        distinct_videos(found)
    done = savimae("preprocess", root, tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_video_that_is_listed_twice_is_two_samples_and_one_output(tmp_path):
    encode(tmp_path / "A/x.avi", moving_frames(3))
    (tmp_path / "list.txt").write_text("A/x.avi 0\nA/x.avi 0\n")
    found = find_videos(str(tmp_path / "list.txt")).videos
    assert len(found) == 2
    assert distinct_videos(found) == found[:1]
    done = savimae("preprocess", tmp_path / "list.txt", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "out: 1 videos" in done.stdout
    assert "1 lines of the list name a video again; each was made once" in done.stderr
    done = savimae("preprocess", tmp_path / "list.txt", tmp_path / "out", "--check")
    assert "1 of 1 arrays are there" in done.stdout


def test_a_root_for_what_is_no_list_is_refused(tmp_path):
    root = touch(tmp_path / "data", "A/x.avi")
    done = savimae("preprocess", root, tmp_path / "out", "--root", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--root says where the paths of a list start" in done.stderr


def test_parts_of_no_split_are_refused(tmp_path):
    root = touch(tmp_path / "data", "A/x.avi")
    for option in (["--part", "test"], ["--split", "2"]):
        done = savimae("index", root, tmp_path / "list.txt", *option)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"{option[0]} goes with --splits" in done.stderr


def test_shared_videos_are_warned_about(tmp_path):
    root = touch(tmp_path / "data", "A/x.avi", "A/y.avi", "B/z.avi")
    (tmp_path / "test.txt").write_text("data/A/x.avi 0\n")
    done = savimae("index", root, tmp_path / "all.txt", "--against", tmp_path / "test.txt")
    assert done.returncode == 0
    assert "warning: this list and" in done.stderr
    assert "share 1 videos, such as" in done.stderr


def test_links_are_followed_and_loops_end(tmp_path):
    touch(tmp_path / "elsewhere", "x.avi")
    root = touch(tmp_path / "data", "A/y.avi", "A/._y.avi", ".hidden/z.avi")
    (root / "B").symlink_to(tmp_path / "elsewhere")
    (root / "A/loop").symlink_to(root)
    assert [video.name for video in find_videos(str(root)).videos] == ["A/y", "B/x"]


def test_a_folder_without_videos(tmp_path):
    touch(tmp_path / "data", "notes.txt")
    for source, message in ((tmp_path / "data", "no videos"), (tmp_path / "gone", "no such file")):
        done = savimae("preprocess", source, tmp_path / "out")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr


# ------------------------------------------------------------------------------------- splits


@pytest.fixture
def ucf101(tmp_path: Path) -> tuple[Path, Path]:
    """A UCF101 in small, whose label order is not that of its folders' bytes."""
    root = touch(
        tmp_path / "UCF-101",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
        "HandstandPushups/v_HandStandPushups_g08_c01.avi",
        "YoYo/v_YoYo_g02_c03.avi",
    )
    splits = tmp_path / "ucfTrainTestlist"
    splits.mkdir()
    (splits / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 YoYo\n3 HandstandPushups\n")
    (splits / "trainlist01.txt").write_text(
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\n"
        "HandstandPushups/v_HandStandPushups_g08_c01.avi 3\n"
        "YoYo/v_YoYo_g09_c01.avi 2\n"
    )
    (splits / "testlist01.txt").write_text(
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\nYoYo/v_YoYo_g02_c03.avi\n"
    )
    return root, splits


def test_ucf101_split(ucf101, tmp_path):
    root, splits = ucf101
    done = savimae("index", root, tmp_path / "train.txt", "--splits", splits, "--split", "1")
    assert done.returncode == 1  # a file is missing
    assert "missing: YoYo/v_YoYo_g09_c01.avi" in done.stderr
    assert "2 videos, 3 classes, 1 missing" in done.stdout
    assert "warning" not in done.stderr
    assert entries(tmp_path / "train.txt") == [
        ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01", 0),
        ("HandstandPushups/v_HandStandPushups_g08_c01", 2),
    ]
    report = make_index(str(root), str(tmp_path / "test.txt"), str(splits), 1, "test")
    assert (report.videos, report.missing, report.shared_groups) == (2, [], [])
    assert [label for _, label in entries(tmp_path / "test.txt")] == [0, 1]


def test_a_split_finds_frame_folders_too(ucf101, tmp_path):
    _, splits = ucf101
    frames = tmp_path / "frames"
    write_frames(frames / "YoYo/v_YoYo_g02_c03", moving_frames(2))
    write_frames(frames / "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01", moving_frames(2))
    report = make_index(str(frames), str(tmp_path / "list.txt"), str(splits), 1, "test")
    assert (report.videos, report.missing) == (2, [])


def test_shared_groups_are_warned_about(ucf101, tmp_path):
    root, splits = ucf101
    with open(splits / "testlist01.txt", "a") as file:
        file.write("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi\n")
    done = savimae("index", root, tmp_path / "test.txt", "--splits", splits, "--part", "test")
    assert done.returncode == 0
    assert "warning: the split's train and test lists share 1 recordings" in done.stderr
    assert "ApplyEyeMakeup/g08" in done.stderr
    done = savimae("index", root, tmp_path / "all.txt", "--against", tmp_path / "test.txt")
    assert "this list and" in done.stderr
    assert "share 3 recordings" in done.stderr


def test_hmdb51_split(tmp_path):
    root = touch(
        tmp_path / "hmdb51",
        "wave/RATRACE_wave_f_nm_np1_fr_goo_37.avi",
        "wave/Other_wave_u_nm_np1_fr_med_1.avi",
        "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi",
    )
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "wave_test_split2.txt").write_text(
        "RATRACE_wave_f_nm_np1_fr_goo_37.avi 1 \nOther_wave_u_nm_np1_fr_med_1.avi 0 \n"
    )
    (splits / "brush_hair_test_split2.txt").write_text(
        "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 2 \n"
    )
    split = read_split(str(splits), 2)
    assert split.classes == ["brush_hair", "wave"]
    assert split.train == [("wave", "RATRACE_wave_f_nm_np1_fr_goo_37.avi")]
    assert split.test == [("brush_hair", "April_09_brush_hair_u_nm_np1_ba_goo_0.avi")]
    report = make_index(str(root), str(tmp_path / "t.txt"), str(splits), 2, "train")
    assert (report.videos, report.missing) == (1, [])
    assert entries(tmp_path / "t.txt") == [("wave/RATRACE_wave_f_nm_np1_fr_goo_37", 1)]


@pytest.mark.parametrize("name", ["classInd.txt", "trainlist01.txt"])
def test_random_bytes_as_split_files(ucf101, tmp_path, name):
    root, splits = ucf101
    random_bytes(splits / name)
    done = savimae("index", root, tmp_path / "list.txt", "--splits", splits)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert name in done.stderr
    assert not (tmp_path / "list.txt").exists()


def test_a_folder_without_splits(ucf101, tmp_path):
    done = savimae("index", ucf101[0], tmp_path / "list.txt", "--splits", ucf101[0])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "neither UCF101's classInd.txt nor HMDB51's" in done.stderr


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("YoYo/v_YoYo_g02_c03", "YoYo/g02"),
        ("wave/RATRACE_wave_f_nm_np1_fr_goo_37", "wave/RATRACE"),
        ("brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0", "brush_hair/April_09"),
        ("Class/holiday", None),
        ("holiday", None),
    ],
)
def test_groups(name, group):
    assert group_of(name) == group


def test_videos_without_groups_share_none():
    assert shared_groups(["a/x", "b/y"], ["a/x"]) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("# classes: " + "[" * 100_000, "classes is not JSON"),
        ("# bytes: " + "9" * 5000, "bytes is not JSON"),
        ("# bytes: [true]", "bytes is not one number for each"),
        ("# bytes: [-1]", "bytes is not one number for each"),
        ('# root: "\\u0000"', "root is not a path"),
        ('# root: "\\ud800"', "root is not a path"),
        ("v.avi " + "9" * 5000, "is no whole number from 0"),
    ],
)
def test_numbers_and_texts_that_nobody_writes(tmp_path, line, message):
    path = tmp_path / "list.txt"
    path.write_text(f"{line}\n" + ("a.avi 1\n" if line.startswith("#") else ""))
    with pytest.raises(SavimaeError, match=rf"list\.txt.*{message}") as caught:
        read_list(str(path))
    assert len(str(caught.value)) < 300


def test_a_number_of_5000_digits_in_a_split(ucf101):
    splits = ucf101[1]
    (splits / "classInd.txt").write_text("9" * 5000 + " c0\n")
    with pytest.raises(SavimaeError, match=r"classInd\.txt: lines must read"):
        read_split(str(splits), 1)
