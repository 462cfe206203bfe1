"""Which videos there are: folders, list files, and the official splits of UCF101 and HMDB51.

A list file holds one video a line, `path label`. The path may contain spaces: the label is what
follows the last one, and may be missing. What other tools write is read as well, see `list_lines`.
Lines that begin with # are comments; five say more:

    # root: "../UCF-101"              relative paths start here (relative to the list's own folder)
    # classes: ["ApplyEyeMakeup", …]  the names of labels 0, 1, …
    # bytes: [413092, …]              the size of each video, so that nobody needs to look
    # labels: "several"               a video may have several labels, `path 0,3`; or "numbers":
                                      it has numbers, `path 1.5,-3`
    # values: ["valence", …]          the names of such numbers

Without a root, relative paths start at the list's folder, or at the working directory if only that
one holds the first video (published lists are written so).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence

from savimae.data.list_lines import (
    KINDS,
    NATIVE,
    NO_LABEL,
    NUMBERS,
    ONE,
    SEVERAL,
    Entry,
    parse_lines,
    parse_targets,
    refuse_several,
)
from savimae.data.stacks import holds_one_image, is_tiff
from savimae.data.video import is_image, is_video
from savimae.system.errors import SavimaeError, UsageError, one_line, shown
from savimae.system.files import atomic_file, parse_json, read_json
from savimae.system.progress import Progress
from savimae.system.settings import CONFIG

ARRAYS = "patches"  # what config.json of a folder of saliency arrays calls its output
FRAME_COST_BYTES = 10_000  # a JPEG frame of 320x240, so that folders weigh like files unasked


@dataclasses.dataclass(frozen=True)
class Video:
    """One video of a data set."""

    path: str  # the file, or the folder of frames
    name: str  # `Class/video`: what outputs are called, relative to their root, no extension
    label: int | None = None
    cost: int = 0  # bytes to decode, estimated; weighs shards and progress
    labels: tuple[int, ...] | None = None  # where a video may have several; ascending
    values: tuple[float, ...] | None = None  # where it has numbers


def label_of(video: Video) -> int:
    """The label of a video of a list whose videos all have one."""
    if video.label is None:
        raise AssertionError("a video without a label")
    return video.label


def labels_of(video: Video) -> tuple[int, ...]:
    """All labels of a video, whether it has one or may have several."""
    return (label_of(video),) if video.labels is None else video.labels


def values_of(video: Video) -> tuple[float, ...]:
    """The numbers of a video of a list whose videos all have some."""
    if video.values is None:
        raise AssertionError("a video without numbers")
    return video.values


@dataclasses.dataclass
class VideoList:
    """Videos in a fixed order, and what was noticed while they were collected."""

    videos: list[Video]
    root: str  # the folder that names are relative to
    classes: list[str] = dataclasses.field(default_factory=list)  # or names of the numbers
    unreadable: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # path, reason
    n_ignored: int = 0  # files that are neither video nor frame
    n_arrays: int = 0  # of those, saliency arrays
    form: str = NATIVE  # of the lines of a list


# --------------------------------------------------------------------------------- collecting


def find_videos(
    source: str,
    root: str | None = None,
    weigh: bool = True,
    quiet: bool = False,
    kind: str | None = None,
) -> VideoList:
    """The videos of SOURCE: a folder of videos or of frame folders, a list file, or one video.

    Args:
        source: a folder (searched to any depth, links followed), a list file (`.txt`, `.csv` or
            `.list`), a video file or a frame folder.
        root: where the relative paths of a list start, if not where the list says.
        weigh: estimate costs. It looks at every file; without, only folders and lists are read.
        quiet: show no progress.
        kind: what its videos must have, one of `list_lines.KINDS`; None: what a list says it has,
            else one label or none.

    Raises:
        UsageError: nothing there, a `root` for something that is no list, or something that is no
            list where videos must have several labels or numbers.
        SavimaeError: a list that cannot be read.
    """
    if kind in (SEVERAL, NUMBERS) and os.path.exists(source) and not _is_list_file(source):
        what = "several labels" if kind == SEVERAL else "numbers"
        line = "path label,label" if kind == SEVERAL else "path 1.5"
        raise UsageError(
            f"{shown(source)}: no list, and only a list can say {what} of a video; write a .txt "
            f"file with `{line}` lines"
        )
    with Progress("listing videos", quiet=quiet, delay_s=1.0) as progress:
        found = _find_videos(source, root, weigh, progress, kind)
    if found.form != NATIVE and not quiet:
        print(f"note: {shown(source)}: read as `{found.form}`", file=sys.stderr, flush=True)
    return found


def _find_videos(
    source: str, root: str | None, weigh: bool, progress: Progress, kind: str | None
) -> VideoList:
    if root is not None and os.path.exists(source) and not _is_list_file(source):
        raise UsageError(
            f"--root says where the paths of a list start, and {shown(source)} is no list; leave "
            "it out"
        )
    if os.path.isdir(source):
        found = _search_folder(source, weigh, progress)
        if not found.videos and not found.unreadable:
            if found.n_arrays:
                raise UsageError(
                    f"{shown(source)}: saliency arrays, and no videos; name the videos they were "
                    "made of"
                )
            raise UsageError(
                f"{shown(source)}: no videos and no folders of frames in it; videos end in .avi, "
                ".mp4, .mkv, .webm, .mov and the like, stacks in .tif, .npy or .npz, frames are "
                "JPEG, PNG or TIFF"
            )
    elif _is_list_file(source):
        found = read_list(source, root, weigh, progress, kind)
        if not found.videos:
            raise UsageError(
                f"{shown(source)}: a list without videos; write one `path label` a line"
            )
    elif os.path.isfile(source):
        _refuse_array(source)
        folder, name = os.path.split(source)
        video = Video(source, video_stem(name), cost=os.path.getsize(source))
        found = VideoList([video], folder)
    else:
        reason = (
            "neither a file nor a folder" if os.path.exists(source) else "no such file or folder"
        )
        raise UsageError(f"{shown(source)}: {reason}")
    return found


def holds_arrays(folder: str) -> bool:
    """Whether `folder` is one that `savimae preprocess` wrote: its .npy files are no videos."""
    try:
        return bool(read_json(os.path.join(folder, CONFIG)).get("output") == ARRAYS)
    except (OSError, ValueError, AttributeError):  # none, or that of something else
        return False


def arrays_above(path: str, known: dict[str, bool] | None = None) -> str | None:
    """The folder of saliency arrays that `path` is or lies in; None if it does not.

    Args:
        known: of other paths, which folders hold arrays; it grows.
    """
    known = {} if known is None else known
    folder = os.path.abspath(path)
    while True:
        if folder not in known:
            known[folder] = holds_arrays(folder)
        if known[folder]:
            return folder
        folder, inside = os.path.split(folder)
        if not inside:
            return None


def _refuse_array(path: str, known: dict[str, bool] | None = None) -> None:
    """Raises UsageError for a file that is a saliency array, by the folder it lies in."""
    if is_array_name(path) and (folder := arrays_above(path, known)):
        raise UsageError(
            f"{shown(path)}: not a video: {shown(folder)} holds saliency arrays; name the video, "
            "and keep stacks of frames elsewhere"
        )


def is_array_name(path: str) -> bool:
    return path.lower().endswith(".npy")


def _is_list_file(source: str) -> bool:
    return os.path.isfile(source) and is_list(source)


def root_for(source: str, others: Sequence[str], root: str | None) -> str | None:
    """`root` if `source` is a list; None if it is not, but one of `others` is, which uses it."""
    if root is not None and not _is_list_file(source) and any(map(_is_list_file, others)):
        return None
    return root


def is_list(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in (".txt", ".csv", ".list")


def video_stem(name: str) -> str:
    """`name` without a video's extension; other dots belong to the name."""
    return os.path.splitext(name)[0] if is_video(name) else name


