"""The lines of a list file: `path label`, and what other tools write.

| form               | who writes it                                                        |
|--------------------|----------------------------------------------------------------------|
| `path label`       | savimae, VideoMAE (videos), mmaction2; the label may be missing      |
| `path,label`       | the same as CSV, with or without a header such as `path,label`       |
| `path frames label`| VideoMAE and mmaction2, for folders of frames                        |
| `path class`       | the name of a class instead of a number; a comma or a tab also does  |
| Kinetics' CSV      | a header with `youtube_id`, `time_start` and `time_end`              |

The form is that of the first line, and all lines must have it. Paths may contain spaces, so the
form is certain only where a video's extension ends the path, or where the path exists.

Where a video may have several labels, lines are `path walk,talk` or `path 0,3`, and `path -` for a
video of none; where it has numbers, `path 1.5,-3`. A comma or a tab may stand behind the path too.
In CSV with a header the labels are quoted, `path,labels`; numbers have a column each, whose names
are theirs.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from savimae.data.stacks import STACK_EXTENSIONS
from savimae.data.video import VIDEO_EXTENSIONS
from savimae.system.errors import SavimaeError, shown

NATIVE = "path label"
# What a video of a list has: one label at most, any number of labels, or numbers.
ONE, SEVERAL, NUMBERS = KINDS = ("one", "several", "numbers")
NO_LABEL = "-"  # of a video that has none of several
LARGEST = 3e38  # what a float32 can hold
KINETICS = ("youtube_id", "time_start", "time_end")
PATH_COLUMNS = ("path", "video", "video_path", "file", "filename", "file_name", "filepath", "name")
LABEL_COLUMNS = ("label", "class", "class_name", "classname", "category", "action")
LABELS_COLUMNS = ("labels", "classes", *LABEL_COLUMNS)

EXTENSIONS = VIDEO_EXTENSIONS | STACK_EXTENSIONS
_EXTENSION = "|".join(re.escape(each) for each in sorted(EXTENSIONS, reverse=True))
# A path that ends in a video's extension, what separates it from the rest, and the rest.
_VIDEO_LINE = re.compile(rf"(.+(?:{_EXTENSION}))(\s*[,\t]\s*|\s+)(\S.*)", re.IGNORECASE)
_BAD_NUMBER = re.compile(r"-\d+|\d+\.\d+|\d{10,}", re.ASCII)
_SEVERAL_NUMBERS = re.compile(r"\d+(\s*,\s*\d+)+", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
# A folder, and words with commas between.
_FOLDER_LINE = re.compile(r"(.+?)\s+([^\s,]+(?:\s*,\s*[^\s,]+)*)")
_TWO_NUMBERS = re.compile(r"\d+[\s,]+(\d+)", re.ASCII)
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
# The forms of a line whose path is a folder, the narrowest first; the path is the first group.
_FOLDER_FORMS = (
    (r"(.+?)\s*,\s*\d+\s*,\s*\d+", "path,frames,label"),
    (r"(.+?)\s*,\s*\d+", "path,label"),
    (r"(.+?)\s+\d+\s+\d+", "path frames label"),
    (r"(.+)\s+\d+", NATIVE),
    (r"(.+?)\s*,\s*[^,]+", "path,class"),
    (r"(.+)\s+\S+", "path class"),
)


class Entry(NamedTuple):
    """One video of a list."""

    line: int  # its number in the file, from 1
    path: str  # as it is written
    label: int | str | None = None  # a number, the name of a class, or nothing
    labels: tuple[str, ...] = ()  # several, as they are written
    values: tuple[float, ...] = ()


class Lines(NamedTuple):
    """The videos that the lines name, and the form of the lines."""

    entries: list[Entry]
    form: str  # `NATIVE`, or another in words
    columns: Sequence[str] = ()  # names of the values, where a header has them


def parse_lines(
    path: str, lines: Sequence[tuple[int, str]], exists: Callable[[str], bool]
) -> Lines:
    """Read the lines of a list.

    Args:
        path: of the list, for errors.
        lines: number and text of each line that is neither empty nor a comment.
        exists: whether a video's path, as a line has it, leads to something.

    Raises:
        SavimaeError: a line that does not have the form of the first, or whose form is not certain;
            it names the line and the form that is expected.
    """
    if not lines:
        return Lines([], NATIVE)
    columns = _header(lines[0][1])
    if columns is not None:
        return _read_table(path, columns, lines, exists)
    form = _form_of(path, *lines[0], exists)
    entries = []
    for number, text in lines:
        entry = _parse(path, number, text.rstrip(), form)
        if entry is None:
            raise SavimaeError(
                f"{shown(path)}:{number}: `{form}` is expected, as in line {lines[0][0]}, not "
                f"{shown(text.strip())}"
            )
        entries.append(entry)
    return Lines(entries, form)


def refuse_several(path: str, lines: Sequence[tuple[int, str]]) -> None:
    """Refuse lines with more than one label where a video has one, which `parse_lines` may take.

    Raises:
        SavimaeError: names the line, and what such labels are for.
    """
    if lines and _header(lines[0][1]) is not None:
        return
    for number, text in lines:
        match = _VIDEO_LINE.fullmatch(text.strip())
        if match is None or "," in match[2]:
            continue
        if _SEVERAL_NUMBERS.fullmatch(match[3]) or ("," in match[3] and " " not in match[3]):
            raise SavimaeError(
                f"{shown(path)}:{number}: {shown(match[3])[:60]} is several labels; --task "
                "multilabel is for those, and numbers with their names in `# classes` for names "
                "with commas"
            )
        if _DECIMAL.fullmatch(match[3]) and not match[3].isdecimal():
            raise SavimaeError(
                f"{shown(path)}:{number}: {match[3][:20]} is no label, which are whole numbers "
                "from 0, or names; --task regress is for other numbers"
            )


def parse_targets(
    path: str, lines: Sequence[tuple[int, str]], exists: Callable[[str], bool], kind: str
) -> Lines:
    """Read the lines of a list whose videos have several labels, or numbers.

    Args:
        path, lines, exists: as of `parse_lines`.
        kind: SEVERAL or NUMBERS.

    Raises:
        SavimaeError: a line without labels or numbers, a label that is named twice, what is no
            finite number, or not as many as in the first line.
    """
    columns = _header(lines[0][1]) if lines else None
    names: list[str] = []
    form = NATIVE
    found: list[tuple[int, str, list[str]]] = []  # number, path, words
    if columns is not None:
        form = ",".join(columns)
        of_path = next((columns.index(each) for each in PATH_COLUMNS if each in columns), None)
        if of_path is None:
            raise SavimaeError(f"{shown(path)}:{lines[0][0]}: no column `path` in {shown(form)}")
        of_labels = [columns.index(each) for each in LABELS_COLUMNS if each in columns][:1]
        if kind == NUMBERS:
            of_labels = [place for place in range(len(columns)) if place != of_path]
            names = [_fields(lines[0][1])[place] for place in of_labels]
        if not of_labels:
            raise SavimaeError(f"{shown(path)}:{lines[0][0]}: no column `labels` in {shown(form)}")
        for number, text in lines[1:]:
            fields = _row(path, number, text, columns)
            words = [fields[place] for place in of_labels]
            found.append((number, fields[of_path], words if kind == NUMBERS else _words(words[0])))
    else:
        for number, text in lines:
            text = text.strip()
            match = _VIDEO_LINE.fullmatch(text)
            is_path = text.lower().endswith(tuple(VIDEO_EXTENSIONS)) or exists(text)
            parts = (match[1], match[3]) if match else None
            if parts is None and not is_path and (of_folder := _FOLDER_LINE.fullmatch(text)):
                parts = of_folder[1], of_folder[2]
            if parts is None:
                wanted = "`path 1.5`" if kind == NUMBERS else "`path -` for a video of no label"
                what = "number" if kind == NUMBERS else "label"
                raise SavimaeError(
                    f"{shown(path)}:{number}: {shown(text)} has no {what}; write {wanted}"
                )
            found.append((number, parts[0], _words(parts[1])))
    if kind == SEVERAL:
        return Lines([_several(path, *each) for each in found], form)
    entries = [_numbers(path, *each) for each in found]
    for entry in entries:
        if len(entry.values) != len(entries[0].values):
            raise SavimaeError(
                f"{shown(path)}:{entry.line}: {len(entry.values)} numbers, line {entries[0].line} "
                f"has {len(entries[0].values)}; every video needs as many"
            )
    return Lines(entries, form, names)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _several(path: str, number: int, place: str, words: list[str]) -> Entry:
    """A video and its labels. Raises SavimaeError for one that is empty or named twice."""
    if words == [NO_LABEL]:
        return Entry(number, place)
    for word in words:
        if not word or word == NO_LABEL:
            raise SavimaeError(
                f"{shown(path)}:{number}: a label is missing; write `path 0,3` or `path a,b`, "
                "and `path -` for a video of no label"
            )
        if words.count(word) > 1:
            raise SavimaeError(f"{shown(path)}:{number}: label {shown(word)} is there twice")
    return Entry(number, place, labels=tuple(words))


def _numbers(path: str, number: int, place: str, words: list[str]) -> Entry:
    """A video and its numbers. Raises SavimaeError for what is no finite number."""
    values = []
    for word in words:
        value = float(word) if _DECIMAL.fullmatch(word) else math.nan
        if not abs(value) < LARGEST:
            raise SavimaeError(
                f"{shown(path)}:{number}: {shown(word)[:40] or 'nothing'} is no finite number; "
                "write `path 1.5`, or `path 1.5,-3` for several"
            )
        values.append(value)
    return Entry(number, place, values=tuple(values))


# ------------------------------------------------------------------------------ without a header


def _form_of(path: str, number: int, text: str, exists: Callable[[str], bool]) -> str:
    """The form of a line. Raises SavimaeError where more than one form is possible."""
    text = text.strip()
    if match := _VIDEO_LINE.fullmatch(text):
        _, between, rest = match.groups()
        separator = "," if "," in between else " "
        if _TWO_NUMBERS.fullmatch(rest):
            return separator.join(("path", "frames", "label"))
        is_number = _NUMBER.fullmatch(rest) or _BAD_NUMBER.fullmatch(rest)
        return separator.join(("path", "label" if is_number else "class"))
    if text.lower().endswith(tuple(EXTENSIONS)):
        return NATIVE  # a path without a label
    # A folder of frames: what exists decides.
    for pattern, form in _FOLDER_FORMS:
        match = re.fullmatch(pattern, text, re.ASCII)
        if match is None:
            continue
        if form == NATIVE or exists(text):
            return NATIVE
        if exists(match[1]):
            return form
        with_number = text.rpartition(" ")[0].rstrip()
        if with_number and exists(with_number):
            return NATIVE
        if not form.endswith("class"):
            raise SavimaeError(
                f"{shown(path)}:{number}: `{form}` and `{NATIVE}` are both possible, since neither "
                f"{shown(match[1])} nor {shown(with_number or text)} is there; say with --root "
                f"where paths start, or write `{NATIVE}` lines"
            )
    return NATIVE


def _parse(path: str, number: int, text: str, form: str) -> Entry | None:
    """A line of a form; None if it does not have it. Raises SavimaeError for a label below 0."""
    match = _VIDEO_LINE.fullmatch(text)
    if form == NATIVE:
        if match is not None:
            entry, between, label = match.groups()
            is_label = "," not in between and (
                _NUMBER.fullmatch(label) or _BAD_NUMBER.fullmatch(label)
            )
            if not is_label:
                return None
        else:
            entry, _, label = text.rpartition(" ")
        if entry and _BAD_NUMBER.fullmatch(label):
            raise SavimaeError(
                f"{shown(path)}:{number}: label {label[:20]} is no whole number from 0 to "
                f'999999999; if it is no label, write `# labels: "{NUMBERS}"` above'
            )
        if entry and _NUMBER.fullmatch(label):
            return Entry(number, entry.rstrip(), int(label))
        return Entry(number, text, None)
    separator, word = (r"\s*,\s*", "[^,]+") if "," in form else (r"\s+", r"\S+")
    last = r"\d{1,9}" if form.endswith("label") else ".+" if match is not None else word
    frames = rf"{separator}\d+" if "frames" in form else ""
    if match is not None:
        ends = re.escape(match[1])
        found = re.fullmatch(rf"({ends}){frames}{separator}({last})", text, re.ASCII)
    else:
        found = re.fullmatch(rf"(.+?){frames}{separator}({last})", text, re.ASCII)
    if found is None:
        return None
    label = found[2].strip()
    return Entry(number, found[1], int(label) if form.endswith("label") else label)


# --------------------------------------------------------------------------------- with a header


def _header(text: str) -> list[str] | None:
    """The names of the columns, if the first line of a list has them."""
    columns = [field.lower() for field in _fields(text)]
    is_table = set(KINETICS) <= set(columns) or (
        len(columns) > 1 and any(name in columns for name in PATH_COLUMNS)
    )
    return columns if is_table else None


def _row(path: str, number: int, text: str, columns: Sequence[str]) -> list[str]:
    """The fields of a line below a header. Raises SavimaeError if they are not as many."""
    fields = _fields(text)
    if len(fields) != len(columns):
        raise SavimaeError(
            f"{shown(path)}:{number}: {len(fields)} fields, the header has {len(columns)}: "
            f"{shown(','.join(columns))}"
        )
    return fields


def _fields(text: str) -> list[str]:
    """The fields of a line of CSV; none of one that is no CSV."""
    try:
        return [field.strip() for field in next(csv.reader([text]), [])]
    except csv.Error:  # a field of more than 128 kB
        return []


def _read_table(
    path: str,
    columns: list[str],
    lines: Sequence[tuple[int, str]],
    exists: Callable[[str], bool],
) -> Lines:
    of_label = next((name for name in LABEL_COLUMNS if name in columns), None)
    rows: list[tuple[int, dict[str, str]]] = []
    for number, text in lines[1:]:
        fields = _row(path, number, text, columns)
        rows.append((number, dict(zip(columns, fields, strict=True))))
    if set(KINETICS) <= set(columns):
        places = _kinetics_places(path, rows, of_label, exists)
        form = "Kinetics' CSV"
    else:
        of_path = next(name for name in PATH_COLUMNS if name in columns)
        places = [row[of_path] for _, row in rows]
        form = ",".join(columns)
    labels = [row[of_label] if of_label else "" for _, row in rows]
    are_numbers = all(_NUMBER.fullmatch(label) for label in labels)
    entries = []
    for (number, _), place, label in zip(rows, places, labels, strict=True):
        if of_label and not label:
            raise SavimaeError(f"{shown(path)}:{number}: no {of_label} in this line")
        value = int(label) if are_numbers else label
        entries.append(Entry(number, place, value if of_label else None))
    return Lines(entries, form)


class _KineticsLayout(NamedTuple):
    """How a copy of Kinetics lies on the disk."""

    folder: str  # "" for none, else what separates the words of a class in the name of its folder
    has_times: bool  # SOX5yA1l24A_000010_000020, as the usual download tools call a video
    extension: str

    def place(self, row: dict[str, str], of_label: str | None) -> str:
        """Where the video of a row lies."""
        name = row["youtube_id"]
        if self.has_times:
            name += f"_{int(row['time_start']):06}_{int(row['time_end']):06}"
        if of_label is None or not self.folder:
            return name + self.extension
        return f"{row[of_label].replace(' ', self.folder)}/{name}{self.extension}"


def _kinetics_places(
    path: str,
    rows: Sequence[tuple[int, dict[str, str]]],
    of_label: str | None,
    exists: Callable[[str], bool],
) -> list[str]:
    """Where the videos of Kinetics' CSV lie: all as the first one that is found."""
    for number, row in rows:
        if not (_NUMBER.fullmatch(row["time_start"]) and _NUMBER.fullmatch(row["time_end"])):
            raise SavimaeError(
                f"{shown(path)}:{number}: time_start and time_end are not whole numbers of seconds"
            )
    layouts = list(
        map(
            _KineticsLayout._make,
            itertools.product((" ", "_", ""), (True, False), (".mp4", ".mkv", ".webm")),
        )
    )
    for _, row in rows:
        for layout in layouts:
            if exists(layout.place(row, of_label)):
                return [layout.place(each, of_label) for _, each in rows]
    example = layouts[0].place(rows[0][1], of_label) if rows else "anything"
    raise SavimaeError(
        f"{shown(path)}: none of the {len(rows)} videos of Kinetics' CSV is there, called "
        f"{shown(example)} or similarly; say with --root where the videos are"
    )
