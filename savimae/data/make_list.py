"""Making list files: of a folder, of an official split of UCF101 or HMDB51, or of a random one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from savimae.data.labels import shared_videos, some
from savimae.data.lists import (
    find_videos,
    match_split,
    read_list,
    read_split,
    shared_groups,
    video_stem,
    write_lists,
)
from savimae.data.name_patterns import choose_videos
from savimae.data.random_split import RandomSplit, split_videos
from savimae.system.errors import UsageError, shown


@dataclasses.dataclass
class IndexReport:
    """What went into a list, or two, and what is wrong with it."""

    videos: int
    classes: int
    missing: list[str]  # named by the split, not there
    unreadable: list[tuple[str, str]]  # path, reason
    shared_groups: list[str]  # recordings with clips here and on the other side
    other_side: str = ""  # what they are shared with
    remedy: str = ""  # what to do about it, where that is an option
    shared_videos: list[str] = dataclasses.field(default_factory=list)  # paths, here and there
    ours: str = "this list"
    test_videos: int = 0  # of a random split, beside `videos`
    recordings: int = 0  # of both sides of one that is by recording
    notes: list[str] = dataclasses.field(default_factory=list)


def make_index(
    root: str,
    list_path: str,
    split_folder: str | None = None,
    split: int = 1,
    part: str = "train",
    against: str | None = None,
    sizes: bool = False,
    match: Sequence[str] = (),
    exclude: Sequence[str] = (),
    test_list: str | None = None,
    random: RandomSplit | None = None,
) -> IndexReport:
    """Write the list of the videos below `root`.

    Without `split_folder`, all of them, labelled by their folders in sorted order. With it, those
    of one part ("train" or "test") of an official split, with the split's labels. Labels are those
    of all classes, whichever videos are chosen.

    Args:
        against: a list that should share no video and no group (recording) with this one; with an
            official split its other part is checked as well.
        sizes: note the size of each video, so that readers of the list need not look at them.
        match, exclude: patterns of names, as `choose_videos`.
        test_list, random: where to list the videos that are set aside for a test, and how; both or
            neither, and not with an official split.

    Raises:
        UsageError: no videos below `root`, or no split files; a pattern that matches nothing, or
            nothing that can be set aside.
        SavimaeError: a file that cannot be read or understood.
    """
    found = find_videos(root)
    report = IndexReport(0, 0, [], found.unreadable, [])
    if random is not None:
        report.ours = "these lists"
    videos, classes = found.videos, found.classes
    if split_folder is not None:
        official = read_split(split_folder, split)
        parts = {"train": official.train, "test": official.test}
        classes = official.classes
        videos, report.missing = match_split(parts[part], classes, found)
        if not videos:
            raise UsageError(
                f"{shown(root)}: none of the {len(parts[part])} videos of this split is in it"
            )
        names = {
            side: [f"{name}/{video_stem(file)}" for name, file in parts[side]] for side in parts
        }
        report.shared_groups = shared_groups(names["train"], names["test"])
        report.other_side = "the split's train and test lists"
    if match or exclude:
        videos = choose_videos(videos, match, exclude)
        without = sorted(set(range(len(classes))) - {video.label for video in videos})
        if without and split_folder is None:
            empty = some([shown(classes[label]) for label in without])
            report.notes.append(f"note: these classes have a label and no videos here: {empty}")
    if against is not None:
        others = read_list(against).videos
        report.shared_videos = [video.path for video in shared_videos(videos, others)]
        if not report.shared_groups:
            report.shared_groups = shared_groups(
                [video.name for video in videos], [video.name for video in others]
            )
            report.other_side = f"{report.ours} and {shown(against)}"
    lists = {list_path: videos}
    if test_list is not None and random is not None:
        sides = split_videos(videos, classes, random)
        lists = {list_path: sides.train, test_list: sides.test}
        report.test_videos, report.recordings = len(sides.test), sides.n_groups
        report.notes += sides.notes
        names_of = [[video.name for video in side] for side in (sides.train, sides.test)]
        if not report.shared_groups:
            report.shared_groups = shared_groups(*names_of)
            report.other_side = "the training and the test list"
            report.remedy = "" if random.has_groups else "; --by-group keeps a recording together"
    report.videos, report.classes = len(lists[list_path]), len(classes)
    write_lists(lists, root, classes, sizes)
    return report
