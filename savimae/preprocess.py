"""The walk over a data set: what to do, on how many processes, what is done already, what failed.

Three kinds of job share it: arrays from frames, maps from frames, arrays from maps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import heapq
import json
import os
import signal
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import imageio.v3 as imageio
import numpy as np

from savimae.arrays import array_frames, array_path, write_array
from savimae.config import SaliencyConfig, check_config, record_config
from savimae.errors import EXIT_STOPPED, SavimaeError, UsageError, one_line, shown
from savimae.files import atomic_folder, refuse_file, remove_leftovers
from savimae.kernels.patches import compile_kernels
from savimae.lists import Video, VideoList, distinct_videos, find_videos, write_list
from savimae.lock import SoleWriter, sole_writer
from savimae.progress import Progress
from savimae.saliency import FrameSaliency, patch_chunks
from savimae.video import open_video
from savimae.workers import Counter, WorkerDiedError, counter, run_tasks

SURVEY_THREADS, SURVEY_CHUNK = 8, 256
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoSpaceError(SavimaeError):
    """The output cannot be written for want of space; every further video would fail as well."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `index` (from 0) of `count` parts of a data set."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """ "3/64" -> the shard with index 3 of 64; indices run from 0 to 63.

        Raises:
            ValueError: not of that form, or out of range.
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ValueError(
                f"{text!r} is not I/N with 0 <= I < N, such as 0/64 for the first of 64"
            )
        return cls(int(index), int(count))


def deal(videos: Sequence[Video], count: int) -> list[int]:
    """The shard of each video: a deterministic partition, balanced by the estimated cost.

    The most expensive videos are dealt first, each to the shard that has least to do so far. It
    depends on the list and on the sizes of the files only, so the tasks of an array job agree.
    """
    loads = [(0, index) for index in range(count)]
    shards = [0] * len(videos)
    order = sorted(range(len(videos)), key=lambda i: (-videos[i].cost, videos[i].name))
    for place in order:
        load, index = heapq.heappop(loads)
        heapq.heappush(loads, (load + max(videos[place].cost, 1), index))
        shards[place] = index
    return shards


def shard_videos(videos: list[Video], shard: Shard) -> list[Video]:
    """The videos of one shard, in their order; see `deal`."""
    shards = deal(videos, shard.count)
    return [video for video, index in zip(videos, shards, strict=True) if index == shard.index]


# --------------------------------------------------------------------------------------- jobs


@dataclasses.dataclass(frozen=True)
class Done:
    """What came of one video."""

    frames: int
    salient_share: float | None  # of its patches; None where no patches were made


@dataclasses.dataclass(frozen=True)
class ArrayJob:
    """Frames (or, with `from_maps`, saliency maps) -> `OUT/Class/video.npy`."""

    saliency: SaliencyConfig
    dtype: str = "uint8"
    from_maps: bool = False
    verb = "preprocess"

    def settings(self) -> dict[str, Any]:
        return {
            "output": "patches",
            "source": "maps" if self.from_maps else "frames",
            **dataclasses.asdict(self.saliency),
            "dtype": self.dtype,
        }

    def target(self, out: str, video: Video) -> str:
        return array_path(out, video.name)

    def is_done(self, target: str) -> bool:
        return array_frames(target, self.saliency.grid_size, self.dtype) is not None

    def make(self, video: Video, target: str) -> Done:
        frames = open_video(video.path)
        chunks = patch_chunks(frames, FrameSaliency(self.saliency), self.from_maps)
        n = self.saliency.grid_size
        n_frames, n_salient = write_array(target, _counted(chunks, frames), n, self.dtype)
        return Done(n_frames, n_salient / (n_frames * n * n))


@dataclasses.dataclass(frozen=True)
class MapJob:
    """Frames -> `OUT/Class/video/img_00001.png`, ...: the saliency maps."""

    saliency: SaliencyConfig
    verb = "saliency"

    def settings(self) -> dict[str, Any]:
        return {"output": "maps", "input_size": self.saliency.input_size}

    def target(self, out: str, video: Video) -> str:
        return os.path.join(out, video.name)

    def is_done(self, target: str) -> bool:
        return os.path.isdir(target)  # made under another name and renamed when complete

    def make(self, video: Video, target: str) -> Done:
        frames = open_video(video.path)
        saliency = FrameSaliency(self.saliency)
        n_frames = 0
        with atomic_folder(target) as folder:
            for index, gray in enumerate(frames.gray_planes()):
                path = os.path.join(folder, frames.frame_name(index) + ".png")
                imageio.imwrite(path, saliency.saliency_map(gray), extension=".png")
                n_frames = index + 1
                _count(1, n_frames, frames.expected_frames)
        return Done(n_frames, None)


Job = ArrayJob | MapJob


def _counted(chunks: Iterator[np.ndarray], frames: Any) -> Iterator[np.ndarray]:
    """Pass chunks on and tell this worker's counter."""
    n_frames = 0
    for chunk in chunks:
        n_frames += len(chunk)
        _count(len(chunk), n_frames, frames.expected_frames)
        yield chunk