def _search_folder(root: str, weigh: bool, progress: Progress) -> VideoList:
    found = VideoList([], root)
    _search(root, "", found, set(), weigh, progress, arrays_above(root) is not None)
    found.videos.sort(key=lambda video: video.name)
    found.unreadable.sort()
    if all("/" in video.name for video in found.videos):
        found.classes = sorted({os.path.dirname(video.name) for video in found.videos})
        label = {name: index for index, name in enumerate(found.classes)}
        found.videos = [
            dataclasses.replace(video, label=label[os.path.dirname(video.name)])
            for video in found.videos
        ]
    return found


def _search(
    folder: str,
    name: str,
    found: VideoList,
    ancestors: set[tuple[int, int]],
    weigh: bool,
    progress: Progress,
    of_arrays: bool,
) -> None:
    """Collect the videos below `folder`, whose own name is `name` relative to the root.

    With `of_arrays` its .npy files are saliency arrays.
    """
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
    except OSError as error:
        found.unreadable.append((folder, one_line(error)))
        return
    if identity in ancestors:  # a link back to a folder we came through
        return
    progress.show(None, f"{len(found.videos)} found")
    if any(entry.name == CONFIG for entry in visible):
        of_arrays = of_arrays or holds_arrays(folder)
    folders, images = [], []
    tiffs = sorted(entry.path for entry in visible if is_tiff(entry.name))
    # A TIFF file holds a frame or many: the first of a folder tells.
    of_frames = bool(tiffs) and holds_one_image(tiffs[0])
    n_videos = 0
    for entry in visible:
        child = f"{name}/{entry.name}" if name else entry.name
        try:
            if entry.is_dir():
                folders.append((entry.path, child))
            elif is_image(entry.name) or (of_frames and is_tiff(entry.name)):
                images.append(entry)
            elif of_arrays and is_array_name(entry.name):
                found.n_arrays += 1
                found.n_ignored += 1
            elif is_video(entry.name):
                n_videos += 1
                cost = entry.stat().st_size if weigh else 0
                found.videos.append(Video(entry.path, video_stem(child), cost=cost))
            else:
                found.n_ignored += 1
        except OSError as error:
            found.unreadable.append((entry.path, one_line(error)))
    if images and not folders and not n_videos:
        frames_name = name or os.path.basename(os.path.abspath(folder))
        found.videos.append(Video(folder, frames_name, cost=len(images) * FRAME_COST_BYTES))
    elif not visible and name:
        found.unreadable.append((folder, "an empty folder: no videos and no frames"))
    else:
        found.n_ignored += len(images)
    for path, child in folders:
        _search(path, child, found, ancestors | {identity}, weigh, progress, of_arrays)


