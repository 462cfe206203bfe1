"""How far the arrays of a data set, or a training run, have come: read from their files.

The queue is asked where there is one. A job is found in it by its name, which follows from the
folder that it makes (`slurm.script.job_name`), so scripts that were submitted by hand are found as
well.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from savimae.data.lists import Video, distinct_videos, find_videos
from savimae.data.shards import deal
from savimae.saliency.config import SaliencyConfig
from savimae.saliency.makers import ArrayMaker
from savimae.saliency.survey import Survey, survey
from savimae.slurm.jobs import Entry, Record, queue
from savimae.slurm.script import TRAINING, job_name
from savimae.system.errors import SavimaeError, shown
from savimae.system.files import parse_json, read_json
from savimae.system.settings import CONFIG
from savimae.training.log import LOG, read_lines, read_settings
from savimae.training.scores import is_test


@dataclasses.dataclass(frozen=True)
class Queue:
    """What waits or runs of some jobs."""

    entries: list[Entry]
    words: str  # the same for people, or why nobody could be asked


@dataclasses.dataclass(frozen=True)
class ArrayProgress:
    """How far the arrays of a data set have come."""

    output: str
    record: Record
    source: str  # the videos
    n_shards: int
    n_videos: int
    looked: Survey
    unreadable: Sequence[tuple[str, str]]  # folders, with the reasons
    missing_parts: list[int]  # shards with videos that have no array
    idle_parts: list[int]  # those that neither wait nor run
    failed: list[tuple[Video, str]]  # of the missing videos, with the reasons
    ended: list[tuple[int, str]]  # idle parts that have a log, with its last line
    queue: Queue


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """How far a training run has come."""

    run: str
    record: Record | None  # of the job that trains; None if none is noted
    starts: list[dict[str, Any]]  # lines of the log: beginnings, steps, tests
    steps: list[dict[str, Any]]
    tests: list[dict[str, Any]]
    total_steps: int  # 0 before the first start
    effective_batch: int
    is_done: bool
    checkpoint: str | None  # the last one
    ended: list[tuple[str, str]]  # kinds of jobs that have a log, with its last line
    queue: Queue

    @property
    def step(self) -> int:
        """Steps done."""
        return self.steps[-1]["step"] if self.steps else 0

    @property
    def is_idle(self) -> bool:
        """Not done, and nothing waits or runs."""
        return not self.is_done and not self.queue.entries


@dataclasses.dataclass(frozen=True)
class StudyProgress:
    """How far the cells of a study have come."""

    output: str
    record: Record
    n_cells: int
    missing: list[int]  # parts of the array whose cell is not done
    idle: list[int]  # those that neither wait nor run
    ended: list[tuple[int, str]]  # idle parts that have a log, with its last line
    queue: Queue


def measure_study(output: str, record: Record, must_know: bool) -> StudyProgress:
    """Look at the cells of a study. Arguments and errors as of `measure_arrays`."""
    from savimae.study.plan import RESULT, cell_folder

    if record.shards is None:
        raise SavimaeError(f"{shown(output)}: its note of a job is not of a study")
    try:
        ways = list(read_json(os.path.join(output, CONFIG))["ways"])
    except FileNotFoundError:  # the first task records it
        ways = []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SavimaeError(f"{shown(output)}: its {CONFIG} is not of a study") from error
    missing = []
    for part in range(record.shards):
        seed, place = divmod(part, len(ways) or 1)
        done = ways and os.path.exists(
            os.path.join(cell_folder(output, ways[place], seed + 1), RESULT)
        )
        missing += [] if done else [part]
    queued = _queue([record.name], must_know)
    busy = {entry.part for entry in queued.entries}
    idle = [part for part in missing if part not in busy]
    logs = [(part, _last_line(record.logs, f"study-*_{part}.log")) for part in idle]
    ended = [(part, last) for part, last in logs if last]
    return StudyProgress(output, record, record.shards, missing, idle, ended, queued)


def measure_arrays(output: str, record: Record, must_know: bool) -> ArrayProgress:
    """Look at the arrays in `output`.

    Args:
        record: what is noted of the job that makes them.
        must_know: fail where the queue cannot be asked.

    Raises:
        SavimaeError: something cannot be read.
    """
    if record.source is None or record.shards is None:
        raise SavimaeError(f"{shown(output)}: its note of a job is not of an array")
    found = find_videos(record.source, record.root)
    videos = distinct_videos(found.videos)[: record.limit]
    looked = _look(output, videos)
    shards = dict(zip((video.name for video in videos), deal(videos, record.shards), strict=True))
    missing_parts = sorted({shards[video.name] for video in looked.missing})
    queued = _queue([record.name], must_know)
    busy = {entry.part for entry in queued.entries}
    reasons = dict(_failures(output))
    idle = [part for part in missing_parts if part not in busy]
    return ArrayProgress(
        output, record, record.source, record.shards, len(videos), looked, found.unreadable,
        missing_parts, idle,
        [(video, reasons[video.path]) for video in looked.missing if video.path in reasons],
        [
            (part, last)
            for part in idle
            if (last := _last_line(record.logs, f"preprocess-*_{part}.log"))
        ],
        queued,
    )  # fmt: skip


def measure_run(run: str, record: Record | None, must_know: bool) -> RunProgress:
    """Look at a training run. Arguments and errors as of `measure_arrays`."""
    # These import torch, which arrays can do without.
    from savimae.training.checkpoint import last_checkpoint
    from savimae.training.classifier_test import RESULT

    log = read_lines(run)
    starts = [line for line in log if line.get("event") == "start"]
    steps = [line for line in log if "loss" in line]
    total: Any = 0
    effective: Any = 0
    is_done = False
    if starts:
        settings = read_settings(run)
        total, effective = starts[-1].get("total_steps", 0), settings.get("effective_batch")
        if type(total) is not int or total < 1 or type(effective) is not int:
            raise SavimaeError(f"{shown(run)}: its {LOG} or {CONFIG} is not of a training")
        is_done = bool(steps) and steps[-1]["step"] == total
        if is_done and settings.get("output") == "classifier":
            is_done = os.path.exists(os.path.join(run, RESULT))
    kinds = ("check", *TRAINING)
    return RunProgress(
        run, record, starts, steps, [line for line in log if is_test(line)],
        total, effective, is_done, last_checkpoint(run),
        [
            (kind, last)
            for kind in kinds
            if record is not None and (last := _last_line(record.logs, f"{kind}-*.log"))
        ],
        _queue([job_name(kind, run) for kind in kinds], must_know),
    )  # fmt: skip


def _look(output: str, videos: list[Video]) -> Survey:
    """Which arrays are there. The first task records the settings; before that, there are none."""
    path = os.path.join(output, CONFIG)
    try:
        settings = read_json(path)
        maker = ArrayMaker(SaliencyConfig.from_arrays(settings), settings["dtype"])
    except FileNotFoundError:
        return Survey([], videos)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SavimaeError(f"{shown(path)}: not the settings of arrays") from error
    return survey(videos, output, maker)


def _failures(output: str) -> Iterator[tuple[str, str]]:
    """Path and reason of what failed when it was last tried, from all failures files."""
    for path in sorted(pathlib.Path(output).glob("failures*.jsonl")):
        with open(path, "rb") as file:
            for line in file:
                try:
                    entry = parse_json(line)
                    yield str(entry["path"]), shown(str(entry["reason"]))
                except (ValueError, KeyError, TypeError):  # a line that is being written
                    continue


def _queue(names: Sequence[str], must_know: bool) -> Queue:
    """What waits or runs under these names, and that in words.

    Raises:
        SavimaeError: Slurm does not answer, and `must_know`: what it has would be submitted twice.
    """
    try:
        entries = queue(names)
    except SavimaeError as error:
        if must_know:
            raise
        return Queue([], f"not asked: {error}")
    if not entries:
        return Queue([], "nothing waits or runs")
    counts = collections.Counter(
        (entry.job_id, entry.state.lower(), entry.reason if entry.state == "PENDING" else "None")
        for entry in entries
    )
    words = [
        f"job {job_id}: {n} {state}" + (f" ({reason})" if reason != "None" else "")
        for (job_id, state, reason), n in sorted(counts.items())
    ]
    return Queue(entries, ", ".join(words))


def _last_line(logs: str, name: str) -> str | None:
    """The last line of the newest log whose job or part is `name`, and the log's name."""
    newest = max(pathlib.Path(logs).glob(name), key=os.path.getmtime, default=None)
    if newest is None:
        return None
    with open(newest, "rb") as file:
        file.seek(max(0, os.path.getsize(newest) - 4096))
        lines = file.read().decode("utf-8", "replace").split("\n")
    text = next((shown(line) for line in reversed(lines) if line.strip()), "an empty log")
    return f"{text} ({shown(newest.name)})"