def _count(new: int, total: int, expected: int) -> None:
    counter().add(new, total / expected if expected else 0.0)


@dataclasses.dataclass(frozen=True)
class _Task:
    """One video for one worker; calling it does the work."""

    job: Job
    video: Video
    target: str

    def __call__(self) -> Done | str:
        """Done, or the reason why not, in one line. Raises NoSpaceError if the disk is full."""
        try:
            return self.job.make(self.video, self.target)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise NoSpaceError(
                    f"{shown(os.path.dirname(self.target))}: {one_line(error)}; free some space "
                    "and run the same command again, finished videos are kept"
                ) from error
            return one_line(error)
        except (SavimaeError, MemoryError, ValueError, ArithmeticError, LookupError) as error:
            return one_line(error)


def _run(task: _Task) -> Done | str:
    return task()


# ------------------------------------------------------------------------------ what is there


@dataclasses.dataclass(frozen=True)
class Survey:
    """Which videos have their output, with its path, and which do not."""

    done: list[tuple[Video, str]]
    missing: list[Video]


def survey(videos: Sequence[Video], out: str, job: Job) -> Survey:
    """Look at the outputs of `videos` in `out`: whether they are whole and of `job`'s kind.

    Several threads ask at once: on a network file system an answer takes a millisecond.
    """
    done: list[tuple[Video, str]] = []
    missing: list[Video] = []

    def look(start: int) -> list[tuple[Video, str, bool]]:
        pairs = [(video, job.target(out, video)) for video in videos[start : start + SURVEY_CHUNK]]
        return [(video, target, job.is_done(target)) for video, target in pairs]

    with (
        ThreadPoolExecutor(SURVEY_THREADS) as pool,
        Progress("looking for finished videos", delay_s=1.0) as progress,
    ):
        for chunk in pool.map(look, range(0, len(videos), SURVEY_CHUNK)):
            done += [(video, target) for video, target, there in chunk if there]
            missing += [video for video, _, there in chunk if not there]
            n = len(done) + len(missing)
            progress.show(n / len(videos), f"{n}/{len(videos)} videos")
    return Survey(done, missing)


def check(
    source: str, out: str, job: Job, options: RunOptions, allow_missing: int = 0
) -> tuple[Survey, list[tuple[str, str]]]:
    """What `process` with the same arguments would find done; nothing is computed.

    If no more than `allow_missing` are missing, the list that `options` name, if they do, is
    written, of the videos that are done.

    Returns:
        What is there and what is missing; folders that cannot be read, with the reasons.

    Raises:
        UsageError: no videos, or `out` was made with other settings.
        SavimaeError: a list that cannot be read.
    """
    found = find_videos(source, options.root)
    check_config(out, job.settings())
    videos = distinct_videos(found.videos)[: options.limit]
    looked = survey(shard_videos(videos, options.shard), out, job)
    unreadable = found.unreadable if options.shard.index == 0 else []
    if options.list_path and len(looked.missing) + len(unreadable) <= allow_missing:
        videos = [video for video, _ in looked.done]
        write_list(options.list_path, videos, found.root, found.classes)
    return looked, unreadable