def distinct_videos(videos: Iterable[Video]) -> list[Video]:
    """The videos without repetitions, in order: for work that makes one output for each video.

    Raises:
        UsageError: two different videos whose outputs would have the same name.
    """
    seen: dict[str, Video] = {}
    for video in videos:
        other = seen.setdefault(video.name, video)
        if other.path != video.path:
            raise UsageError(
                f"{shown(other.path)} and {shown(video.path)}: both would be written to "
                f"{shown(video.name)}; rename or remove one"
            )
    return list(seen.values())


# --------------------------------------------------------------------------------- list files


def read_list(
    path: str,
    root: str | None = None,
    weigh: bool = False,
    progress: Progress | None = None,
    kind: str | None = None,
) -> VideoList:
    """Read a list file; see the top of this module for the format.

    Args:
        path: the list.
        root: where relative paths start, if not where the list says.
        weigh: estimate costs, which looks at every video.
        progress: where to show how far it is.
        kind: see `find_videos`.

    Raises:
        SavimaeError: not a text file, a label that is not a number from 0, or a list of another
            kind.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            lines = [line.rstrip("\r\n") for line in file]
    except OSError as error:
        raise SavimaeError(f"{shown(path)}: {one_line(error)}") from error
    if any("\0" in line or "\r" in line for line in lines):
        raise SavimaeError(f"{shown(path)}: not a list of videos; write one `path label` a line")
    header: dict[str, object] = {}
    of_videos: list[tuple[int, str]] = []
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            key, _, value = line[1:].strip().partition(": ")
            if key in ("root", "classes", "bytes", "labels", "values"):
                try:
                    header[key] = parse_json(value)
                except ValueError:
                    raise SavimaeError(f"{shown(path)}:{number}: {key} is not JSON") from None
        elif line.strip():
            of_videos.append((number, line))
    list_folder = os.path.dirname(os.path.abspath(path))
    if root is None and isinstance(header.get("root"), str):
        root = os.path.join(list_folder, str(header["root"]))
        try:
            os.stat(root)
        except OSError:
            pass  # reported with the first video
        except ValueError:  # a NUL byte, or text that no file system can hold
            raise SavimaeError(f"{shown(path)}: root is not a path") from None
    roots = [list_folder, os.getcwd()] if root is None else [root]

    def exists(entry: str) -> bool:
        return any(os.path.exists(os.path.join(each, entry)) for each in roots)

    kind = _kind(path, header, kind, of_videos)
    if kind == ONE:
        entries, form, _ = parse_lines(path, of_videos, exists)
    else:
        entries, form, columns = parse_targets(path, of_videos, exists, kind)
    if root is None:
        root = list_folder
        first = entries[0].path if entries else ""
        if not os.path.exists(os.path.join(root, first)) and exists(first):
            root = os.getcwd()
    root = os.path.normpath(root)
    classes = header.get("classes", [])
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise SavimaeError(f"{shown(path)}: classes is not a list of names")
    labels, of_several = None, None
    if kind == ONE:
        labels, classes = _numbered(path, entries, classes)
    elif kind == SEVERAL:
        of_several, classes = _all_numbered(path, entries, classes)
    else:
        classes = _names_of_values(path, entries, columns, header.get("values", []))
    sizes = header.get("bytes")
    if sizes is not None and not (
        isinstance(sizes, list)
        and len(sizes) == len(entries)
        and all(type(size) is int and 0 <= size < 2**60 for size in sizes)
    ):
        raise SavimaeError(
            f"{shown(path)}: bytes is not one number for each of {len(entries)} videos; remove "
            "that line, or make the list again"
        )
    videos = []
    known: dict[str, bool] = {}
    for index, entry in enumerate(entries):
        if progress is not None and index % 1000 == 0:
            progress.show(index / len(entries), f"{index}/{len(entries)}")
        video_path = os.path.normpath(os.path.join(root, entry.path))
        _refuse_array(video_path, known)
        cost = 0
        if weigh:
            cost = _cost(video_path) if sizes is None else sizes[index]
        videos.append(
            Video(
                video_path, output_name(video_path, root),
                None if labels is None else labels[index], cost,
                None if of_several is None else of_several[index],
                entry.values if kind == NUMBERS else None,
            )
        )  # fmt: skip
    return VideoList(videos, root, classes, form=form)


def _kind(
    path: str, header: Mapping[str, object], wanted: str | None, lines: Sequence[tuple[int, str]]
) -> str:
    """What the videos of a list have, one of KINDS.

    Raises:
        SavimaeError: not what is wanted.
    """
    said = header.get("labels")
    if said is not None and said not in KINDS:
        raise SavimaeError(f"{shown(path)}: labels is none of {', '.join(KINDS)}")
    if said is not None and wanted is not None and said != wanted:
        tasks = dict(zip(KINDS, ("classify", "multilabel", "regress"), strict=True))
        raise SavimaeError(
            f"{shown(path)}: `# labels` says {said}, which --task {tasks[str(said)]} is for"
        )
    if wanted == ONE:
        refuse_several(path, lines)
    return str(wanted or said or ONE)


def _all_numbered(
    path: str, entries: Sequence[Entry], classes: list[str]
) -> tuple[list[tuple[int, ...]], list[str]]:
    """Several labels of each video as numbers, and the names of the classes if they have names.

    They are names unless all of them are numbers.

    Raises:
        SavimaeError: as `_numbered`.
    """
    words = {word for entry in entries for word in entry.labels}
    are_numbers = all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words)
    flat = [
        Entry(entry.line, entry.path, int(word) if are_numbers else word)
        for entry in entries
        for word in entry.labels
    ]
    numbers, classes = _numbered(path, flat, classes)
    left = iter([-1 if number is None else number for number in numbers])
    of_videos = []
    for entry in entries:
        found = sorted({next(left) for _ in entry.labels})
        if len(found) < len(entry.labels):  # 1 and 01
            raise SavimaeError(f"{shown(path)}:{entry.line}: a label is there twice")
        of_videos.append(tuple(found))
    return of_videos, classes


def _names_of_values(
    path: str, entries: Sequence[Entry], columns: Sequence[str], names: object
) -> list[str]:
    """What the numbers of a video are called: as `# values` or the columns say, if either does.

    Raises:
        SavimaeError: not a name of its own for each.
    """
    n = len(entries[0].values) if entries else 0
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise SavimaeError(f"{shown(path)}: values is not a list of names")
    names = list(names or columns)
    if entries and names and (len(names) != n or len(set(names)) != n):
        raise SavimaeError(
            f"{shown(path)}: {len(names)} names of numbers, {', '.join(map(shown, names))}; "
            f"{n} that differ are needed, one for each number of a video"
        )
    return names


def _numbered(
    path: str, entries: Sequence[Entry], classes: list[str]
) -> tuple[list[int | None], list[str]]:
    """Labels as numbers, and the names of the classes where they have names.

    Raises:
        SavimaeError: a label that `classes`, which the list itself gives, do not have.
    """
    named = [entry.label for entry in entries if isinstance(entry.label, str)]
    if named and not classes:
        classes = sorted(set(named))
    number_of = {name: number for number, name in enumerate(classes)}
    labels: list[int | None] = []
    for entry in entries:
        label = entry.label
        if isinstance(label, str):
            if label not in number_of:
                raise SavimaeError(
                    f"{shown(path)}:{entry.line}: {shown(label)} is not one of the classes that "
                    "the list names"
                )
            label = number_of[label]
        elif label is not None and classes and label >= len(classes):
            raise SavimaeError(
                f"{shown(path)}:{entry.line}: label {label} has no name; classes names "
                f"{len(classes)}, from 0"
            )
        labels.append(label)
    return labels, classes


def _cost(path: str) -> int:
    try:
        status = os.stat(path)
        return FRAME_COST_BYTES * 100 if stat.S_ISDIR(status.st_mode) else status.st_size
    except OSError:  # missing: reported when its turn comes
        return 0


def output_name(path: str, root: str) -> str:
    """What the outputs of the video at `path` are called: its path below `root`, no extension.

    A video outside `root` is called by its last two parts, `Class/video`, as in published lists of
    absolute paths. It does not depend on the other videos of a list, so that preprocessing all of a
    data set and training on a part of it agree.
    """
    inside = os.path.join(root, "")
    relative = path[len(inside) :] if path.startswith(inside) else os.path.relpath(path, root)
    if relative.startswith(os.pardir):
        relative = os.path.join(*os.path.normpath(path).split(os.sep)[-2:]).lstrip(os.sep)
    return video_stem(relative)


def write_list(
    path: str, videos: Sequence[Video], root: str, classes: Sequence[str], sizes: bool = False
) -> None:
    """Write a list file, paths relative to `root`; with `sizes` the costs of the videos as well.

    Raises:
        SavimaeError: a path with a line break, which the format cannot hold.
    """
    write_lists({path: videos}, root, classes, sizes)


def write_lists(
    videos_of: Mapping[str, Sequence[Video]], root: str, classes: Sequence[str], sizes: bool = False
) -> None:
    """Write several list files of one data set by their paths, or none. As `write_list`."""
    contents = {
        path: _list_content(path, videos, root, classes, sizes)
        for path, videos in videos_of.items()
    }
    for path, content in contents.items():
        with atomic_file(path) as file:
            file.write(content)


def _list_content(
    path: str, videos: Sequence[Video], root: str, classes: Sequence[str], sizes: bool
) -> bytes:
    """What the list at `path` holds. Raises as `write_list`."""
    list_folder = os.path.dirname(os.path.abspath(path))
    relative_root = os.path.relpath(os.path.abspath(root), list_folder)
    lines = [
        f"# {len(videos)} videos, {len(classes)} classes",
        f"# root: {json.dumps(relative_root)}",
        f"# classes: {json.dumps(list(classes))}",
    ]
    if any(video.labels is not None for video in videos):
        lines.append(f"# labels: {json.dumps(SEVERAL)}")
    elif any(video.values is not None for video in videos):
        named = [f"# values: {json.dumps(list(classes))}"] if classes else []
        lines[0] = f"# {len(videos)} videos"
        lines[2:] = [f"# labels: {json.dumps(NUMBERS)}", *named]
    if sizes:
        lines.append(f"# bytes: {json.dumps([video.cost for video in videos])}")
    for video in videos:
        entry = os.path.relpath(video.path, root)
        if "\n" in entry or "\r" in entry:
            raise SavimaeError(f"{shown(entry)}: a list cannot hold a line break; rename the video")
        if entry.startswith("#") or entry != entry.strip():
            entry = os.path.join(os.curdir, entry)
        lines.append(f"{entry} {_written(video)}".rstrip())
    return "\n".join(lines).encode("utf-8", "surrogateescape") + b"\n"


def _written(video: Video) -> str:
    """What a line says of a video behind its path."""
    if video.values is not None:
        return ",".join(map(repr, video.values))
    if video.labels is not None:
        return ",".join(map(str, video.labels)) or NO_LABEL
    return "" if video.label is None else str(video.label)


# ---------------------------------------------------------------------------- official splits


@dataclasses.dataclass(frozen=True)
class Split:
    """One official split: class names in label order, and (class, file name) pairs."""

    classes: list[str]
    train: list[tuple[str, str]]
    test: list[tuple[str, str]]


def read_split(folder: str, number: int) -> Split:
    """Read official split `number` (1, 2 or 3) of UCF101 or HMDB51 from its folder of text files.

    UCF101: `classInd.txt`, `trainlist01.txt`, `testlist01.txt`, …. HMDB51: one
    `<class>_test_split1.txt` per class, with 1 for training, 2 for testing, 0 for neither.

    Raises:
        UsageError: neither set of files is there.
        SavimaeError: a line that cannot be understood.
    """
    if os.path.exists(os.path.join(folder, "classInd.txt")):
        return _read_ucf101_split(folder, number)
    suffix = f"_test_split{number}.txt"
    names = sorted(name for name in _listdir(folder) if name.endswith(suffix))
    if names:
        return _read_hmdb51_split(folder, names, suffix)
    raise UsageError(
        f"{shown(folder)}: neither UCF101's classInd.txt nor HMDB51's *{suffix} is in it"
    )


SPLIT_FOLDERS = {"ucf101": "ucfTrainTestlist", "hmdb51": "testTrainMulti_7030_splits"}


def find_split_folder(dataset: str, root: str) -> str:
    """Where the official split files of a data set lie: under their usual name, in its folder of
    videos or beside it.

    Raises:
        UsageError: an unknown data set, or no such folder.
    """
    if dataset not in SPLIT_FOLDERS:
        raise UsageError(f"dataset {dataset!r} is not one of {', '.join(SPLIT_FOLDERS)}")
    name = SPLIT_FOLDERS[dataset]
    for folder in (os.path.join(root, name), os.path.join(os.path.dirname(root) or ".", name)):
        if os.path.isdir(folder):
            return folder
    raise UsageError(
        f"{shown(root)}: no {name} in it or beside it; name the folder of split files with --splits"
    )


def _listdir(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise UsageError(f"{shown(folder)}: {one_line(error)}") from error


def _split_lines(path: str, n_fields: int) -> list[list[str]]:
    """Fields of each line, at least `n_fields` of them."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = [(number, line.split()) for number, line in enumerate(file, 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SavimaeError(f"{shown(path)}: {one_line(error)}") from error
    for number, fields in rows:
        if len(fields) < n_fields:
            raise SavimaeError(f"{shown(path)}:{number}: {n_fields} fields expected")
    return [fields for _, fields in rows]


