"""Jobs on a Slurm cluster: scripts are checked and submitted, and found in the queue again.

What was written or submitted for a folder is noted in `FOLDER/slurm/KIND.json`, beside the script
and the logs.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Sequence

from savimae.slurm.script import Job
from savimae.system.errors import SavimaeError, UsageError, one_line, shown
from savimae.system.files import atomic_file, read_json, write_json

FOLDER = "slurm"
# What Slurm's commands say where they find no configuration, and where nobody answers.
NOT_SET_UP = ("Could not establish a configuration source", "Unable to process configuration file")
SILENT = ("Unable to contact slurm controller", "Socket timed out", "Zero Bytes were transmitted")
USE = "use a machine of the cluster, or write the script with --output and take it there"
MAX_SHARDS = 4_000_001  # Slurm's greatest MaxArraySize
TIMEOUT_S = 120  # of a command of Slurm, whose controller may be busy


@dataclasses.dataclass(frozen=True)
class Script:
    """A rendered job, and what is noted of it."""

    job: Job
    text: str
    source: str | None = None  # of an array: the videos, where a list's paths start, how many
    root: str | None = None
    limit: int | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    """What is noted of a job; see `Script`."""

    script: str
    name: str
    logs: str
    shards: int | None = None
    throttle: int | None = None
    source: str | None = None
    root: str | None = None
    limit: int | None = None


def slurm_folder(output: str) -> str:
    """Where scripts, records and logs of the jobs that make `output` lie."""
    return os.path.join(output, FOLDER)


def write_script(script: Script, path: str | None = None) -> str:
    """Write a script, make the folder of its logs, and note both.

    Args:
        path: where to; None: among the job's own files.

    Returns:
        The path.

    Raises:
        SavimaeError: the text is not a shell script (a line of a template or of --setup).
    """
    job = script.job
    folder = slurm_folder(job.output)
    path = os.path.abspath(path or os.path.join(folder, f"{job.kind}.sh"))
    content = script.text.encode("utf-8", "surrogateescape")
    checked = subprocess.run(["bash", "-n"], input=content, capture_output=True, check=False)
    if checked.returncode:
        message = checked.stderr.decode("utf-8", "replace").strip()
        raise SavimaeError(
            f"the script is not what bash understands ({shown(message.splitlines()[0])}); look at "
            "the lines of --setup and of your templates"
        )
    os.makedirs(job.logs, exist_ok=True)
    with atomic_file(path) as file:
        file.write(content)
    record = Record(
        path, job.name, job.logs, job.shards, job.throttle, script.source, script.root,
        script.limit,
    )  # fmt: skip
    write_json(os.path.join(folder, f"{job.kind}.json"), dataclasses.asdict(record))
    return path


def read_record(output: str, kind: str) -> Record | None:
    """What is noted of the job of this kind that makes `output`; None if there was none.

    Raises:
        SavimaeError: the note cannot be read.
    """
    path = os.path.join(slurm_folder(output), f"{kind}.json")
    try:
        record = Record(**read_json(path))
        _check(record)
        return record
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise SavimaeError(
            f"{shown(path)}: not what savimae notes of a job; write the script again"
        ) from error


def _check(record: Record) -> None:
    """Raises TypeError or ValueError for values that `write_script` does not write."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        is_needed = field.default is dataclasses.MISSING
        if value is None and not is_needed:
            continue
        if field.name in ("shards", "throttle", "limit"):
            if (
                type(value) is not int
                or value < 1
                or (field.name == "shards" and value > MAX_SHARDS)
            ):
                raise ValueError(f"{field.name} is {value!r}")
        elif not isinstance(value, str):
            raise TypeError(f"{field.name} is {value!r}")
        else:
            os.fsencode(value)
            if "\0" in value:
                raise ValueError(f"{field.name} holds a NUL byte")


# ------------------------------------------------------------------------------- submission


