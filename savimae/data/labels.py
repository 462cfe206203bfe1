"""Labels of training and test videos: which class is which, and that no video is on both sides.

Each list numbers its own classes, so the same number may mean another class. If both lists name
their classes, the names decide. If one does not, the numbers decide, and a note says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple

from savimae.data.lists import Video, VideoList, labels_of, values_of
from savimae.system.errors import SavimaeError, UsageError, shown

LISTED = 8  # classes that a note names


class Labelled(NamedTuple):
    """Training and test videos whose labels are places in `classes`; or with named numbers."""

    train: list[Video]
    test: list[Video]
    classes: list[str]  # those that have training videos; or the names of the numbers
    numbers: list[int]  # what the training list calls the classes
    notes: list[str]  # what was taken for what, a line each, where that is not plain


def match_labels(train: VideoList, test: VideoList, train_path: str, test_path: str) -> Labelled:
    """Give both sides the same labels: 0 to K - 1 for the K classes that have training videos.

    Videos have one label each, or any number of them.

    Args:
        train_path, test_path: where the videos come from, for errors and notes.

    Raises:
        UsageError: a class of the test that no training video has, or no label at all.
        SavimaeError: a list that gives two of its classes one name.
    """
    for found, path in ((train, train_path), (test, test_path)):
        if not any(labels_of(video) for video in found.videos):
            raise UsageError(f"{shown(path)}: no video in it has a label; give some theirs")
    numbers = sorted({label for video in train.videos for label in labels_of(video)})
    names = [train.classes[n] if train.classes else str(n) for n in numbers]
    for found, path in ((train, train_path), (test, test_path)):
        twice = next((n for n in found.classes if found.classes.count(n) > 1), None)
        if twice is not None:
            raise SavimaeError(f"{shown(path)}: two classes are called {shown(twice)}")
    by_name = bool(train.classes and test.classes)
    place_of_name = {name: place for place, name in enumerate(names)}
    place_of_number = {number: place for place, number in enumerate(numbers)}
    tested = []
    for video in test.videos:
        places = []
        for number in labels_of(video):
            name = test.classes[number] if test.classes else str(number)
            place = place_of_name.get(name) if by_name else place_of_number.get(number)
            if place is None:
                what = f"class {shown(name)}" if test.classes else f"label {number}"
                raise UsageError(
                    f"{shown(test_path)}: {shown(video.path)} has {what}, which no training video "
                    f"of {shown(train_path)} has; take it off the test, or add it to the training"
                )
            places.append(place)
        tested.append(_with_labels(video, places))
    trained = [
        _with_labels(video, [place_of_number[label] for label in labels_of(video)])
        for video in train.videos
    ]
    notes = []
    if not by_name:
        unnamed = [p for f, p in ((train, train_path), (test, test_path)) if not f.classes]
        known = train.classes or test.classes
        pairs = [f"{n} is {shown(known[n])}" if n < len(known) else str(n) for n in numbers]
        verb = "does not name its" if len(unnamed) == 1 else "do not name their"
        notes.append(
            f"note: {' and '.join(map(shown, unnamed))} {verb} classes; "
            f"equal numbers are taken for the same class: {some(pairs)}"
        )
    if numbers != list(range(len(numbers))):
        pairs = [f"{number} becomes {place}" for place, number in enumerate(numbers)]
        notes.append(f"note: {len(numbers)} classes have training videos: {some(pairs)}")
    return Labelled(trained, tested, names, numbers, notes)


def _with_labels(video: Video, labels: Sequence[int]) -> Video:
    if video.labels is None:
        return dataclasses.replace(video, label=labels[0])
    return dataclasses.replace(video, labels=tuple(sorted(labels)))


def plain_names(n: int) -> list[str]:
    """What `n` numbers are called that have no names."""
    return ["value"] if n == 1 else [f"value_{place}" for place in range(n)]


def match_values(train: VideoList, test: VideoList, train_path: str, test_path: str) -> Labelled:
    """Videos whose numbers mean the same on both sides, in the order of training.

    If both lists name their numbers, the names must be the same, in any order. If one does not, the
    places decide; where none does, they are called as `plain_names` says.

    Args:
        train_path, test_path: as of `match_labels`.

    Raises:
        UsageError: not as many on both sides, other names, or a number that is the same for all
            training videos.
    """
    n, n_test = (len(values_of(found.videos[0])) for found in (train, test))
    if n != n_test:
        raise UsageError(
            f"{shown(test_path)}: {n_test} numbers a video, {shown(train_path)} has {n}; both "
            "lists need the same"
        )
    names = train.classes or test.classes or plain_names(n)
    tested = test.videos
    if train.classes and test.classes:
        if set(train.classes) != set(test.classes):
            raise UsageError(
                f"{shown(test_path)}: its numbers are called {some(test.classes)}, those of "
                f"{shown(train_path)} {some(train.classes)}; both lists need the same"
            )
        order = [test.classes.index(name) for name in names]
        tested = [
            dataclasses.replace(video, values=tuple(values_of(video)[place] for place in order))
            for video in test.videos
        ]
    for place, name in enumerate(names):
        if len({values_of(video)[place] for video in train.videos}) == 1:
            raise UsageError(
                f"{shown(train_path)}: {shown(name)} is the same for all videos; there is nothing "
                "to learn"
            )
    return Labelled(train.videos, tested, names, [], [])


def some(texts: Sequence[str]) -> str:
    """The first of `texts`, and how many more there are."""
    more = [f"… ({len(texts) - LISTED} more)"] if len(texts) > LISTED else []
    return ", ".join([*texts[:LISTED], *more])


def shared_videos(videos: Sequence[Video], others: Sequence[Video]) -> list[Video]:
    """Those of `videos` that are among `others`: the same file or folder, links followed."""
    real = {os.path.realpath(video.path) for video in others}
    return [video for video in videos if os.path.realpath(video.path) in real]


def check_overlap(train: Sequence[Video], test: Sequence[Video], is_allowed: bool) -> int:
    """How many test videos are training videos as well.

    Raises:
        UsageError: there are some, and that is not allowed.
    """
    shared = shared_videos(test, train)
    if shared and not is_allowed:
        raise UsageError(
            f"{len(shared)} of {len(test)} test videos are training videos as well, such as "
            f"{shown(shared[0].path)}: what is known by heart says nothing about new videos. Take "
            "them off one list, or give --allow-overlap, which the result then says"
        )
    return len(shared)


def overlap_words(n_shared: int, n_test: int) -> str:
    """A warning for people where test videos were trained on."""
    return (
        f"warning: {n_shared} of {n_test} test videos are training videos as well; scores on them "
        "say nothing about new videos"
    )


def labels_digest(videos: Sequence[Video], classes: Sequence[str]) -> str:
    """A hash of the class names or numbers of these videos, in order: it tells them from others."""
    names = "\n".join(
        ",".join(
            [classes[label] for label in labels_of(video)]
            if video.values is None
            else map(repr, video.values)
        )
        for video in videos
    )
    return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:12]
