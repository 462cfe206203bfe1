"""The commands of `savimae slurm`: options and a site's profile -> scripts, jobs, their status."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource

from savimae.commands.options import (
    PATH,
    PassingCommand,
    finetune_config,
    option_group,
    saliency_config,
    train_config,
)
from savimae.commands.study import make_study, study_options, words_of
from savimae.commands.study import study as study_command
from savimae.system.errors import SavimaeError, UsageError, shown

if TYPE_CHECKING:
    from savimae.saliency.config import SaliencyConfig
    from savimae.slurm.jobs import Script, Step
    from savimae.slurm.profile import Profile
    from savimae.slurm.script import Job, Resources
    from savimae.study.plan import Study
    from savimae.training.distributed import World
    from savimae.training.finetune import FinetuneConfig
    from savimae.training.pretrain import TrainConfig
    from savimae.training.setup import RunConfig


PROCESSES_PER = ("node", "socket", "numa")


class Key(NamedTuple):
    """An option of the command line that may also stand in a profile."""

    type: click.ParamType
    help: str
    field: str | None = None  # of `Resources`
    has_lines: bool = False  # several values: the option is repeated, a profile has lines


KEYS = {
    "partition": Key(click.STRING, "Partitions, with commas between.", "partition"),
    "account": Key(click.STRING, "Account to charge.", "account"),
    "qos": Key(click.STRING, "Quality of service.", "qos"),
    "constraint": Key(click.STRING, "Features that the nodes must have.", "constraint"),
    "time": Key(click.STRING, "Time limit of a start, such as 12:00:00 or 2-00:00:00.", "time"),
    "nodes": Key(click.IntRange(1), "Nodes.  [1]", "nodes"),
    "tasks-per-node": Key(
        click.IntRange(1), "Processes on each node.  [one a GPU, or one]", "tasks_per_node"
    ),
    "processes-per": Key(
        click.Choice(PROCESSES_PER),
        "One process for each node, or for each socket or NUMA node of whole nodes.  [node]",
        "processes_per",
    ),
    "cpus-per-task": Key(
        click.IntRange(1),
        "Cores of each process.  [arrays: 4; training: 8 a GPU, or whole nodes]",
        "cpus_per_task",
    ),
    "mem": Key(click.STRING, "Memory of each node, such as 16G.", "memory"),
    "gpus-per-node": Key(click.IntRange(0), "GPUs of each node.  [0]", "gpus_per_node"),
    "mail-user": Key(click.STRING, "Whom to write to.", "mail_user"),
    "mail-type": Key(click.STRING, "When to write.  [END,FAIL]", "mail_type"),
    "dependency": Key(click.STRING, "What to wait for, such as afterok:1234.", "dependency"),
    "stop-before": Key(
        click.IntRange(1), "Seconds before the time limit to save and stop.  [120]", "stop_before_s"
    ),
    "throttle": Key(click.IntRange(1), "Parts that run at the same time, at most."),
    "setup": Key(click.STRING, "Shell line for the environment; may be repeated.", "setup", True),
    "sbatch": Key(
        click.STRING, "Further option, such as --reservation=x; may be repeated.", "sbatch", True
    ),
    "program": Key(click.STRING, "How the nodes call savimae.  [with the Python that runs this]"),
    "templates": Key(PATH, "Folder of templates that win over ours."),
}
# Other jobs have one process.
OF_TRAINING = ("nodes", "tasks-per-node", "processes-per", "gpus-per-node")
OF_SIZE = (*OF_TRAINING, "time", "cpus-per-task", "mem")  # each job of a pipeline has its own
OF_SITE = ("partition", "account", "qos", "constraint", "mail-user", "mail-type", "stop-before")

CPUS_OF_A_PART = 4  # of each part of an array
CPUS_OF_A_GPU = 8
CHECK_CPUS = 1
ONE_CPU = ("check", "collect")
WOULD_FAIL = "(the job would fail; --no-check makes the script all the same)"
# How a job waits for the one before: check and collect look at whatever came of the array.
AFTER = {"check": "afterany", "train": "afterok", "collect": "afterany"}


def _option(key: str, prefix: str = "", text: str | None = None) -> Callable[..., Any]:
    spec = KEYS[key]
    return click.option(
        f"--{prefix}{key}", type=spec.type, multiple=spec.has_lines, help=text or spec.help
    )


def _resources(*more: str) -> Callable[..., Any]:
    keys = [key for key in KEYS if key in (*OF_SITE, *more)]
    return option_group("What to ask of Slurm", *map(_option, keys))


def _script_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a script is made and what becomes of it; shared by all that make scripts."""
    how = option_group(
        "How the scripts are made",
        *map(_option, ("setup", "sbatch", "program", "templates")),
        click.option(
            "--logs", type=PATH, help="Folder of the logs.  [slurm/logs in the folder that is made]"
        ),
        click.option(
            "--profile",
            type=PATH,
            help="The site's settings.  [$SAVIMAE_SLURM_PROFILE or ~/.config/savimae/slurm.ini]",
        ),
    )
    fate = option_group(
        "What becomes of them (default: printed)",
        click.option(
            "--output", type=PATH, help="Write it; of several scripts, the folder for them."
        ),
        click.option("--submit", is_flag=True, help="Submit it to Slurm."),
        click.option(
            "--no-check",
            is_flag=True,
            help="Do not look at what the job would find: for paths that only the nodes see, and "
            "files that another job makes before.",
        ),
    )
    return how(fate(command))


