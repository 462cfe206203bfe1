"""Videos set aside for a test at random, class by class and recording by recording."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from media import savimae, touch

from savimae.data.lists import Video, find_videos, group_of, read_list
from savimae.data.make_list import make_index
from savimae.data.random_split import RandomSplit, split_videos
from savimae.system.errors import UsageError


def videos_of(*names: str) -> tuple[list[Video], list[str]]:
    """Videos of these names, labelled by their folders, and the classes."""
    classes = sorted({name.rpartition("/")[0] for name in names})
    return [
        Video(f"/data/{name}.avi", name, classes.index(name.rpartition("/")[0])) for name in names
    ], classes


def set_aside(names: list[str], share: float = 0.2, **split) -> set[str]:
    """Names of the videos of the test; all are on one side, in their order."""
    videos, classes = videos_of(*names)
    sides = split_videos(videos, classes, RandomSplit(share, **split))
    in_order = [video.name for video in videos]
    for side in (sides.train, sides.test):
        places = [in_order.index(video.name) for video in side]
        assert places == sorted(places)
    found = {video.name for video in sides.test}
    assert found.isdisjoint(video.name for video in sides.train)
    assert len(sides.train) + len(sides.test) == len(videos)
    return found


def test_every_class_has_its_share():
    sizes = {"A": 50, "B": 11, "C": 5, "D": 2, "E": 1}
    names = [f"{name}/{n:02}" for name, size in sizes.items() for n in range(size)]
    for share, expected in (
        (0.2, {"A": 10, "B": 2, "C": 1, "D": 1}),
        (0.5, {"A": 25, "B": 5, "C": 2, "D": 1}),
        (0.01, {"A": 1, "B": 1, "C": 1, "D": 1}),
        (0.99, {"A": 49, "B": 10, "C": 4, "D": 1}),
    ):
        found = set_aside(names, share)
        assert Counter(name[0] for name in found) == expected


def test_the_seed_and_the_names_decide_and_nothing_else():
    names = [f"{name}/{n:02}" for name in "ABC" for n in range(20)]
    found = set_aside(names)
    shuffled = [names[place] for place in np.random.default_rng(0).permutation(len(names))]
    assert set_aside(shuffled) == found
    # Written down once: a later version must set the same videos aside.
    assert sorted(found) == [
        "A/03", "A/11", "A/13", "A/17", "B/01", "B/04", "B/14", "B/18", "C/01", "C/03", "C/09",
        "C/18",
    ]  # fmt: skip
    assert set_aside(names, seed=1) != found
    # Every video has its turn.
    turns = Counter(name for seed in range(200) for name in set_aside(names, seed=seed))
    assert len(turns) == 60
    assert min(turns.values()) > 20
    assert max(turns.values()) < 65  # 40 on average, with a deviation of 5.7


def test_recordings_stay_together_within_classes():
    names = [
        f"{name}/v_{name}_g{group:02}_c{clip:02}"
        for name, n_groups in (("A", 10), ("B", 3), ("C", 2))
        for group in range(n_groups)
        for clip in range(4)
    ]
    for seed in range(20):
        found = set_aside(names, by_group=True, seed=seed)
        groups = {group_of(name) for name in found}
        assert found == {name for name in names if group_of(name) in groups}
        assert Counter(group[0] for group in groups) == {"A": 2, "B": 1, "C": 1}


def test_a_recording_of_several_classes_is_on_one_side():
    names = [
        f"{name}/set_seq{seq:02}_{clip}" for name in "ABC" for seq in range(10) for clip in "xy"
    ]
    for pattern in (r"seq\d+", r"_seq(\d+)_"):
        found = set_aside(names, 0.3, group_pattern=pattern)
        assert len({name[2:11] for name in found}) == 3
        assert len(found) == 3 * 3 * 2


def test_sizes_of_recordings_count():
    """The share is of videos: a long recording is not taken where it would be far too much."""
    names = ["A/long_" + str(n) for n in range(60)]
    names += [f"A/r{group:02}_{n}" for group in range(20) for n in range(2)]
    for seed in range(20):
        found = set_aside(names, 0.2, group_pattern="([a-z0-9]+)_", seed=seed)
        assert len(found) == 20
        assert not any("long" in name for name in found)


def test_classes_that_cannot_be_tested_are_noted(tmp_path):
    root = touch(
        tmp_path / "data", "A/s1_x.avi", "A/s2_x.avi", "B/s1_y.avi", "B/s3_y.avi", "C/z.avi"
    )
    lists = tmp_path / "train.txt", tmp_path / "lists/test.txt"
    words = ("index", root, lists[0], "--test-share", "0.5", "--test-list", lists[1])
    done = savimae(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{lists[0]}: 3 videos, 3 classes; {lists[1]}: 2 videos\n"
    assert done.stderr == "note: of these classes there is one video, for training: C\n"
    train, test = (read_list(str(path)) for path in lists)
    assert train.classes == test.classes == ["A", "B", "C"]
    assert [video.label for video in test.videos] == [0, 1]
    assert sorted(v.name for v in [*train.videos, *test.videos]) == [
        v.name for v in find_videos(str(root)).videos
    ]
    done = savimae(*words, "--group-pattern", r"s\d")
    assert done.returncode == 0, done.stderr
    assert "; 4 recordings, none of them on both sides" in done.stdout
    assert "note: 1 of 5 names tell no recording, such as C/z: each is taken" in done.stderr
    assert "note: of these classes there is one recording, for training: C" in done.stderr
    # s1, s2 and s3 share classes; A and B keep one of two recordings each.
    sides = split_videos(*videos_of("A/s1", "B/s1", "A/s2"), RandomSplit(0.5, 0, True, "s."))
    assert [video.name for video in sides.test] == ["A/s2"]
    assert sides.notes == ["note: of these classes there is one recording, for training: B"]
    shared = videos_of("A/s1", "B/s1", "A/s2", "C/s2")
    with pytest.raises(UsageError, match="no class has two recordings of its own"):
        split_videos(*shared, RandomSplit(0.5, 0, True, "s."))


def test_a_class_without_a_test_for_the_sake_of_another():
    # B and C have one recording each, and so A, of which both are, has nothing for the test.
    videos, classes = videos_of("A/s1", "B/s1", "A/s2", "C/s2", "D/x", "D/y")
    sides = split_videos(videos, classes, RandomSplit(0.5, group_pattern="s."))
    assert {video.name for video in sides.test} < {"D/x", "D/y"}
    assert sides.notes == [
        "note: 2 of 6 names tell no recording, such as D/x: each is taken for one of its own",
        "note: of these classes there is one recording, for training: B, C",
        "note: of these classes nothing is for the test, since training would lack another class: "
        "A",
    ]


def test_clips_of_a_recording_on_both_sides_are_warned_about(tmp_path):
    names = [f"YoYo/v_YoYo_g01_c{n:02}.avi" for n in range(9)] + ["YoYo/v_YoYo_g02_c01.avi"]
    root = touch(tmp_path / "data", *names)
    words = (
        "index",
        root,
        tmp_path / "a.txt",
        "--test-share",
        "0.4",
        "--test-list",
        tmp_path / "b.txt",
    )
    done = savimae(*words)
    assert done.returncode == 0
    assert "warning: the training and the test list share 1 recordings" in done.stderr
    assert "leaks into the other; --by-group keeps a recording together" in done.stderr
    done = savimae(*words, "--by-group", "--sizes", "--against", tmp_path / "b.txt")
    assert "these lists and" in done.stderr
    assert "share 4 videos, such as" in done.stderr
    assert [v.name for v in read_list(str(tmp_path / "b.txt")).videos] == ["YoYo/v_YoYo_g02_c01"]
    assert "# bytes: [0]" in (tmp_path / "b.txt").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--test-list", "t.txt"], "--test-list goes with --test-share"),
        (["--by-group"], "--by-group goes with --test-share"),
        (["--group-pattern", "x"], "--group-pattern goes with --test-share"),
        (["--seed", "0"], "--seed goes with --test-share"),
        (["--test-share", "0.2"], "--test-share needs a --test-list"),
        (["--test-share", "0.2", "--test-list", "sub/../list.txt"], "list.txt would be both lists"),
        (["--test-share", "0.2", "--test-list", "data"], "data is a folder; name a file"),
        (["--test-share", "1", "--test-list", "t.txt"], "--test-share 1.0 is not between 0 and 1"),
        (["--test-share", "nan", "--test-list", "t.txt"], "--test-share nan is not between"),
        (
            ["--test-share", "0.2", "--test-list", "t.txt", "--splits", "s"],
            "--splits says what the test is; leave it or --test-share out",
        ),
        (
            ["--test-share", "0.2", "--test-list", "t.txt", "--by-group"],
            "--by-group knows the names of UCF101 and HMDB51, and finds a recording in none of 3 "
            "names, such as A/x; say with --group-pattern",
        ),
        (
            ["--test-share", "0.2", "--test-list", "t.txt", "--group-pattern", "z*"],  # no text
            "--group-pattern z* finds a recording in none of 3 names, such as A/x",
        ),
        (
            ["--test-share", "0.2", "--test-list", "t.txt", "--group-pattern", "("],
            "--group-pattern ( is no regular expression: missing )",
        ),
        (
            ["--test-share", "0.2", "--test-list", "t.txt", "--exclude", "y"],
            "no class has two videos of its own",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(tmp_path, options, message):
    root = touch(tmp_path / "data", "A/x.avi", "A/y.avi", "B/w.avi")
    done = savimae("index", root, "list.txt", *options, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert not list(tmp_path.glob("*.txt"))


def test_both_lists_are_written_or_none(tmp_path):
    root = touch(tmp_path / "data", *[f"A/{n}.avi" for n in range(9)], "A/new\nline.avi")
    for seed in range(3):
        done = savimae(
            "index", root, tmp_path / "a.txt", "--test-share", "0.5", "--test-list",
            tmp_path / "b.txt", "--seed", str(seed),
        )  # fmt: skip
        assert done.returncode == 1
        assert "a list cannot hold a line break" in done.stderr
        assert not list(tmp_path.glob("*.txt"))


def test_a_folder_without_class_folders_and_one_that_holds_nothing(tmp_path):
    root = touch(tmp_path / "data", *[f"{n}.avi" for n in range(10)])
    split = RandomSplit(0.3)
    lists = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    report = make_index(str(root), lists[0], test_list=lists[1], random=split)
    assert (report.videos, report.test_videos) == (7, 3)
    assert all(video.label is None for video in read_list(lists[1]).videos)
    (tmp_path / "none/empty").mkdir(parents=True)
    for split in (RandomSplit(0.3), RandomSplit(0.3, by_group=True)):
        with pytest.raises(UsageError, match="no class has two"):
            make_index(str(tmp_path / "none"), lists[0], test_list=lists[1], random=split)
