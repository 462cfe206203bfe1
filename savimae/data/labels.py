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

from savimae.data.lists import Video, VideoList, label_of
from savimae.system.errors import SavimaeError, UsageError, shown

LISTED = 8  # classes that a note names


class Labelled(NamedTuple):
    """Training and test videos whose labels are places in `classes`."""

    train: list[Video]
    test: list[Video]
    classes: list[str]  # those that have training videos
    numbers: list[int]  # what the training list calls them
    notes: list[str]  # what was taken for what, a line each, where that is not plain


def match_labels(train: VideoList, test: VideoList, train_path: str, test_path: str) -> Labelled:
    """Give both sides the same labels: 0 to K - 1 for the K classes that have training videos.

    Args:
        train_path, test_path: where the videos come from, for errors and notes.

    Raises:
        UsageError: a class of the test that no training video has.
        SavimaeError: a list that gives two of its classes one name.
    """
    numbers = sorted({label_of(video) for video in train.videos})
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
        number = label_of(video)
        name = test.classes[number] if test.classes else str(number)
        place = place_of_name.get(name) if by_name else place_of_number.get(number)
        if place is None:
            what = f"class {shown(name)}" if test.classes else f"label {number}"
            raise UsageError(
                f"{shown(test_path)}: {shown(video.path)} has {what}, which no training video of "
                f"{shown(train_path)} has; take it off the test, or add it to the training"
            )
        tested.append(dataclasses.replace(video, label=place))
    trained = [
        dataclasses.replace(video, label=place_of_number[label_of(video)]) for video in train.videos
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
    """A hash of the class names of these videos, in order: it tells them from other classes."""
    names = "\n".join(classes[label_of(video)] for video in videos)
    return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:12]
