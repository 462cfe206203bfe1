"""The progress of arrays or of a training run in words, and submitting what is missing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from savimae.saliency.survey import Survey
from savimae.slurm.jobs import read_record, submit_again, submit_parts
from savimae.slurm.measure import (
    ArrayProgress,
    RunProgress,
    StudyProgress,
    measure_arrays,
    measure_run,
    measure_study,
)
from savimae.slurm.script import TRAINING, VIDEOS
from savimae.system.errors import UsageError, shown
from savimae.system.progress import duration
from savimae.training.log import LOG
from savimae.training.scores import score_words, task_of_test

RECENT_S = 600.0  # what the rate is measured over
SHOWN = 10  # videos or logs that are named


def status(output: str, resubmit: bool = False) -> list[str]:
    """How far `output` has come, a folder of arrays, a run or a study.

    Args:
        output: the folder.
        resubmit: submit what is missing and neither waits nor runs.

    Returns:
        Lines to print.

    Raises:
        UsageError: none of these, or nothing is noted of how to go on.
        SavimaeError: something in it cannot be read, or Slurm refuses the job.
    """
    if not os.path.isdir(output):
        raise UsageError(
            f"{shown(output)}: no such folder; name one of arrays, of a run or of a study"
        )
    arrays = read_record(output, "preprocess")
    study = read_record(output, "study")
    if study is not None:
        cells = measure_study(output, study, must_know=resubmit)
        return [*_study_lines(cells), *_next_of_study(cells, resubmit)]
    training = next(filter(None, (read_record(output, kind) for kind in TRAINING)), None)
    if arrays is not None:
        progress = measure_arrays(output, arrays, must_know=resubmit)
        return [*_array_lines(progress), *_next_of_arrays(progress, resubmit)]
    if training is not None or os.path.exists(os.path.join(output, LOG)):
        run = measure_run(output, training, must_know=resubmit)
        return [*_run_lines(run), *_next_of_run(run, resubmit)]
    raise UsageError(
        f"{shown(output)}: no job is noted in it; what --output writes and --submit submits "
        "is. Without Slurm, `savimae preprocess SOURCE OUT --check` says what is missing"
    )


# ----------------------------------------------------------------------------------- arrays


def _array_lines(progress: ArrayProgress) -> list[str]:
    looked, n = progress.looked, progress.n_videos
    lines = [
        f"arrays of {shown(progress.source)} in {shown(progress.output)}",
        f"  done     {len(looked.done)} of {n} videos ({len(looked.done) / n:.1%})",
    ]
    if looked.missing:
        lines.append(
            f"  missing  {len(looked.missing)}, in {len(progress.missing_parts)} of "
            f"{progress.n_shards} parts"
        )
    if progress.failed:
        lines.append(f"  failed   {len(progress.failed)} of the missing, when last tried")
        lines += _some(f"{shown(video.path)}: {reason}" for video, reason in progress.failed)
    for path, reason in progress.unreadable:
        lines.append(f"  left out {shown(path)}: {reason}")
    lines.append(f"  rate     {_rate(looked, bool(progress.queue.entries))}")
    lines.append(f"  queue    {progress.queue.words}")
    if progress.ended:
        lines.append(f"  ended    with videos missing; logs in {shown(progress.record.logs)}")
        lines += _some(f"part {part}: {last}" for part, last in progress.ended)
    return lines


def _next_of_arrays(progress: ArrayProgress, resubmit: bool) -> list[str]:
    """Submit the idle parts if asked to. Returns lines that say what was, or can be, submitted."""
    idle = progress.idle_parts
    if resubmit and idle:
        job_id = submit_parts(progress.record, idle)
        return [f"submitted job {job_id}: {len(idle)} parts with videos missing"]
    if resubmit:
        is_whole = not progress.looked.missing
        reason = "all arrays are there" if is_whole else "what is missing waits or runs"
        return [f"nothing to submit: {reason}"]
    if idle:
        return ["to submit the missing parts again: the same command with --resubmit"]
    return []


def _rate(looked: Survey, is_running: bool) -> str:
    """Videos a second lately and the time left at that rate, from the arrays' own times."""
    times = {video.name: os.path.getmtime(path) for video, path in looked.done}
    end = time.time() if is_running or not times else max(times.values())
    recent = [video for video, _ in looked.done if end - times[video.name] < RECENT_S]
    if not recent:
        return f"no array in the last {duration(RECENT_S)}"
    span_s = max(end - min(times[video.name] for video in recent), 1.0)
    when = "over the last" if is_running else "when last at work, over"
    text = f"{len(recent) / span_s:.2g} videos/s {when} {duration(span_s)}"
    if looked.missing and is_running:
        cost_per_s = sum(max(video.cost, 1) for video in recent) / span_s
        left_s = sum(max(video.cost, 1) for video in looked.missing) / cost_per_s
        text += f", about {duration(left_s)} left"
    return text