def _read_ucf101_split(folder: str, number: int) -> Split:
    rows = _split_lines(os.path.join(folder, "classInd.txt"), 2)
    if not all(index.isdecimal() and len(index) < 10 for index, *_ in rows):
        raise SavimaeError(f"{shown(folder)}/classInd.txt: lines must read `number class`")
    classes = [name for _, name in sorted((int(index), name) for index, name, *_ in rows)]

    def entries(part: str) -> list[tuple[str, str]]:
        path = os.path.join(folder, f"{part}list{number:02}.txt")
        pairs = []
        for fields in _split_lines(path, 1):
            class_name, _, file_name = fields[0].rpartition("/")
            if class_name not in classes:
                raise SavimaeError(
                    f"{shown(path)}: {shown(fields[0])} is of no class in classInd.txt"
                )
            pairs.append((class_name, file_name))
        return pairs

    return Split(classes, entries("train"), entries("test"))


def _read_hmdb51_split(folder: str, names: list[str], suffix: str) -> Split:
    classes = [name.removesuffix(suffix) for name in names]
    parts: dict[str, list[tuple[str, str]]] = {"0": [], "1": [], "2": []}
    for class_name, name in zip(classes, names, strict=True):
        for file_name, part, *_ in _split_lines(os.path.join(folder, name), 2):
            if part not in parts:
                raise SavimaeError(f"{shown(os.path.join(folder, name))}: {part} is not 0, 1 or 2")
            parts[part].append((class_name, file_name))
    return Split(classes, parts["1"], parts["2"])


