"""Going through a data set: what is to be done, on how many processes, what failed.

It makes arrays, maps or JPEG files from frames, or arrays from maps; see `makers`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Generator

from savimae.data.lists import Video, VideoList, distinct_videos, find_videos, write_list
from savimae.data.shards import Shard, shard_videos
from savimae.kernels.patches import compile_kernels
from savimae.saliency.failures import FailureLog
from savimae.saliency.makers import ArrayMaker, Done, FrameMaker, Maker
from savimae.saliency.survey import Survey, survey
from savimae.system.errors import SavimaeError, UsageError, one_line, shown
from savimae.system.files import refuse_file, remove_leftovers
from savimae.system.lock import SoleWriter, sole_writer
from savimae.system.progress import Progress
from savimae.system.settings import check_config, record_config
from savimae.system.signals import EndedBySignals
from savimae.system.workers import Counter, WorkerDiedError, run_tasks

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoSpaceError(SavimaeError):
    """The output cannot be written for want of space; every further video would fail as well."""


@dataclasses.dataclass(frozen=True)
class _Work:
    """One video for one worker; calling it does the work."""

    maker: Maker
    video: Video
    target: str

    def __call__(self) -> Done | str:
        """Make the output. Returns the result, or in one line why there is none.

        Raises:
            NoSpaceError: the disk is full.
        """
        try:
            return self.maker.make(self.video, self.target)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise NoSpaceError(
                    f"{shown(os.path.dirname(self.target))}: {one_line(error)}; free some space "
                    "and run the same command again, finished videos are kept"
                ) from error
            return one_line(error)
        except (SavimaeError, MemoryError, ValueError, ArithmeticError, LookupError) as error:
            return one_line(error)


def _run(work: _Work) -> Done | str:
    return work()


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

    @property
    def salient_share(self) -> float:
        """Of the patches of all frames; 0 where no patches were made, or of change."""
        return self.salient_patches / self.frames if self.frames else 0.0

    def summary(self) -> str:
        """One line: videos, frames, time, rate, salient share, failures."""
        parts = [
            f"{self.videos} videos",
            f"{self.frames} frames",
            f"{self.seconds:.1f} s",
            f"{self.frames / max(self.seconds, 1e-9):.0f} frames/s",
        ]
        if self.salient_patches:
            parts.append(f"{self.salient_share:.1%} of patches salient")
        if self.skipped:
            parts.append(f"{self.skipped} were there already")
        parts.append(f"{len(self.failures)} failed")
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class WalkOptions:
    """How to go through a data set. Nothing here changes what is written for a video."""

    workers: int = 1
    shard: Shard = dataclasses.field(default_factory=Shard)
    overwrite: bool = False
    limit: int | None = None
    list_path: str | None = None
    root: str | None = None


def process(source: str, out: str, maker: Maker, options: WalkOptions) -> Report:
    """Run `maker` on every video of `source` that is not done yet; failures do not stop the run.

    Raises:
        UsageError: nothing to do, or `out` was made with other settings, or lies inside `source`.
        SavimaeError: no space left; a list that cannot be read; another process makes the same.
    """
    refuse_inside(source, out)
    with sole_writer(out, options.shard.index, options.shard.count) as writer:
        return _process(source, out, maker, options, writer)


def _process(
    source: str, out: str, maker: Maker, options: WalkOptions, writer: SoleWriter
) -> Report:
    found, distinct = _find_work(source, options.root, maker)
    videos = distinct[: options.limit]
    _refuse_overwriting(videos, out, maker)
    mine = shard_videos(videos, options.shard)
    record_config(out, maker.settings())

    report = Report()
    wanted = mine if options.overwrite else survey(mine, out, maker).missing
    pending = [_Work(maker, video, maker.target(out, video)) for video in wanted]
    report.skipped = len(mine) - len(pending)
    remove_leftovers(work.target for work in pending)
    if pending and maker.uses_kernels:
        compile_kernels()  # once, before the workers would each do it
    # The most expensive first: no worker is left alone with a long video at the end.
    pending.sort(key=lambda work: -work.video.cost)
    failed = set()
    log = FailureLog(out, options.shard)
    with Progress(maker.verb) as progress:

        def fail(path: str, reason: str) -> None:
            report.failures.append((path, reason))
            log.add(path, reason)
            progress.write(f"failed: {shown(path)}: {reason}")

        for path, reason in found.unreadable if options.shard.index == 0 else []:
            fail(path, reason)
        for work, result in _results(pending, report, progress, options.workers, writer):
            if isinstance(result, Done):
                report.add(result)
            else:
                fail(work.video.path, result)
                failed.add(work.video.name)
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
        _write_list(options.list_path, succeeded, found, out, maker)
    return report


def _write_list(path: str, videos: list[Video], found: VideoList, out: str, maker: Maker) -> None:
    """The training list of these videos; of their frames, by the same names, if those were made."""
    root = found.root
    if isinstance(maker, FrameMaker):
        videos = [dataclasses.replace(each, path=maker.target(out, each)) for each in videos]
        root = out
    write_list(path, videos, root, found.classes)


def check_start(source: str, out: str, maker: Maker, root: str | None = None) -> None:
    """Raise what `process` would raise before its first video. Nothing is written or decoded.

    Raises:
        UsageError, SavimaeError: as `process`.
    """
    refuse_inside(source, out)
    _find_work(source, root, maker, weigh=False)
    check_config(out, maker.settings())


def _find_work(
    source: str, root: str | None, maker: Maker, weigh: bool = True
) -> tuple[VideoList, list[Video]]:
    """What was found, and its videos without repetitions."""
    found = find_videos(source, root, weigh)
    if isinstance(maker, ArrayMaker) and maker.from_maps:
        _refuse_video_files(found)
    distinct = distinct_videos(found.videos)
    if not isinstance(maker, ArrayMaker):
        _refuse_nested(distinct)
    return found, distinct


def _results(
    pending: list[_Work], report: Report, progress: Progress, workers: int, writer: SoleWriter
) -> Generator[tuple[_Work, Done | str]]:
    """Results of the videos as they come. Shows progress; on a signal, ends the workers first."""
    total_cost = sum(max(work.video.cost, 1) for work in pending)
    done_cost = 0

    def show(running: list[tuple[_Work, Counter]], counters: list[Counter]) -> None:
        ending.check()
        frames = sum(each.frames for each in counters)
        under_way = sum(each.share * work.video.cost for work, each in running)
        n_done = report.videos + len(report.failures)
        progress.show(
            (done_cost + under_way) / total_cost,
            f"{n_done}/{len(pending)} videos, {frames} frames, "
            f"{frames / max(progress.elapsed_s, 1e-9):.0f} frames/s",
        )

    n_workers = max(1, min(workers, len(pending)))
    if not pending:
        return
    ending = EndedBySignals()
    results = run_tasks(_run, pending, n_workers, [__name__], show)
    with ending, contextlib.closing(results):
        for work, result in results:
            writer.check()
            done_cost += max(work.video.cost, 1)
            if isinstance(result, WorkerDiedError):
                result = "the process that worked on it died (out of memory, or a decoder crash)"
            if isinstance(result, BaseException):
                raise result
            yield work, result
            ending.check()  # before another video is begun


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


def _refuse_overwriting(videos: list[Video], out: str, maker: Maker) -> None:
    """Raises UsageError if the output of a video would take the place of the video itself."""
    for video in videos:
        if os.path.abspath(maker.target(out, video)) == os.path.abspath(video.path):
            raise UsageError(
                f"{shown(out)}: {shown(video.path)} would be overwritten by its array; choose "
                "another folder"
            )


def _refuse_nested(videos: list[Video]) -> None:
    """Raises UsageError if the folder that one video becomes would hold that of another."""
    by_name = {video.name: video for video in videos}
    for video in videos:
        above = os.path.dirname(video.name)
        while above:
            if above in by_name:
                raise UsageError(
                    f"{shown(by_name[above].path)}: its frames would lie in {shown(above)}, which "
                    f"would also hold the folder of {shown(video.path)}; rename or move one"
                )
            above = os.path.dirname(above)


def check(
    source: str, out: str, maker: Maker, options: WalkOptions, allow_missing: int = 0
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
    found, distinct = _find_work(source, options.root, maker)
    check_config(out, maker.settings())
    looked = survey(shard_videos(distinct[: options.limit], options.shard), out, maker)
    unreadable = found.unreadable if options.shard.index == 0 else []
    if options.list_path and len(looked.missing) + len(unreadable) <= allow_missing:
        videos = [video for video, _ in looked.done]
        _write_list(options.list_path, videos, found, out, maker)
    return looked, unreadable