# -------------------------------------------------------------------------------------- run


def _run_lines(run: RunProgress) -> list[str]:
    lines = [f"training in {shown(run.run)}"]
    if run.starts:
        step, total = run.step, run.total_steps
        processes = run.starts[-1].get("processes")
        lines.append(f"  done     {step} of {total} steps ({step / total:.1%})")
        lines.append(f"  started  {len(run.starts)} times, on {processes} processes last")
    else:
        lines.append("  done     nothing yet")
    if run.steps:
        last = run.steps[-1]
        lines.append(f"  loss     {last['loss']:.4f}, learning rate {last['lr']:.3g}")
        clips_per_s, written = last.get("clips_per_s"), last.get("time")
        if clips_per_s and written is not None:
            rate = f"{clips_per_s:.2f} clips/s, written {_ago(written)}"
            if run.effective_batch and not run.is_done and run.queue.entries:
                n_clips = (run.total_steps - run.step) * run.effective_batch
                rate += f"; about {duration(n_clips / clips_per_s)} left"
            lines.append(f"  rate     {rate}")
    if run.tests:
        last = run.tests[-1]
        words = score_words(last, task_of_test(last), "test_", digits=4)
        lines.append(f"  test     {words} after step {last['step']}")
    if run.checkpoint is not None:
        when = _ago(os.path.getmtime(run.checkpoint))
        lines.append(f"  saved    {shown(run.checkpoint)}, {when}")
    lines.append(f"  queue    {run.queue.words}")
    if run.is_idle:
        lines += [f"  ended    {kind}: {last}" for kind, last in run.ended]
    return lines


def _next_of_run(run: RunProgress, resubmit: bool) -> list[str]:
    """Submit the run again if asked to. Returns lines that say what was, or can be, submitted.

    Raises:
        UsageError: nothing is noted of how to go on, or the check before it has not passed.
    """
    if resubmit and run.is_idle:
        if run.record is None:
            raise UsageError(
                f"{shown(run.run)}: no script is noted in it; submit one with `savimae slurm "
                "train` or `savimae slurm finetune`"
            )
        if read_record(run.run, "check") and not os.path.exists(os.path.join(run.run, VIDEOS)):
            raise UsageError(
                f"{shown(run.run)}: the check before it has not passed; look at the arrays with "
                "`savimae slurm status`, then submit the pipeline again"
            )
        return [f"submitted job {submit_again(run.record)}: it goes on from the last checkpoint"]
    if resubmit:
        reason = "all steps are done" if run.is_done else "it waits or runs already"
        return [f"nothing to submit: {reason}"]
    if run.is_idle and run.record is not None:
        return ["to submit it again: the same command with --resubmit"]
    return []


# ------------------------------------------------------------------------------------- study


def _study_lines(cells: StudyProgress) -> list[str]:
    n_done = cells.n_cells - len(cells.missing)
    lines = [
        f"study in {shown(cells.output)}",
        f"  done     {n_done} of {cells.n_cells} cells",
        f"  queue    {cells.queue.words}",
    ]
    if cells.ended:
        lines.append(f"  ended    without a result; logs in {shown(cells.record.logs)}")
        lines += _some(f"cell {part}: {last}" for part, last in cells.ended)
    return lines


def _next_of_study(cells: StudyProgress, resubmit: bool) -> list[str]:
    """As `_next_of_arrays`; the job that collects is submitted again behind the cells."""
    if resubmit and cells.idle:
        job_id = submit_parts(cells.record, cells.idle)
        lines = [f"submitted job {job_id}: {len(cells.idle)} cells that have no result"]
        collecting = read_record(cells.output, "collect")
        if collecting is not None:
            after = submit_again(collecting, after=job_id)
            lines.append(f"submitted job {after}: collect, when that has ended")
        return lines
    if resubmit:
        reason = "what is missing waits or runs" if cells.missing else "all cells are done"
        return [f"nothing to submit: {reason}"]
    if cells.idle:
        return ["to submit the missing cells again: the same command with --resubmit"]
    return []


# ------------------------------------------------------------------------------------- parts


def _some(lines: Iterable[str]) -> list[str]:
    """The first lines, and how many more there are."""
    listed = list(lines)
    more = [f"… and {len(listed) - SHOWN} more"] if len(listed) > SHOWN else []
    return [f"    {line}" for line in [*listed[:SHOWN], *more]]


def _ago(timestamp: float) -> str:
    return f"{duration(max(time.time() - timestamp, 0))} ago"
