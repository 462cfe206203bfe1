"""How far the arrays of a data set, or a training run, have come: read from what they wrote.

The queue is asked where there is one. A job is found in it by its name, which follows from the
folder that it makes (`slurm.job_name`), so scripts that were submitted by hand are found as well.
"""

from __future__ import annotations

import collections
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Sequence

from savimae.config import CONFIG, SaliencyConfig
from savimae.errors import SavimaeError, UsageError, shown
from savimae.files import parse_json, read_json
from savimae.lists import Video, distinct_videos, find_videos
from savimae.preprocess import ArrayJob, Survey, deal, survey
from savimae.progress import duration
from savimae.runs import LOG, read_lines, read_settings
from savimae.slurm import TRAINING, VIDEOS, job_name
from savimae.slurm_jobs import Entry, Record, queue, read_record, submit_again, submit_parts

RECENT_S = 600.0  # what the rate is measured over
SHOWN = 10  # videos or logs that are named


def status(output: str, resubmit: bool = False) -> list[str]:
    """How far `output` has come, a folder of arrays or a run.

    Args:
        output: the folder.
        resubmit: submit what is missing and neither waits nor runs.

    Returns:
        Lines to print.

    Raises:
        UsageError: neither of the two, or nothing is noted of how to go on.
        SavimaeError: something in it cannot be read, or Slurm refuses the job.
    """
    if not os.path.isdir(output):
        raise UsageError(f"{shown(output)}: no such folder; name one of arrays or of a run")
    arrays = read_record(output, "preprocess")
    training = next(filter(None, (read_record(output, kind) for kind in TRAINING)), None)
    if arrays is not None:
        return _array_status(output, arrays, resubmit)
    if training is not None or os.path.exists(os.path.join(output, LOG)):
        return _run_status(output, training, resubmit)
    raise UsageError(
        f"{shown(output)}: no job is noted in it; what --output writes and --submit submits "
        "is. Without Slurm, `savimae preprocess SOURCE OUT --check` says what is missing"
    )


# ----------------------------------------------------------------------------------- arrays


def _array_status(output: str, record: Record, resubmit: bool) -> list[str]:
    if record.source is None or record.shards is None:
        raise SavimaeError(f"{shown(output)}: its note of a job is not of an array")
    found = find_videos(record.source, record.root)
    videos = distinct_videos(found.videos)[: record.limit]
    looked = _survey(output, videos)
    shards = dict(zip((video.name for video in videos), deal(videos, record.shards), strict=True))
    missing_parts = sorted({shards[video.name] for video in looked.missing})
    entries, queue_line = _queue([record.name], resubmit)
    busy = {entry.part for entry in entries}
    reasons = dict(_failures(output))
    failed = [video for video in looked.missing if video.path in reasons]

    lines = [f"arrays of {shown(record.source)} in {shown(output)}"]
    share = len(looked.done) / len(videos)
    lines.append(f"  done     {len(looked.done)} of {len(videos)} videos ({share:.1%})")
    if looked.missing:
        lines.append(
            f"  missing  {len(looked.missing)}, in {len(missing_parts)} of {record.shards} parts"
        )
    if failed:
        lines.append(f"  failed   {len(failed)} of the missing, when last tried")
        lines += _some(f"{shown(video.path)}: {reasons[video.path]}" for video in failed)
    for path, reason in found.unreadable:
        lines.append(f"  left out {shown(path)}: {reason}")
    lines.append(f"  rate     {_rate(looked, bool(busy))}")
    lines.append(f"  queue    {queue_line}")
    idle = [part for part in missing_parts if part not in busy]
    ended = [
        f"part {part}: {last}"
        for part in idle
        if (last := _last_line(record.logs, f"preprocess-*_{part}.log"))
    ]
    if ended:
        lines.append(f"  ended    with videos missing; logs in {shown(record.logs)}")
        lines += _some(ended)
    if resubmit and idle:
        job_id = submit_parts(record, idle)
        lines.append(f"submitted job {job_id}: {len(idle)} parts with videos missing")
    elif resubmit:
        reason = "what is missing waits or runs" if looked.missing else "all arrays are there"
        lines.append(f"nothing to submit: {reason}")
    elif idle:
        lines.append("to submit the missing parts again: the same command with --resubmit")
    return lines


def _survey(output: str, videos: list[Video]) -> Survey:
    """What is there, by the settings that the first task noted; before that, nothing is."""
    path = os.path.join(output, CONFIG)
    try:
        settings = read_json(path)
        saliency = SaliencyConfig(
            settings["input_size"], settings["patch_size"], settings["threshold"]
        )
        job = ArrayJob(saliency, settings["dtype"])
    except FileNotFoundError:
        return Survey([], videos)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SavimaeError(f"{shown(path)}: not the settings of arrays") from error
    return survey(videos, output, job)


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


