"""Making list files: of a folder, or of an official split of UCF101 or HMDB51."""

from __future__ import annotations

import dataclasses

from savimae.data.labels import shared_videos
from savimae.data.lists import (
    find_videos,
    match_split,
    read_list,
    read_split,
    shared_groups,
    video_stem,
    write_list,
)
from savimae.system.errors import UsageError, shown


@dataclasses.dataclass
class IndexReport:
    """What went into a list and what is wrong with it."""

    videos: int
    classes: int
    missing: list[str]  # named by the split, not there
    unreadable: list[tuple[str, str]]  # path, reason
    shared_groups: list[str]  # recordings with clips here and on the other side
    other_side: str = ""  # what they are shared with
    shared_videos: list[str] = dataclasses.field(default_factory=list)  # paths, here and there


def make_index(
    root: str,
    list_path: str,
    split_folder: str | None = None,
    split: int = 1,
    part: str = "train",
    against: str | None = None,
    sizes: bool = False,
) -> IndexReport:
    """Write the list of the videos below `root`.

    Without `split_folder`, all of them, labelled by their folders in sorted order. With it, those
    of one part ("train" or "test") of an official split, with the split's labels.

    Args:
        against: a list that should share no video and no group (recording) with this one; with an
            official split its other part is checked as well.
        sizes: note the size of each video, so that readers of the list need not look at them.

    Raises:
        UsageError: no videos below `root`, or no split files.
        SavimaeError: a file that cannot be read or understood.
    """
    found = find_videos(root)
    report = IndexReport(0, 0, [], found.unreadable, [])
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
    if against is not None:
        others = read_list(against).videos
        report.shared_videos = [video.path for video in shared_videos(videos, others)]
        if not report.shared_groups:
            report.shared_groups = shared_groups(
                [video.name for video in videos], [video.name for video in others]
            )
            report.other_side = f"this list and {shown(against)}"
    report.videos, report.classes = len(videos), len(classes)
    write_list(list_path, videos, root, classes, sizes)
    return report