@click.group()
def slurm() -> None:
    """Batch scripts for Slurm: print, write or submit them, and see how far they are.

    Jobs stop before their time limit, save, and are queued again until all is done. Settings of a
    site are kept in a profile; see docs/slurm.md.
    """


@slurm.command(cls=PassingCommand)
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@click.argument("arguments", metavar="[-- OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@option_group(
    "The array",
    click.option("--shards", type=click.IntRange(1), required=True, help="Parts of the array."),
    _option("throttle"),
)
@_resources("time", "cpus-per-task", "mem", "dependency")
@_script_options
@click.pass_context
def preprocess(
    ctx: click.Context, source: str, out: str, arguments: tuple[str, ...], shards: int, **_: Any
) -> None:
    """An array job of `savimae preprocess SOURCE OUT`, with the OPTIONS after --."""
    words = ("preprocess", source, out, *arguments)
    given = _checked(ctx, words, source=source, out=out, shard="0/1", list_path=None)
    if given["check"] or given["overwrite"]:
        word = "check" if given["check"] else "overwrite"
        raise UsageError(f"--{word} is not for an array, whose parts may start several times")
    names = ("saliency", "threshold", "input_size", "patch_size", "fit")
    saliency = saliency_config(**{name: given[name] for name in names})
    site = _Site(ctx)
    site.check_arrays(source, out, saliency, given["dtype"], given["root"])
    job = site.job("preprocess", out, words, shards)
    _finish(ctx, [site.script(job, source=source, root=given["root"], limit=given["limit"])])


@slurm.command(cls=PassingCommand)
@click.argument("arguments", metavar="[-- OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@option_group(
    "The run",
    click.option("--data", type=PATH, required=True, metavar="LIST_OR_FOLDER", help="Videos."),
    click.option("--out", type=PATH, required=True, metavar="RUN", help="The run's folder."),
    click.option("--saliency-root", type=PATH, metavar="DIR", help="Arrays."),
)
@_resources(*OF_SIZE, "dependency")
@_script_options
@click.pass_context
def train(
    ctx: click.Context,
    data: str,
    out: str,
    saliency_root: str | None,
    arguments: tuple[str, ...],
    **_: Any,
) -> None:
    """A job of `savimae train`, with the OPTIONS after --: one process a node, socket or GPU."""
    arrays = ["--saliency-root", saliency_root] if saliency_root else []
    words = ("train", "--data", data, *arrays, "--out", out, *arguments)
    site = _Site(ctx)
    given = _checked(ctx, words, data=data, out=out, saliency_root=saliency_root)
    site.check_training(_training(given, site))
    _finish(ctx, [site.script(site.job("train", out, words))])