def match_split(
    entries: Iterable[tuple[str, str]], classes: Sequence[str], found: VideoList
) -> tuple[list[Video], list[str]]:
    """Find the videos that a split names among those below a root.

    Extensions are not compared: frame folders and re-encoded files of the same name match.

    Returns:
        The videos with the split's labels (from 0, in the order of `classes`), and the missing.
    """
    by_name = {tuple(video.name.split("/")[-2:]): video for video in found.videos}
    videos, missing = [], []
    for class_name, file_name in entries:
        video = by_name.get((class_name, video_stem(file_name)))
        if video is None:
            missing.append(f"{class_name}/{file_name}")
        else:
            videos.append(dataclasses.replace(video, label=classes.index(class_name)))
    return videos, missing


def group_of(name: str) -> str | None:
    """The group of a video, whose clips were cut from one recording; None where names do not tell.

    UCF101: `Class/v_Class_g08_c01` -> `Class/g08`. HMDB51: `wave/RATRACE_wave_f_nm_np1_fr_goo_37`
    -> `wave/RATRACE`.
    """
    class_name, _, stem = name.rpartition("/")
    if match := re.fullmatch(r"v_.+_(g\d+)_c\d+", stem):
        return f"{class_name}/{match[1]}"
    class_name = class_name.rpartition("/")[2]
    source = stem.partition(f"_{class_name}_")[0]
    return f"{class_name}/{source}" if class_name and source != stem else None


