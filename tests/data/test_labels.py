"""Labels of two lists: classes are matched by name, and no video is on both sides unnoticed."""

from __future__ import annotations

import pytest

from savimae.data.labels import check_overlap, labels_digest, match_labels, shared_videos
from savimae.data.lists import Video, VideoList
from savimae.system.errors import SavimaeError, UsageError


def videos(*labels: int, classes: tuple[str, ...] = (), side: str = "train") -> VideoList:
    made = [Video(f"/{side}/{n}.avi", f"{side}/{n}", label) for n, label in enumerate(labels)]
    return VideoList(made, "/", list(classes))


def match(train: VideoList, test: VideoList):
    return match_labels(train, test, "train.txt", "test.txt")


def test_classes_are_matched_by_name():
    """A test without the first class folder numbers the others one lower."""
    train = videos(0, 1, 2, classes=("box", "hug", "run"))
    test = videos(0, 1, 0, classes=("hug", "run"), side="test")
    found = match(train, test)
    assert [video.label for video in found.test] == [1, 2, 1]
    assert [video.label for video in found.train] == [0, 1, 2]
    assert found.classes == ["box", "hug", "run"]
    assert found.notes == []


def test_a_class_of_the_test_that_training_does_not_have_is_refused():
    train = videos(0, 2, classes=("box", "hug", "run"))  # no video of hug
    with pytest.raises(UsageError, match=r"/test/1\.avi has class hug, which no training"):
        match(train, videos(0, 1, classes=("box", "hug"), side="test"))
    with pytest.raises(UsageError, match=r"has label 3, which no training video of train\.txt"):
        match(videos(1, 2), videos(3, side="test"))


def test_names_of_classes_without_test_videos_do_not_matter():
    test = videos(1, classes=("unseen", "run"), side="test")
    assert match(videos(0, 1, classes=("box", "run")), test).test[0].label == 1


def test_numbers_decide_where_a_side_has_no_names_and_it_is_said():
    found = match(videos(0, 1, classes=("box", "run")), videos(1, 0, side="test"))
    assert [video.label for video in found.test] == [1, 0]
    (note,) = found.notes
    assert note == (
        "note: test.txt does not name its classes; equal numbers are taken for the same class: "
        "0 is box, 1 is run"
    )
    (note,) = match(videos(0, 1), videos(1, 0, side="test")).notes
    assert note.startswith("note: train.txt and test.txt do not name their classes; equal numbers")
    assert note.endswith("are taken for the same class: 0, 1")


def test_labels_from_one_or_with_holes_are_not_a_class_more():
    found = match(videos(1, 2, 7, 2), videos(7, 1, side="test"))
    assert [video.label for video in found.train] == [0, 1, 2, 1]
    assert [video.label for video in found.test] == [2, 0]
    assert (found.classes, found.numbers) == (["1", "2", "7"], [1, 2, 7])
    expected = "note: 3 classes have training videos: 1 becomes 0, 2 becomes 1, 7 becomes 2"
    assert found.notes[-1] == expected
    many = match(videos(*range(1, 102)), videos(1, side="test"))
    assert many.notes[-1].endswith("8 becomes 7, … (93 more)")


def test_a_name_of_two_classes_is_refused():
    with pytest.raises(SavimaeError, match=r"train\.txt: two classes are called run"):
        match(videos(0, 1, classes=("run", "run")), videos(0, classes=("run",), side="test"))


def test_shared_videos_are_seen_through_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/x.avi").touch()
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    ours = [Video(str(tmp_path / "real/x.avi"), "x", 0), Video("/other/y.avi", "y", 0)]
    theirs = [Video(str(tmp_path / "linked/x.avi"), "linked/x", 0)]
    assert shared_videos(ours, theirs) == ours[:1]
    with pytest.raises(UsageError, match=r"1 of 2 test videos are training .*--allow-overlap"):
        check_overlap(theirs, ours, is_allowed=False)
    assert check_overlap(theirs, ours, is_allowed=True) == 1
    assert check_overlap(ours[1:], theirs, is_allowed=False) == 0


def test_the_digest_tells_labels_apart():
    train = videos(0, 1).videos
    assert labels_digest(train, ["a", "b"]) == labels_digest(train, ["a", "b"])
    assert labels_digest(train, ["a", "b"]) != labels_digest(train, ["b", "a"])
