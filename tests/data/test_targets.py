"""Lists whose videos have several labels, or numbers; and what both sides of a test must share."""

from __future__ import annotations

import pytest
from media import touch

from savimae.data.labels import labels_digest, match_labels, match_values
from savimae.data.list_lines import NUMBERS, ONE, SEVERAL
from savimae.data.lists import find_both_sides, find_videos, read_list, write_list
from savimae.system.errors import SavimaeError, UsageError


def read(tmp_path, text, kind=None, name="list.txt"):
    (tmp_path / name).write_text(text)
    return read_list(str(tmp_path / name), kind=kind)


@pytest.mark.parametrize(
    ("text", "classes", "labels"),
    [
        ("a b/x.avi 3,0\ny.mp4 -\nz.avi\t1\n", [], [(0, 3), (), (1,)]),
        ("x.avi,0 , 2\ny.mp4,1\n", [], [(0, 2), (1,)]),
        ("x.avi walk,talk\ny.mp4 ride a horse,talk\n", ["ride a horse", "talk", "walk"],
         [(1, 2), (0, 1)]),
        ('# classes: ["walk", "talk"]\nx.avi talk,walk\ny.mp4 -\n', ["walk", "talk"],
         [(0, 1), ()]),
        ('# classes: ["walk", "talk, loud"]\nx.avi 0,1\n', ["walk", "talk, loud"], [(0, 1)]),
        ('path,labels\nx.avi,"a,b"\ny.avi,-\n', ["a", "b"], [(0, 1), ()]),
        ("gone/v 1 0,2\nframes 1\n", [], [(0, 2), (1,)]),  # folders: the last word
    ],
)  # fmt: skip
def test_several_labels_of_a_video(tmp_path, text, classes, labels):
    found = read(tmp_path, text, SEVERAL)
    assert [video.labels for video in found.videos] == labels
    assert {video.label for video in found.videos} == {None}
    assert found.classes == classes
    # The list itself may say what it is, for commands that are not told.
    said = read(tmp_path, f'# labels: "several"\n{text}')
    assert [video.labels for video in said.videos] == labels


@pytest.mark.parametrize(
    ("text", "names", "values"),
    [
        ("x.avi 1.5\ny d/z.mp4 -3\n", [], [(1.5,), (-3.0,)]),
        ("x.avi 1.5, -3e-2\ny.mp4\t+4,.5\n", [], [(1.5, -0.03), (4.0, 0.5)]),
        ('# values: ["age", "kg"]\nx.avi,1,2\n', ["age", "kg"], [(1.0, 2.0)]),
        ("file,Age,kg\nx.avi,30,70.5\n", ["Age", "kg"], [(30.0, 70.5)]),
    ],
)
def test_numbers_of_a_video(tmp_path, text, names, values):
    found = read(tmp_path, text, NUMBERS)
    assert [video.values for video in found.videos] == values
    assert found.classes == names


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (SEVERAL, "x.avi 1\ny.avi\n", r":2: y\.avi has no label; write `path -` for a video of no"),
        (SEVERAL, "x.avi 1,,2\n", r":1: a label is missing; write `path 0,3`"),
        (
            SEVERAL,
            "youtube_id,time_start,time_end,label\nx,1,2,a\n",
            r":1: no column `path` in youtu",
        ),
        (SEVERAL, "path,labels\nx.avi,\n", r":2: a label is missing"),
        (SEVERAL, "gone " + "a," * 40 + "a b,\n", r":1: gone a,a.* has no label"),
        (SEVERAL, "x.avi 1,-\n", r":1: a label is missing"),
        (SEVERAL, "x.avi 3,3\n", r":1: label 3 is there twice"),
        (SEVERAL, "x.avi 3,03\n", r":1: a label is there twice"),
        (SEVERAL, '# classes: ["a"]\nx.avi a,b\n', r":2: b is not one of the classes"),
        (SEVERAL, "path,x\na.avi,1\n", r":1: no column `labels` in path,x"),
        (SEVERAL, '# labels: "numbers"\nx.avi 1\n', r"says numbers, which --task regress is for"),
        (NUMBERS, "x.avi 1\n# y\ny.avi 1,2\n", r":3: 2 numbers, line 1 has 1; every video needs"),
        (NUMBERS, "x.avi nan\n", r":1: nan is no finite number; write `path 1\.5`"),
        (NUMBERS, "x.avi 1e999\n", r":1: 1e999 is no finite number"),
        (NUMBERS, "x.avi 1_0\n", r":1: 1_0 is no finite number"),
        (NUMBERS, "x.avi 1,\n", r":1: nothing is no finite number"),
        (NUMBERS, "x.avi\n", r":1: x\.avi has no number; write `path 1\.5`"),
        (NUMBERS, '# values: ["a"]\nx.avi 1,2\n', r"1 names of numbers, a; 2 that differ are need"),
        (NUMBERS, "# values: 3\nx.avi 1,2\n", r"values is not a list of names"),
        (ONE, "x.avi 0\ny.avi 0,3\n", r":2: 0,3 is several labels; --task multilabel is for those"),
        (ONE, "x.avi walk,talk\n", r":1: walk,talk is several labels; --task multilabel"),
        (ONE, "x.avi 0\ny.avi 1.5\n", r":2: 1\.5 is no label, .*; --task regress is for other"),
        (ONE, '# labels: "several"\nx.avi 0\n', r"says several, which --task multilabel is for"),
        (None, '# labels: "many"\nx.avi 0\n', r"labels is none of one, several, numbers"),
    ],
)
def test_what_is_no_such_list_is_one_line(tmp_path, kind, text, message):
    with pytest.raises(SavimaeError, match=rf"list\.txt.*{message}"):
        read(tmp_path, text, kind)