@slurm.command(cls=PassingCommand)
@click.argument("checkpoint", type=PATH)
@click.argument("arguments", metavar="[-- OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@option_group(
    "The run",
    click.option("--train", type=PATH, required=True, metavar="LIST_OR_FOLDER", help="Videos."),
    click.option("--test", type=PATH, metavar="LIST", help="Videos of the test."),
    click.option("--out", type=PATH, required=True, metavar="RUN", help="The run's folder."),
)
@_resources(*OF_SIZE, "dependency")
@_script_options
@click.pass_context
def finetune(
    ctx: click.Context,
    checkpoint: str,
    train: str,
    test: str | None,
    out: str,
    arguments: tuple[str, ...],
    **_: Any,
) -> None:
    """A job of `savimae finetune`, with the OPTIONS after --: one process a node, socket or GPU."""
    tested = ["--test", test] if test else []
    words = ("finetune", checkpoint, "--train", train, *tested, "--out", out, *arguments)
    site = _Site(ctx)
    given = _checked(ctx, words, checkpoint=checkpoint, data=train, test=test, out=out)
    config = finetune_config(**{name: given[name] for name in given if name != "allocator"})
    _check_schedule(config, site.world("finetune"))
    site.check_finetuning(config)
    _finish(ctx, [site.script(site.job("finetune", out, words))])


@slurm.command(cls=PassingCommand)
@click.argument("source", type=PATH)
@click.argument("arguments", metavar="[-- OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@option_group(
    "The pipeline",
    click.option(
        "--saliency-root", type=PATH, required=True, metavar="DIR", help="Where the arrays go."
    ),
    click.option("--out", type=PATH, required=True, metavar="RUN", help="The run's folder."),
    click.option(
        "--threshold", type=float, help="As of `preprocess`.  [0.5]"
    ),
    click.option(
        "--allow-missing", type=click.IntRange(0), default=0, show_default=True, metavar="N",
        help="Train without up to N videos that cannot be decoded.",
    ),
)  # fmt: skip
@option_group(
    "The array",
    click.option("--shards", type=click.IntRange(1), required=True, help="Parts of the array."),
    _option("throttle"),
    *(
        _option(key, "preprocess-", f"--{key} of the array and of the check.")
        for key in ("partition", "time", "cpus-per-task", "mem")
    ),
)
@_resources(*OF_SIZE, "dependency")
@_script_options
@click.pass_context
def pipeline(
    ctx: click.Context,
    source: str,
    saliency_root: str,
    out: str,
    threshold: float | None,
    allow_missing: int,
    shards: int,
    arguments: tuple[str, ...],
    **_: Any,
) -> None:
    """An array that preprocesses, a check that all arrays are there, and training, in a chain.

    Options that size a job (--nodes, --time, …) are those of the training; the array has its own.
    OPTIONS after -- go to `savimae train`; the sizes of the arrays follow from them.
    """
    from savimae.data.fitting import PRESS
    from savimae.saliency.config import FRAME_MEAN
    from savimae.slurm.script import VIDEOS

    videos = os.path.join(out, VIDEOS)
    training = ("train", "--data", videos, "--saliency-root", saliency_root, "--out", out)
    words = (*training, *arguments)
    site = _Site(ctx)
    given = _checked(ctx, words, data=videos, out=out, saliency_root=saliency_root)
    config = _training(given, site)
    if config.init is None and given["init"] and not (config.input_size and config.patch_size):
        raise UsageError(
            f"{shown(given['init'])}: not there, and the sizes of the arrays follow from it; give "
            "--input-size and --patch-size after the --"
        )
    saliency = config.saliency_config()
    settings = saliency_config(
        saliency.kind, threshold, saliency.input_size, saliency.patch_size, saliency.fit
    )
    site.check_arrays(source, saliency_root, settings, "uint8", config.root)
    site.check_training(config, source)
    arrays = (
        "preprocess", source, saliency_root,
        "--input-size", str(saliency.input_size), "--patch-size", str(saliency.patch_size),
        *(["--fit", saliency.fit] if saliency.fit != PRESS else []),
        *(["--saliency", saliency.kind] if saliency.kind != FRAME_MEAN else []),
        *(["--threshold", str(settings.threshold)] if saliency.kind == FRAME_MEAN else []),
        *(["--root", config.root] if config.root is not None else []),
    )  # fmt: skip
    check = (*arrays, "--check", "--allow-missing", str(allow_missing), "--list", videos)
    array_job = site.job("preprocess", saliency_root, arrays, shards)
    scripts = [
        site.script(array_job, source=source, root=config.root),
        site.script(site.job("check", out, check)),
        site.script(site.job("train", out, words)),
    ]
    _finish(ctx, scripts)