# ---------------------------------------------------------------------------------------- run


@dataclasses.dataclass
class Report:
    """What a run did."""

    videos: int = 0
    frames: int = 0
    skipped: int = 0
    failures: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # path, reason
    seconds: float = 0.0
    salient_patches: float = 0.0  # salient share of each video times its frames, summed

    def add(self, done: Done) -> None:
        self.videos += 1
        self.frames += done.frames
        self.salient_patches += (done.salient_share or 0.0) * done.frames

    def summary(self) -> str:
        """One line: videos, frames, time, rate, salient share, failures."""
        parts = [
            f"{self.videos} videos",
            f"{self.frames} frames",
            f"{self.seconds:.1f} s",
            f"{self.frames / max(self.seconds, 1e-9):.0f} frames/s",
        ]
        if self.salient_patches:
            parts.append(f"{self.salient_patches / self.frames:.1%} of patches salient")
        if self.skipped:
            parts.append(f"{self.skipped} were there already")
        parts.append(f"{len(self.failures)} failed")
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How to walk: nothing here changes what is written for a video."""

    workers: int = 1
    shard: Shard = Shard()
    overwrite: bool = False
    limit: int | None = None
    list_path: str | None = None
    root: str | None = None


def process(source: str, out: str, job: Job, options: RunOptions) -> Report:
    """Run `job` on every video of `source` that is not done yet; failures do not stop the run.

    Raises:
        UsageError: nothing to do, or `out` was made with other settings, or lies inside `source`.
        SavimaeError: no space left; a list that cannot be read; another process makes the same.
    """
    refuse_inside(source, out)
    with sole_writer(out, options.shard.index, options.shard.count) as writer:
        return _process(source, out, job, options, writer)


def _process(source: str, out: str, job: Job, options: RunOptions, writer: SoleWriter) -> Report:
    found, distinct = _find_work(source, options.root, job)
    videos = distinct[: options.limit]
    mine = shard_videos(videos, options.shard)
    record_config(out, job.settings())

    report = Report()
    wanted = mine if options.overwrite else survey(mine, out, job).missing
    pending = [_Task(job, video, job.target(out, video)) for video in wanted]
    report.skipped = len(mine) - len(pending)
    remove_leftovers(task.target for task in pending)
    if pending:
        compile_kernels()  # once, before the workers would each do it
    # The most expensive first: no worker is left alone with a long video at the end.
    pending.sort(key=lambda task: -task.video.cost)
    failed = set()
    log = _FailureLog(out, options.shard)
    with Progress(job.verb) as progress:

        def fail(path: str, reason: str) -> None:
            report.failures.append((path, reason))
            log.add(path, reason)
            progress.write(f"failed: {shown(path)}: {reason}")

        for path, reason in found.unreadable if options.shard.index == 0 else []:
            fail(path, reason)
        for task, result in _results(pending, report, progress, options.workers, writer):
            if isinstance(result, Done):
                report.add(result)
            else:
                fail(task.video.path, result)
                failed.add(task.video.name)
        report.seconds = progress.elapsed_s
    n_again = len(found.videos) - len(distinct)
    if n_again:
        progress.write(f"{n_again} lines of the list name a video again; each was made once")
    if found.n_ignored:
        progress.write(
            f"{found.n_ignored} files that are neither videos nor frames were left alone"
        )
    if options.list_path:
        succeeded = [video for video in mine if video.name not in failed]
        write_list(options.list_path, succeeded, found.root, found.classes)
    return report


def check_start(source: str, out: str, job: Job, root: str | None = None) -> None:
    """Raise what `process` would raise before its first video. Nothing is written or decoded.

    Raises:
        UsageError, SavimaeError: as `process`.
    """
    refuse_inside(source, out)
    _find_work(source, root, job, weigh=False)
    check_config(out, job.settings())


def _find_work(
    source: str, root: str | None, job: Job, weigh: bool = True
) -> tuple[VideoList, list[Video]]:
    """What was found, and of its videos each once."""
    found = find_videos(source, root, weigh)
    if isinstance(job, ArrayJob) and job.from_maps:
        _refuse_video_files(found)
    return found, distinct_videos(found.videos)


def _results(
    pending: list[_Task], report: Report, progress: Progress, workers: int, writer: SoleWriter
) -> Generator[tuple[_Task, Done | str]]:
    """Results of the tasks as they come, with the progress shown; signals end the run tidily."""
    total_cost = sum(max(task.video.cost, 1) for task in pending)
    done_cost = 0

    def show(running: list[tuple[_Task, Counter]], counters: list[Counter]) -> None:
        frames = sum(each.frames for each in counters)
        under_way = sum(each.share * task.video.cost for task, each in running)
        n_done = report.videos + len(report.failures)
        progress.show(
            (done_cost + under_way) / total_cost,
            f"{n_done}/{len(pending)} videos, {frames} frames, "
            f"{frames / max(progress.elapsed_s, 1e-9):.0f} frames/s",
        )

    n_workers = max(1, min(workers, len(pending)))
    if not pending:
        return
    results = run_tasks(_run, pending, n_workers, [__name__], show)
    with EndedBySignals() as ending, contextlib.closing(results):
        for task, result in results:
            ending.check()
            writer.check()
            done_cost += max(task.video.cost, 1)
            if isinstance(result, WorkerDiedError):
                result = "the process that worked on it died (out of memory, or a decoder crash)"
            if isinstance(result, BaseException):
                raise result
            yield task, result


class EndedBySignals:
    """Turns INT, TERM and USR1 into exceptions: workers are stopped, temporary files removed.

    USR1 asks to stop and to go on later, as in training; the exit code says so. An exception that
    is raised while Python runs a destructor is lost, hence `check`.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> EndedBySignals:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        self.received = number
        self.check()

    def check(self) -> None:
        """Raise what a signal asked for, if there was one."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            is_pause = self.received == signal.SIGUSR1
            sys.exit(EXIT_STOPPED if is_pause else 128 + self.received)


class _FailureLog:
    """The failures of this run in `OUT/failures.jsonl`, whole lines only.

    Each shard has a file of its own. It is begun anew: what failed before is tried again.
    """

    def __init__(self, out: str, shard: Shard):
        name = "failures" if shard.count == 1 else f"failures-{shard.index}-of-{shard.count}"
        self.path = os.path.join(out, name + ".jsonl")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def add(self, video: str, reason: str) -> None:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        entry = {"path": os.path.abspath(video), "reason": reason, "time": moment}
        with open(self.path, "a", encoding="ascii") as file:
            file.write(json.dumps(entry) + "\n")


def refuse_inside(source: str, out: str) -> None:
    """Raises UsageError if `out` is not a folder, or lies inside `source`."""
    inner, outer = os.path.realpath(out), os.path.realpath(source)
    if os.path.isdir(source) and (inner + os.sep).startswith(outer + os.sep):
        raise UsageError(
            f"{shown(out)} lies inside {shown(source)}: a later run would take outputs "
            "for sources; choose a folder outside"
        )
    refuse_file(out)


def _refuse_video_files(found: VideoList) -> None:
    for video in found.videos:
        if not os.path.isdir(video.path):
            raise UsageError(
                f"{shown(video.path)} is a file; saliency maps are folders of gray PNGs"
            )