def test_a_folder_has_neither(tmp_path):
    touch(tmp_path, "videos/a/x.avi", "videos/b/y.avi")
    for kind, line in ((SEVERAL, "path label,label"), (NUMBERS, r"path 1\.5")):
        with pytest.raises(UsageError, match=f"no list, and only a list can say .*`{line}` lines"):
            find_videos(str(tmp_path / "videos"), kind=kind)


def test_written_lists_hold_what_was_read(tmp_path):
    for text in ("x.avi 0,2\ny.avi -\n", "x.avi a,b\ny.avi b\n"):
        found = read(tmp_path, text, SEVERAL)
        write_list(str(tmp_path / "again.txt"), found.videos, found.root, found.classes)
        again = read_list(str(tmp_path / "again.txt"))
        assert (again.videos, again.classes) == (found.videos, found.classes)
    found = read(tmp_path, "path,a,b\nx.avi,0.1,-3\n", NUMBERS)
    write_list(str(tmp_path / "again.txt"), found.videos, found.root, found.classes)
    again = read_list(str(tmp_path / "again.txt"))
    assert (again.videos, again.classes) == (found.videos, ["a", "b"])


def both(tmp_path, train, test, kind):
    paths = [str(tmp_path / name) for name in ("train.txt", "test.txt")]
    for path, text in zip(paths, (train, test), strict=True):
        with open(path, "w") as file:
            file.write(text)
    match = match_values if kind == NUMBERS else match_labels
    return match(*find_both_sides(*paths, kind=kind), *paths)


def test_labels_of_both_sides_are_matched(tmp_path):
    found = both(tmp_path, "x.avi talk,walk\ny.avi -\n", "z.avi walk\nu.avi -\n", SEVERAL)
    assert found.classes == ["talk", "walk"]
    assert [video.labels for video in found.train] == [(0, 1), ()]
    assert [video.labels for video in found.test] == [(1,), ()]
    found = both(tmp_path, "x.avi 2,7\n", "z.avi 7\n", SEVERAL)
    assert (found.classes, found.numbers) == (["2", "7"], [2, 7])
    assert [video.labels for video in found.test] == [(1,)]
    with pytest.raises(UsageError, match=r"z\.avi has class run, which no training video"):
        both(tmp_path, "x.avi talk\n", "z.avi run,talk\n", SEVERAL)
    with pytest.raises(UsageError, match=r"test\.txt: no video in it has a label"):
        both(tmp_path, "x.avi talk\n", "z.avi -\n", SEVERAL)
    digests = {labels_digest(found.train, found.classes), labels_digest([], [])}
    several = both(tmp_path, "x.avi 2\ny.avi 7\n", "z.avi 7\n", SEVERAL)
    assert labels_digest(several.train, several.classes) not in digests


def test_numbers_of_both_sides_are_matched_by_name(tmp_path):
    train = '# values: ["a", "b"]\nx.avi 1,2\ny.avi 3,4\n'
    found = both(tmp_path, train, '# values: ["b", "a"]\nz.avi 5,6\n', NUMBERS)
    assert found.classes == ["a", "b"]
    assert [video.values for video in found.test] == [(6.0, 5.0)]
    found = both(tmp_path, "x.avi 1,2\ny.avi 3,4\n", "z.avi 5,6\n", NUMBERS)
    assert (found.classes, found.test[0].values) == (["value_0", "value_1"], (5.0, 6.0))
    with pytest.raises(
        UsageError, match=r"test\.txt: its numbers are called a, c, those of .* a, b"
    ):
        both(tmp_path, train, '# values: ["a", "c"]\nz.avi 5,6\n', NUMBERS)
    with pytest.raises(UsageError, match=r"test\.txt: 1 numbers a video, .*train\.txt has 2"):
        both(tmp_path, train, "z.avi 5\n", NUMBERS)
    with pytest.raises(UsageError, match=r"train\.txt: b is the same for all videos"):
        both(tmp_path, '# values: ["a", "b"]\nx.avi 1,4\ny.avi 3,4\n', "z.avi 5,6\n", NUMBERS)