@slurm.command(cls=PassingCommand)
@click.argument("arguments", metavar="[-- OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@study_options
@option_group("The array", _option("throttle"))
@_resources("time", "cpus-per-task", "mem", "dependency")
@_script_options
@click.pass_context
def study(ctx: click.Context, arguments: tuple[str, ...], **options: Any) -> None:
    """An array with a task for each cell of `savimae study`, and a job that collects.

    OPTIONS after -- go to `savimae train`.
    """
    given = {
        parameter.name: parameter for parameter in study_command.params
        if parameter.name not in ("arguments", "shard", "collect")
    }  # fmt: skip
    plan = make_study(ctx, arguments, **{name: options[name] for name in options if name in given})
    site = _Site(ctx)
    site.check_study(plan)
    words = ["study"]
    for name, parameter in given.items():
        if ctx.get_parameter_source(str(name)) == ParameterSource.COMMANDLINE:
            words += words_of(parameter, options[str(name)])
    passed_on = ("--", *arguments) if arguments else ()
    array = site.job("study", plan.out, words, len(plan.cells()), passed_on)
    collecting = site.job("collect", plan.out, [*words, "--collect"], passed_on=passed_on)
    _finish(ctx, [site.script(array), site.script(collecting)])


@slurm.command()
@click.argument("folder", metavar="RUN_OR_OUT", type=PATH)
@click.option("--resubmit", is_flag=True, help="Submit what is missing and not in the queue.")
def status(folder: str, resubmit: bool) -> None:
    """How far a run or a folder of arrays is: done, missing, failed, rate, time left, queue."""
    from savimae.slurm.status import status as look

    for line in look(folder, resubmit):
        click.echo(line)


# -------------------------------------------------------------------------- what they share


def _checked(ctx: click.Context, words: Sequence[str], **expected: Any) -> dict[str, Any]:
    """Parse the words of a savimae command as the job will; returns its options.

    Args:
        expected: options that the job sets itself and that the user's words must leave alone.

    Raises:
        UsageError, click.UsageError: the command would refuse them.
    """
    root = ctx.find_root()
    assert isinstance(root.command, click.Group)
    command = root.command.commands[words[0]]
    parsed = command.make_context(words[0], list(words[1:]), parent=root).params
    for name, value in expected.items():
        if parsed[name] != value:
            option = name.removesuffix("_path").replace("_", "-")
            raise UsageError(f"--{option} after the -- is what `savimae slurm` sets itself")
    return dict(parsed)


def _training(given: dict[str, Any], site: _Site) -> TrainConfig:
    """The config of a training, after all checks that need no videos.

    Without --init, if that is not there and need not be.
    """
    config = train_config(**{name: given[name] for name in given if name != "allocator"})
    if config.init is not None and not os.path.exists(config.init):
        site.refuse_missing(config.init)
        config = dataclasses.replace(config, init=None)
    try:
        config.mask_spec()
        config.clip_config()
        config.saliency_config()
    except ValueError as error:
        raise UsageError(str(error)) from None
    _check_schedule(config, site.world("train"))
    return config


def _check_schedule(config: RunConfig, world: World) -> None:
    """Refuse learning rates and a warm-up that do not fit the run."""
    from savimae.training.plan import Plan

    try:
        config.schedule(Plan(1, config.batch_size, config.accumulate, world))
    except ValueError as error:
        raise UsageError(str(error)) from None


class _Site:
    """The options of one command line and the site's profile."""

    def __init__(self, ctx: click.Context):
        from savimae.slurm.profile import read_profile

        self.ctx = ctx
        self.profile: Profile = read_profile(ctx.params["profile"], KEYS)

    def check_arrays(
        self, source: str, out: str, saliency: SaliencyConfig, dtype: str, root: str | None
    ) -> None:
        """Refuse an array job that would be refused when it starts."""
        from savimae.saliency.makers import ArrayMaker
        from savimae.saliency.preprocess import check_start

        self._look(check_start, source, out, ArrayMaker(saliency, dtype), root)

    def check_training(self, config: TrainConfig, source: str | None = None) -> None:
        """Refuse a training that would be refused when it starts; see `pretrain.check_training`."""
        from savimae.training.pretrain import check_training

        self._look(check_training, config, self.world("train"), source)

    def check_finetuning(self, config: FinetuneConfig) -> None:
        """Refuse a fine-tuning that would be refused when it starts."""
        from savimae.training.finetune import check_finetuning

        self._look(check_finetuning, config, self.world("finetune"))

    def check_study(self, study: Study) -> None:
        """Refuse a study that would be refused when it starts."""
        from savimae.study.run import check_study

        self._look(check_study, study)

    def refuse_missing(self, path: str) -> None:
        """Refuse what is not there, unless the user does not want that."""
        if not self.ctx.params["no_check"]:
            raise UsageError(f"{shown(path)}: no such file or folder {WOULD_FAIL}")

    def _look(self, check: Callable[..., None], *arguments: Any) -> None:
        """Call what looks at files, unless the user does not want that."""
        if self.ctx.params["no_check"]:
            return
        try:
            check(*arguments)
        except SavimaeError as error:
            raise type(error)(f"{error} {WOULD_FAIL}") from error

    def value(self, kind: str, key: str) -> Any:
        """An option from the command line, else from the profile, else None."""
        in_pipeline = self.ctx.command.name == "pipeline"
        if in_pipeline and kind != "preprocess" and key == "dependency":  # the first job has it
            return None
        if kind == "collect" and key in (*OF_SIZE, "dependency"):  # as its section of a profile
            names = []
        else:
            names = [key.replace("-", "_")]
        if in_pipeline and kind != "train":
            names = [f"preprocess_{names[0]}", *([] if key in OF_SIZE else names)]
        for name in names:
            if self.ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE:
                return self.ctx.params[name]
        found = self.profile.find(kind, key)
        if found is None:
            return None
        text, place = found
        if KEYS[key].has_lines:
            return tuple(line for line in text.splitlines() if line.strip())
        try:
            return KEYS[key].type.convert(text, None, None)
        except click.BadParameter as error:
            raise UsageError(f"{place}: {error.message.rstrip('.')}") from None

    def job(
        self, kind: str, output: str, words: Sequence[str], shards: int | None = None,
        passed_on: Sequence[str] = (),
    ) -> Job:  # fmt: skip
        from savimae.slurm.jobs import slurm_folder
        from savimae.slurm.script import Job, can_hold_logs

        program = self.value(kind, "program")
        try:
            calls = shlex.split(program) if program else [sys.executable, "-m", "savimae"]
        except ValueError as error:
            raise UsageError(f"--program {shown(program)}: {error}{self._where()}") from None
        output = os.path.abspath(output)
        given = self.ctx.params["logs"]
        logs = os.path.abspath(given) if given else os.path.join(slurm_folder(output), "logs")
        if not given and not can_hold_logs(logs):
            logs = os.path.abspath("slurm-logs")
        if not can_hold_logs(logs):
            raise UsageError(
                f"{shown(logs)}: Slurm cannot write logs into a folder with a line break or a "
                "backslash in its path; name another one with --logs"
            )
        throttle = self.value(kind, "throttle") if shards else None
        return Job(
            kind, output, tuple(words), tuple(calls), os.getcwd(), logs, shards, throttle,
            tuple(passed_on),
        )  # fmt: skip

    def resources(self, kind: str) -> Resources:
        from savimae.slurm.script import TRAINING, Resources

        values = {
            spec.field: value
            for key, spec in KEYS.items()
            if spec.field is not None and (value := self.value(kind, key)) is not None
        }
        if kind in TRAINING:
            gpus = values.get("gpus_per_node", 0)
            values.setdefault("tasks_per_node", gpus or 1)
            if gpus:
                values.setdefault("cpus_per_task", CPUS_OF_A_GPU)
        else:
            for key in OF_TRAINING:  # where a profile has them for all
                values.pop(str(KEYS[key].field), None)
            values.setdefault("cpus_per_task", CHECK_CPUS if kind in ONE_CPU else CPUS_OF_A_PART)
        try:
            return Resources(**values)
        except ValueError as error:
            raise UsageError(f"{kind}: {error}{self._where()}") from None

    def _where(self) -> str:
        """Names the profile, from which a value may have come, for an error message."""
        return f"; look at {shown(self.profile.path)} as well" if self.profile.path else ""

    def world(self, kind: str) -> World:
        """As many processes as the script asks for."""
        from savimae.training.distributed import World

        resources = self.resources(kind)
        return World(size=resources.nodes * resources.tasks_per_node)

    def script(self, job: Job, **noted: Any) -> Script:
        from savimae.slurm.jobs import Script
        from savimae.slurm.script import render

        templates = self.value(job.kind, "templates")
        try:
            text = render(job, self.resources(job.kind), templates)
        except (ValueError, UsageError) as error:
            raise UsageError(f"{error}{self._where()}") from None
        source, root = noted.pop("source", None), noted.pop("root", None)
        return Script(
            job, text, source and os.path.abspath(source), root and os.path.abspath(root), **noted
        )


def _finish(ctx: click.Context, scripts: Sequence[Script]) -> None:
    """Print scripts, write them, or submit them as a chain."""
    from savimae.slurm.jobs import Step, check_submission, submit, write_script

    output, submits = ctx.params["output"], ctx.params["submit"]
    if output and submits:
        raise UsageError("--output writes and --submit submits: give one of them")
    if not output and not submits:
        _print(scripts)
        return
    if submits:
        check_submission([script.job.name for script in scripts])
    paths = [output]
    if len(scripts) > 1 or not output:
        paths = [output and os.path.join(output, f"{script.job.kind}.sh") for script in scripts]
    steps = [
        Step(write_script(script, path), AFTER[script.job.kind] if index else None)
        for index, (script, path) in enumerate(zip(scripts, paths, strict=True))
    ]
    if submits:
        ids = submit(steps)
        for script, step, job_id in zip(scripts, steps, ids, strict=True):
            click.echo(_submitted(script.job, step, job_id))
        click.echo(f"end them with: scancel {' '.join(ids)}")
        return
    for step in steps:
        click.echo(f"wrote {shown(step.path)}")
    click.echo("submit with:")
    for index, step in enumerate(steps):
        last = index == len(steps) - 1
        after = f" --dependency={step.after}:$job --kill-on-invalid-dep=yes" if step.after else ""
        parsable = "" if last else " --parsable"
        call = f"sbatch{parsable}{after} {shlex.quote(step.path)}"
        click.echo(f"  {call if last else f'job=$({call})'}")


def _print(scripts: Sequence[Script]) -> None:
    for script in scripts:
        if len(scripts) > 1:
            click.echo(f"# ---- {script.job.kind}.sh")
        click.echo(script.text.encode("utf-8", "surrogateescape"), nl=False)
    for folder in sorted({script.job.logs for script in scripts}):
        if not os.path.isdir(folder):
            click.echo(
                f"note: Slurm runs this only where {shown(folder)} exists; --output and --submit "
                "make it",
                err=True,
            )


def _submitted(job: Job, step: Step, job_id: str) -> str:
    """What was submitted, and where to watch it."""
    what = f"job {job_id}: {job.kind}"
    if job.shards is not None:
        what += f", {job.shards} parts"
        what += f", at most {job.throttle} at a time" if job.throttle else ""
    if step.after is not None:
        what += f", {step.after} of the job before"
    log = job.log.replace("%%", "%").replace("%A", job_id).replace("%j", job_id)
    return (
        f"{what}\n  script  {shown(step.path)}\n  log     {shown(log.replace('%a', '*'))}\n"
        f"  watch   savimae slurm status {shown(shlex.quote(job.output))}"
    )
