"""Videos set aside for a test at random, class by class, and recording by recording if asked to.

Which videos they are depends on their names, their classes and the seed only: not on the order of
files, and not on where they lie.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from savimae.data.labels import some
from savimae.data.lists import Video, group_of
from savimae.system.errors import UsageError, shown

Counts = dict[int | None, int]  # videos of each label; None: of no label


@dataclasses.dataclass(frozen=True)
class RandomSplit:
    """How many videos are for the test, and which must stay together."""

    share: float  # of the videos of each class
    seed: int = 0
    by_group: bool = False  # the clips of a recording stay together, as `group_of` knows it
    group_pattern: str | None = None  # or as this regular expression finds it in names

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"--test-share {self.share} is not between 0 and 1")
        if self.group_pattern is not None:
            try:
                re.compile(self.group_pattern)
            except re.error as error:
                raise ValueError(
                    f"--group-pattern {shown(self.group_pattern)} is no regular expression: {error}"
                ) from None

    @property
    def has_groups(self) -> bool:
        return self.by_group or self.group_pattern is not None

    def group(self, name: str) -> str | None:
        """The recording of the video called `name`; None where the name does not tell."""
        if self.group_pattern is None:
            return group_of(name)
        found = re.search(self.group_pattern, name)
        if found is None:
            return None
        return (found[1] if found.re.groups else found[0]) or None


class Sides(NamedTuple):
    """The two sides of a split, each in the order that the videos had."""

    train: list[Video]
    test: list[Video]
    n_groups: int  # recordings of both sides; 0 where they were not asked for
    notes: list[str]  # what is not as one may expect, a line each


def split_videos(videos: Sequence[Video], classes: Sequence[str], split: RandomSplit) -> Sides:
    """Set videos aside for a test.

    Videos, or recordings, are looked at in an order that the seed draws, and one is taken where it
    brings the classes that it has nearer to their share. A class of two or more has at least one on
    either side, unless recordings that classes share forbid it; training comes first.

    Args:
        classes: names of the labels, for notes.

    Raises:
        UsageError: recordings are asked for, and no name tells one; or nothing can be set aside.
    """
    groups = {video.name: split.group(video.name) if split.has_groups else None for video in videos}
    untold = [name for name, group in groups.items() if group is None]
    if split.has_groups and groups and len(untold) == len(groups):
        raise UsageError(_no_groups(split, untold))
    # A video without a recording is one by itself. Videos of one name stay together, too.
    units = [(groups[video.name] is not None, groups[video.name] or video.name) for video in videos]
    counts: dict[tuple[bool, str], Counts] = {unit: {} for unit in units}
    for unit, video in zip(units, videos, strict=True):
        counts[unit][video.label] = counts[unit].get(video.label, 0) + 1
    order = sorted(counts, key=lambda unit: (_draw(split.seed, unit[1]), unit))
    labels = [_sorted(counts[unit]) for unit in order]
    is_test = _set_aside(labels, split.share)
    what = "recording" if split.has_groups else "video"
    if not any(is_test):
        raise UsageError(f"no class has two {what}s of its own, of which one could be for the test")
    tested = {unit for unit, is_one in zip(order, is_test, strict=True) if is_one}
    train = [video for unit, video in zip(units, videos, strict=True) if unit not in tested]
    test = [video for unit, video in zip(units, videos, strict=True) if unit in tested]
    notes = _missing_notes(labels, is_test, classes, what)
    if split.has_groups and untold:
        notes.insert(
            0,
            f"note: {len(untold)} of {len(groups)} names tell no recording, such as "
            f"{shown(min(untold))}: each is taken for one of its own",
        )
    return Sides(train, test, len(counts) if split.has_groups else 0, notes)


def _draw(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{text}".encode("utf-8", "surrogateescape")).digest()


def _sorted(counts: Counts) -> Counts:
    """By label, so that sums over it do not depend on the order of files in their last bits."""
    return dict(sorted(counts.items(), key=lambda item: -1 if item[0] is None else item[0]))


def _set_aside(labels: Sequence[Counts], share: float) -> list[bool]:
    """Which units are for the test, given how many videos of which class each has, in their order.

    What is far from the share is measured in squares, over the number of videos of the class.
    """
    total: Counts = {}
    places: dict[int | None, list[int]] = {}
    for place, unit in enumerate(labels):
        for label, n in unit.items():
            total[label] = total.get(label, 0) + n
            places.setdefault(label, []).append(place)
    tested: Counts = dict.fromkeys(total, 0)
    is_test = [False] * len(labels)

    def gain(unit: Counts) -> float:
        """How much nearer the classes come to their share with this unit."""
        return sum(
            ((tested[c] - share * total[c]) ** 2 - (tested[c] + n - share * total[c]) ** 2)
            / total[c]
            for c, n in unit.items()
        )

    def is_free(place: int) -> bool:
        """Whether all classes of the unit keep something for training without it."""
        unit = labels[place]
        return not is_test[place] and all(tested[c] + n < total[c] for c, n in unit.items())

    def take(place: int) -> None:
        is_test[place] = True
        for label, n in labels[place].items():
            tested[label] += n

    # One for each class, first for those that have least to choose from; then what is left.
    for label in sorted(total, key=lambda label: (len(places[label]), label is not None, label)):
        free = [place for place in places[label] if is_free(place)] if not tested[label] else []
        if free:
            best = max(free, key=lambda place: gain(labels[place]))
            take(next((place for place in free if gain(labels[place]) > 0), best))
    for place, unit in enumerate(labels):
        if is_free(place) and gain(unit) > 0:
            take(place)
    return is_test


def _missing_notes(
    labels: Sequence[Counts], is_test: Sequence[bool], classes: Sequence[str], what: str
) -> list[str]:
    """Which classes have nothing for the test, and why."""
    n_units = Counter(label for unit in labels for label in unit if label is not None)
    tested = {
        label for unit, is_one in zip(labels, is_test, strict=True) if is_one for label in unit
    }
    single: list[str] = []
    others: list[str] = []
    for label in sorted(n_units.keys() - tested):
        name = shown(classes[label]) if classes else str(label)
        (single if n_units[label] == 1 else others).append(name)
    notes = []
    if single:
        notes.append(f"note: of these classes there is one {what}, for training: {some(single)}")
    if others:
        notes.append(
            "note: of these classes nothing is for the test, since training would lack another "
            f"class: {some(others)}"
        )
    return notes


def _no_groups(split: RandomSplit, names: Sequence[str]) -> str:
    such_as = f"none of {len(names)} names, such as {shown(min(names))}"
    if split.group_pattern is not None:
        return f"--group-pattern {shown(split.group_pattern)} finds a recording in {such_as}"
    return (
        f"--by-group knows the names of UCF101 and HMDB51, and finds a recording in {such_as}; say "
        "with --group-pattern which part of a name is the recording"
    )