def shared_groups(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Groups that have videos on both sides, sorted: they would leak from one to the other."""
    groups = [{group_of(name) for name in side} for side in (names, others)]
    return sorted(group for group in groups[0] & groups[1] if group is not None)


def names_digest(videos: Sequence[Video]) -> str:
    """How many videos, and a hash of their names."""
    names = "\n".join(video.name for video in videos).encode("utf-8", "surrogateescape")
    return f"{len(videos)} ({hashlib.sha256(names).hexdigest()[:12]})"


def find_readable_videos(
    data: str, root: str | None = None, quiet: bool = False, kind: str | None = None
) -> VideoList:
    """The videos of a list or folder; see `find_videos`.

    Raises:
        UsageError: as `find_videos`.
        SavimaeError: a folder among them cannot be read, or holds nothing.
    """
    found = find_videos(data, root, weigh=False, quiet=quiet, kind=kind)
    for path, reason in found.unreadable:
        raise SavimaeError(f"{shown(path)}: {reason}; mend or remove it")
    return found


def find_labelled_videos(
    data: str, root: str | None = None, quiet: bool = False, kind: str | None = None
) -> VideoList:
    """The videos of a list with labels or numbers, or of a folder of class folders.

    Args:
        kind: see `find_videos`; None: one label.

    Raises:
        UsageError: one has no label.
        SavimaeError: as `find_readable_videos`.
    """
    found = find_readable_videos(data, root, quiet, kind)
    for video in found.videos:
        if kind in (None, ONE) and video.label is None:
            raise UsageError(
                f"{shown(data)}: {shown(video.path)} has no label; write `path label` lines, or "
                "make the list with `savimae index`"
            )
    return found


def find_both_sides(
    train: str,
    test: str,
    root: str | None = None,
    quiet: bool = False,
    kind: str | None = None,
) -> tuple[VideoList, VideoList]:
    """Training and test videos, each of a list with labels or of a folder of class folders.

    Args:
        root: where relative paths of lists start; one side at least must be a list.
        kind: see `find_labelled_videos`.

    Raises: as `find_labelled_videos`.
    """
    both = (train, test)
    found = [find_labelled_videos(path, root_for(path, both, root), quiet, kind) for path in both]
    return found[0], found[1]
