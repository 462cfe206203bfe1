"""Batch scripts for Slurm: a savimae command and what to ask of the cluster -> a script's text.

Everything here is a pure function of its arguments, apart from reading templates. A script is a
template of `slurm_templates/` with its `{{names}}` filled in:

| name             | what it becomes                                            |
|------------------|------------------------------------------------------------|
| `directives`     | the `#SBATCH` lines                                        |
| `prologue`,`run` | the templates of these names, which all jobs share         |
| `folder`         | where relative paths start                                 |
| `setup`          | the user's lines: modules, conda, venv                     |
| `command`        | the words of the savimae command, quoted for the shell     |
| `passed_on`      | the last words of `study`, from their `--` on              |
| `shards`         | parts of the array                                         |
| `tasks_per_node` | processes on each node                                     |
| `processes_per`  | node, socket or numa: what has a process of its own        |
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import os
import re
import shlex
import string
import zlib
from collections.abc import Sequence

from savimae.system.errors import UsageError, one_line, shown

TRAINING = ("train", "finetune")  # of as many processes as there are nodes or GPUs
KINDS = ("preprocess", "check", *TRAINING, "study", "collect")
FRAGMENTS = ("prologue", "run")
VIDEOS = "videos.txt"  # in the folder of a pipeline's run: what the check found whole
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<fields>\d+(?::\d+){0,2})")
MEMORY = re.compile(r"\d+[KMGT]?")
PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a job asks of the cluster. None: the cluster's default."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None  # as Slurm writes it, such as 30 (minutes), 12:00:00, 2-00:00:00
    nodes: int = 1
    tasks_per_node: int = 1
    processes_per: str = "node"  # or socket, numa: how many a node has is seen on the node
    cpus_per_task: int | None = None  # None: the job has its nodes to itself
    memory: str | None = None  # of each node, such as 16G
    gpus_per_node: int = 0
    mail_user: str | None = None
    mail_type: str = "END,FAIL"  # when to write to mail_user
    dependency: str | None = None
    stop_before_s: int = 120  # before the time limit, the signal to save and stop
    sbatch: tuple[str, ...] = ()  # further #SBATCH lines
    setup: tuple[str, ...] = ()  # shell lines that set up the environment

    def __post_init__(self) -> None:
        for name in ("nodes", "tasks_per_node", "stop_before_s"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.cpus_per_task is not None and self.cpus_per_task < 1:
            raise ValueError(f"cpus_per_task must be at least 1, not {self.cpus_per_task}")
        is_spread = self.tasks_per_node > 1 or self.gpus_per_node or self.cpus_per_task is not None
        if self.processes_per != "node" and is_spread:
            raise ValueError(
                f"processes_per {self.processes_per} takes whole nodes without GPUs and counts "
                "their processes and cores itself; leave tasks_per_node, cpus_per_task and "
                "gpus_per_node out"
            )
        if self.gpus_per_node < 0:
            raise ValueError(f"gpus_per_node must be at least 0, not {self.gpus_per_node}")
        if self.memory is not None and not MEMORY.fullmatch(self.memory):
            raise ValueError(f"mem {self.memory!r} is not like 16G or 4000M")
        if self.time is not None and seconds_of(self.time) < self.stop_before_s + 60:
            raise ValueError(
                f"a time of {self.time} leaves less than a minute before the signal to stop, which "
                f"comes {self.stop_before_s} s before its end; ask for more time, or give a "
                "shorter --stop-before"
            )
        for line in self.sbatch:
            if not line.startswith("-") or "\n" in line or "\r" in line:
                raise ValueError(f"{line!r} is not a line for sbatch, such as --reservation=name")


def seconds_of(time: str) -> int:
    """A time limit as Slurm writes it, in seconds.

    `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`, `days-hours:minutes` or
    `days-hours:minutes:seconds` (manual of sbatch).

    Raises:
        ValueError: none of these.
    """
    match = TIME.fullmatch(time)
    if match is None:
        raise ValueError(f"time {time!r} is not like 30 (minutes), 12:00:00 or 2-00:00:00")
    fields = [int(field) for field in match["fields"].split(":")]
    if match["days"] is None:
        hours, minutes, seconds = {
            1: lambda: (0, fields[0], 0),
            2: lambda: (0, *fields),
            3: lambda: tuple(fields),
        }[len(fields)]()
        return 3600 * hours + 60 * minutes + seconds
    hours, minutes, seconds = (*fields, 0, 0)[:3]
    return 86400 * int(match["days"]) + 3600 * hours + 60 * minutes + seconds


@dataclasses.dataclass(frozen=True)
class Job:
    """A savimae command as a job."""

    kind: str  # one of KINDS
    output: str  # the folder it makes: of arrays or of a run; absolute
    arguments: tuple[str, ...]  # the words after `savimae`
    program: tuple[str, ...]  # how the nodes call savimae
    folder: str  # where relative paths start; absolute
    logs: str  # absolute
    shards: int | None = None  # parts of an array; None: one job
    throttle: int | None = None  # parts at a time; None: as many as there is room for
    passed_on: tuple[str, ...] = ()  # last words, from their -- on

    @property
    def name(self) -> str:
        return job_name(self.kind, self.output)

    @property
    def log(self) -> str:
        """Path of its logs with Slurm's patterns for the numbers of job and task."""
        pattern = "%j.log" if self.shards is None else "%A_%a.log"
        return os.path.join(self.logs.replace("%", "%%"), f"{self.kind}-{pattern}")