@dataclasses.dataclass(frozen=True)
class Step:
    """A script to submit, and how it waits for the one before: afterany, afterok, or not."""

    path: str
    after: str | None = None


def check_submission(names: Sequence[str]) -> None:
    """Look whether jobs of these names can be submitted, before anything is written.

    Raises:
        UsageError: one of them is in the queue already.
        SavimaeError: there is no Slurm here, or it does not answer.
    """
    if shutil.which("sbatch") is None:
        raise _absent("sbatch")
    for entry in queue(names):
        raise UsageError(
            f"job {entry.job_id} does the same and is in the queue ({entry.state.lower()}); wait "
            f"for it, or end it with `scancel {entry.job_id}`"
        )


def submit(steps: Sequence[Step]) -> list[str]:
    """Submit scripts, each after the one before it; all of them or none.

    Returns:
        Their job ids.

    Raises:
        SavimaeError: Slurm refuses one.
    """
    for step in steps:
        _run("sbatch", "--test-only", step.path)
    ids: list[str] = []
    try:
        for step in steps:
            options = []
            if step.after is not None:
                options = [f"--dependency={step.after}:{ids[-1]}", "--kill-on-invalid-dep=yes"]
            ids.append(_submit(options, step.path))
    except SavimaeError:
        if ids:
            _run("scancel", *ids)
        raise
    return ids


def submit_parts(record: Record, parts: Sequence[int]) -> str:
    """Submit the array of `record` again, but only these parts of it; returns the job id.

    Raises:
        SavimaeError: Slurm refuses it.
    """
    throttle = f"%{record.throttle}" if record.throttle else ""
    return _submit([f"--array={ranges(parts)}{throttle}"], record.script)


def submit_again(record: Record, after: str | None = None) -> str:
    """Submit the script of `record` once more; returns the job id. Raises as `submit_parts`.

    Args:
        after: the job whose end it waits for.
    """
    return _submit([] if after is None else [f"--dependency=afterany:{after}"], record.script)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as Slurm writes them: [3, 17, 40, 41, 42] -> 3,17,40-42."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def _submit(options: list[str], path: str) -> str:
    return _run("sbatch", "--parsable", *options, path).split(";")[0].strip()


def _run(*command: str) -> str:
    """Standard output of one of Slurm's commands."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            errors="backslashreplace",
        )  # fmt: skip
    except FileNotFoundError:
        raise _absent(command[0]) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SavimaeError(f"{command[0]} does not answer ({one_line(error)})") from error
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())
        if any(each in words for each in NOT_SET_UP):
            raise SavimaeError(
                f"Slurm is not set up on this machine, which has no slurm.conf: {USE}"
            )
        if any(each in words for each in SILENT):
            raise SavimaeError(
                f"Slurm's controller does not answer {command[0]}: try again later; "
                "`scontrol ping` says whether it is up"
            )
        about = f" for {shown(command[-1])}" if os.path.isabs(command[-1]) else ""
        raise SavimaeError(f"{command[0]} fails{about}: {shown(words)}")
    return done.stdout


def _absent(command: str) -> SavimaeError:
    return SavimaeError(f"there is no {command} here: {USE}")


# ------------------------------------------------------------------------------------ queue


@dataclasses.dataclass(frozen=True)
class Entry:
    """A job, or a task of an array, that waits or runs."""

    job_id: str  # of the whole array
    part: int | None  # of an array
    state: str  # PENDING, RUNNING, COMPLETING, …
    reason: str  # why it waits


def queue(names: Sequence[str]) -> list[Entry]:
    """What waits or runs under these names.

    Raises:
        SavimaeError: there is no Slurm here, or it does not answer.
    """
    listed = _run("squeue", "--noheader", "--array", f"--name={','.join(names)}",
                  "--format=%F|%K|%T|%r")  # fmt: skip
    entries = []
    for line in listed.splitlines():
        job_id, part, state, reason = line.split("|", 3)
        entries.append(Entry(job_id, int(part) if part.isdecimal() else None, state, reason))
    return entries