def _run_status(run: str, record: Record | None, resubmit: bool) -> list[str]:
    # These import torch, which arrays can do without.
    from savimae.checkpoint import last_checkpoint
    from savimae.finetune import RESULT

    lines = [f"training in {shown(run)}"]
    log = read_lines(run)
    starts = [line for line in log if line.get("event") == "start"]
    steps = [line for line in log if "loss" in line]
    is_done = False
    total = step = 0
    effective: int | None = None
    if starts:
        settings = read_settings(run)
        total, effective = starts[-1].get("total_steps", 0), settings.get("effective_batch")
        if type(total) is not int or total < 1 or type(effective) is not int:
            raise SavimaeError(f"{shown(run)}: its {LOG} or {CONFIG} is not of a training")
        step = steps[-1]["step"] if steps else 0
        is_done = step == total
        if is_done and settings.get("output") == "classifier":
            is_done = os.path.exists(os.path.join(run, RESULT))
        lines.append(f"  done     {step} of {total} steps ({step / total:.1%})")
        lines.append(
            f"  started  {len(starts)} times, on {starts[-1].get('processes')} processes last"
        )
    else:
        lines.append("  done     nothing yet")
    kinds = ("check", *TRAINING)
    entries, queue_line = _queue([job_name(kind, run) for kind in kinds], resubmit)
    if steps:
        last = steps[-1]
        lines.append(f"  loss     {last['loss']:.4f}, learning rate {last['lr']:.3g}")
        clips_per_s, written = last.get("clips_per_s"), last.get("time")
        if clips_per_s and written is not None:
            rate = f"{clips_per_s:.2f} clips/s, written {_ago(written)}"
            if starts and effective and not is_done and entries:
                rate += f"; about {duration((total - step) * effective / clips_per_s)} left"
            lines.append(f"  rate     {rate}")
    tests = [line for line in log if "test_top1" in line]
    if tests:
        last = tests[-1]
        lines.append(
            f"  test     top-1 {last['test_top1']:.4f}, top-5 {last['test_top5']:.4f} after step "
            f"{last['step']}"
        )
    saved = last_checkpoint(run)
    if saved is not None:
        lines.append(f"  saved    {shown(saved)}, {_ago(os.path.getmtime(saved))}")
    lines.append(f"  queue    {queue_line}")
    idle = not is_done and not entries
    if idle and record is not None:
        for kind in kinds:
            last_line = _last_line(record.logs, f"{kind}-*.log")
            if last_line is not None:
                lines.append(f"  ended    {kind}: {last_line}")
    if resubmit and idle:
        if record is None:
            raise UsageError(
                f"{shown(run)}: no script is noted in it; submit one with `savimae slurm train` or "
                "`savimae slurm finetune`"
            )
        if read_record(run, "check") and not os.path.exists(os.path.join(run, VIDEOS)):
            raise UsageError(
                f"{shown(run)}: the check before it has not passed; look at the arrays with "
                "`savimae slurm status`, then submit the pipeline again"
            )
        lines.append(f"submitted job {submit_again(record)}: it goes on from the last checkpoint")
    elif resubmit:
        reason = "all steps are done" if is_done else "it waits or runs already"
        lines.append(f"nothing to submit: {reason}")
    elif idle and record is not None:
        lines.append("to submit it again: the same command with --resubmit")
    return lines


# ------------------------------------------------------------------------------------- parts


def _queue(names: Sequence[str], must_know: bool) -> tuple[list[Entry], str]:
    """What waits or runs under these names, and that in words.

    Raises:
        SavimaeError: Slurm does not answer, and `must_know`: what it has would be submitted twice.
    """
    try:
        entries = queue(names)
    except SavimaeError as error:
        if must_know:
            raise
        return [], f"not asked: {error}"
    if not entries:
        return [], "nothing waits or runs"
    counts = collections.Counter(
        (entry.job_id, entry.state.lower(), entry.reason if entry.state == "PENDING" else "None")
        for entry in entries
    )
    words = [
        f"job {job_id}: {n} {state}" + (f" ({reason})" if reason != "None" else "")
        for (job_id, state, reason), n in sorted(counts.items())
    ]
    return entries, ", ".join(words)


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


def _some(lines: Iterable[str]) -> list[str]:
    """The first lines, and how many there are beside."""
    listed = list(lines)
    more = [f"… and {len(listed) - SHOWN} more"] if len(listed) > SHOWN else []
    return [f"    {line}" for line in [*listed[:SHOWN], *more]]


def _ago(timestamp: float) -> str:
    return f"{duration(max(time.time() - timestamp, 0))} ago"