def job_name(kind: str, output: str) -> str:
    """What a job is called in the queue. It follows from what it makes, to be found by that."""
    stem = re.sub(r"[^A-Za-z0-9_.-]", "", os.path.basename(output))[:20]
    return f"savimae-{kind}-{stem}-{zlib.crc32(os.fsencode(os.path.realpath(output))):08x}"


def can_hold_logs(folder: str) -> bool:
    """Whether a directive can name this folder.

    A directive is one line, and a backslash turns off Slurm's patterns for numbers.
    """
    return not set(folder) & set("\n\r\\\0")


def render(job: Job, resources: Resources, templates: str | None = None) -> str:
    """The script of `job`.

    Args:
        templates: a folder whose files are taken instead of ours of the same names.

    Raises:
        UsageError: a template that cannot be read or that asks for something unknown.
    """
    values = {
        "directives": "\n".join(directives(job, resources)),
        "folder": shlex.quote(job.folder),
        "setup": "\n".join(resources.setup) or "# No environment was asked to be set up.",
        "command": _command_lines([*job.program, *job.arguments], len(job.program) + 1),
        "passed_on": _command_lines(job.passed_on, 1),
        "shards": str(job.shards or 1),
        "tasks_per_node": str(resources.tasks_per_node),
        "processes_per": resources.processes_per,
    }
    for fragment in FRAGMENTS:
        values[fragment] = _filled(fragment, values, templates).rstrip("\n")
    return _filled("train" if job.kind in TRAINING else job.kind, values, templates)


def directives(job: Job, resources: Resources) -> list[str]:
    """The `#SBATCH` lines."""
    array = None
    if job.shards is not None:
        array = f"0-{job.shards - 1}" + (f"%{job.throttle}" if job.throttle else "")
    whole_nodes = resources.cpus_per_task is None
    options: list[tuple[str, object]] = [
        ("job-name", job.name),
        ("output", job.log),
        ("open-mode", "append"),
        ("array", array),
        ("partition", resources.partition),
        ("account", resources.account),
        ("qos", resources.qos),
        ("constraint", resources.constraint),
        ("time", resources.time),
        ("nodes", resources.nodes),
        ("ntasks-per-node", resources.tasks_per_node),
        ("cpus-per-task", resources.cpus_per_task),
        ("gpus-per-node", resources.gpus_per_node or None),
        ("mem", resources.memory or ("0" if whole_nodes else None)),
        ("dependency", resources.dependency),
        ("mail-user", resources.mail_user),
        ("mail-type", resources.mail_type if resources.mail_user else None),
        ("signal", f"B:USR1@{resources.stop_before_s}"),
    ]
    lines = [f"--{name}={_quoted(str(value))}" for name, value in options if value is not None]
    lines += ["--requeue", *(["--exclusive"] if whole_nodes else []), *resources.sbatch]
    return [f"#SBATCH {line}" for line in lines]


def _quoted(value: str) -> str:
    """`value` as a directive holds it: double quotes, backslashes for what is special in them."""
    if PLAIN.fullmatch(value):
        return value
    if not can_hold_logs(value):
        raise ValueError(f"{value!r} has a line break or a backslash, which Slurm cannot read")
    return '"' + value.replace('"', '\\"') + '"'


def _command_lines(words: Sequence[str], n_first: int) -> str:
    """Words as lines of a shell array: the first ones, then each option with its value."""
    if not words:
        return ""
    lines = [[" ".join(_quoted_word(word) for word in words[:n_first])]]
    for word in words[n_first:]:
        follows_option = len(lines[-1]) == 1 and lines[-1][0].startswith("--")
        if follows_option and not word.startswith("--"):
            lines[-1].append(_quoted_word(word))
        else:
            lines.append([_quoted_word(word)])
    return "\n".join("  " + " ".join(line) for line in lines)


def _quoted_word(word: str) -> str:
    """As `shlex.quote`; commas are quoted too: in an array they look like a mistake."""
    quoted = shlex.quote(word)
    return f"'{word}'" if quoted == word and "," in word else quoted


class _Template(string.Template):
    """Shell text with `{{names}}`; `$` and braces stay the shell's."""

    delimiter = "{{"
    pattern = r"\{\{(?:(?P<escaped>\{\{)|(?P<named>\w+)\}\}|(?P<braced>(?!))|(?P<invalid>))"  # type: ignore[assignment]


def _filled(name: str, values: dict[str, str], templates: str | None) -> str:
    path, text = _template(f"{name}.sh", templates)
    try:
        return _Template(text).substitute(values)
    except KeyError as error:
        known = ", ".join(sorted(values))
        raise UsageError(
            f"{shown(path)}: {{{{{error.args[0]}}}}} is not known; templates may name {known}"
        ) from None
    except ValueError as error:
        raise UsageError(f"{shown(path)}: {one_line(error)}") from None


def _template(name: str, templates: str | None) -> tuple[str, str]:
    """Path and text of a template: the user's if there is one, else ours."""
    if templates is not None:
        if not os.path.isdir(templates):
            raise UsageError(f"{shown(templates)}: no such folder of templates")
        path = os.path.join(templates, name)
        if os.path.exists(path):
            try:
                with open(path, encoding="utf-8") as file:
                    return path, file.read()
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"{shown(path)}: {one_line(error)}") from error
    ours = importlib.resources.files("savimae") / "slurm_templates" / name
    return str(ours), ours.read_text(encoding="utf-8")
