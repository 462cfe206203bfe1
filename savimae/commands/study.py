"""The command that compares ways of pretraining: options -> a `Study` -> one call."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from savimae.commands.judging import LAYER, LabelCounts
from savimae.commands.options import (
    ALLOW_OVERLAP,
    PATH,
    ROOT,
    PassingCommand,
    both_spellings,
    finetune_config,
    left_of_recipe,
    option_group,
    train_config,
)
from savimae.system.allocator import keep_memory
from savimae.system.errors import UsageError, shown

if TYPE_CHECKING:
    from savimae.study.plan import Budget, Study, Way

NO_FINETUNING = "none"
YES_NO = {"yes": True, "no": False}
# Options of `savimae finetune` that follow from the study.
OF_FINETUNING = (
    "checkpoint", "data", "test", "out", "root", "seed", "untrained", "dataset", "split", "splits",
    "device", "precision", "threads", "workers", "allow_overlap", "resume",
)  # fmt: skip


def study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `savimae study` and `savimae slurm study` are told."""
    groups = (
        option_group(
            "The ones that matter",
            click.option(
                "--data", type=PATH, required=True, metavar="LIST_OR_FOLDER",
                help="Videos to pretrain on.",
            ),
            click.option(
                "--train", type=PATH, required=True, metavar="LIST", help="Labelled videos."
            ),
            click.option(
                "--test", type=PATH, required=True, metavar="LIST", help="Videos of the test."
            ),
            click.option(
                "--out", type=PATH, required=True, metavar="DIR",
                help="Cells and report. Run again to go on with it.",
            ),
            click.option(
                "--vary", multiple=True, required=True, metavar="NAME=V,V,…",
                help="An option of `savimae train` and its values; may be repeated: all "
                "combinations.",
            ),
            click.option(
                "--seeds", type=click.IntRange(1), default=3, show_default=True,
                help="Of weights, masks, order and untrained encoders: 1 to so many.",
            ),
        ),
        option_group(
            "What a cell's pretraining costs: one of",
            click.option("--steps", type=click.IntRange(1), help="Optimizer steps."),
            click.option("--flops", type=float, help="Floating point operations, such as 3e14."),
            click.option(
                "--minutes", type=float, help="On its machine, whose speed is measured first."
            ),
        ),
        option_group(
            "How encoders are judged",
            click.option(
                "--pool", type=click.Choice(["mean", "time", "tokens"]), default="time",
                show_default=True, help="Of kNN and the linear probe; see `savimae probe`.",
            ),
            LAYER,
            click.option(
                "--labels", type=LabelCounts(), default="all", show_default=True,
                metavar="N,N,…", help="Training videos of each class: 5,20,all.",
            ),
            click.option("--attentive", is_flag=True, help="Attentive probes too."),
            click.option(
                "--finetune", default="--recipe small", show_default=True, metavar="OPTIONS",
                help=f"Options of `savimae finetune`, in quotes; {NO_FINETUNING}: no fine-tuning.",
            ),
            ALLOW_OVERLAP,
            ROOT,
        ),
    )  # fmt: skip
    for group in reversed(groups):
        command = group(command)
    return command


@click.command(cls=PassingCommand)
@click.argument("arguments", metavar="[-- OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@study_options
@option_group(
    "Parts",
    click.option("--shard", metavar="I/N", help="Part I (from 0) of N of the cells; no report."),
    click.option("--collect", is_flag=True, help="Only write the report of what is done."),
)
@click.pass_context
def study(
    ctx: click.Context, arguments: tuple[str, ...], shard: str | None, collect: bool, **options: Any
) -> int:
    """Compare ways of pretraining at equal cost, and with none: is it worth it, and which masks?

    A cell is one way with one seed: an ordinary run of `savimae train` with the OPTIONS after --,
    then the same probes and fine-tuning for all, beside an untrained encoder and raw pixels. DIR
    gets a table with means, deviations and paired differences as study.md, study.json and
    study.png.
    """
    keep_memory()  # before the first tensor
    from savimae.data.shards import Shard
    from savimae.study.run import print_report, run_study

    if shard is not None and collect:
        raise UsageError("--shard does cells and --collect none; give one of them")
    try:
        part = None if shard is None else Shard.parse(shard)
    except ValueError as error:
        raise UsageError(f"--shard {error}") from None
    plan = make_study(ctx, arguments, **options)
    return print_report(plan) if collect else run_study(plan, part)


def words_of(parameter: click.Parameter, value: Any) -> list[str]:
    """The words that give this value to an option of the command line."""
    name = max(parameter.opts, key=len)
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return [name]
    if isinstance(parameter.type, LabelCounts):
        return [name, ",".join("all" if count is None else str(count) for count in value)]
    if parameter.multiple:
        return [word for each in value for word in (name, str(each))]
    return [name, str(value)]


def make_study(
    ctx: click.Context,
    arguments: Sequence[str],
    data: str,
    train: str,
    test: str,
    out: str,
    vary: Sequence[str],
    seeds: int,
    finetune: str,
    root: str | None,
    **options: Any,
) -> Study:
    """The study that the options of one command line make.

    Raises:
        UsageError, click.UsageError: options that do not fit.
    """
    from savimae.study.plan import BUDGETS, Judges, Study

    budget = _budget({name: options.pop(name) for name in BUDGETS})
    judges = Judges(label_counts=options.pop("labels"), **options)
    ways = _ways(ctx, ("--data", data, "--out", out), vary, arguments, root)
    words = ("unknown", "--train", train, "--test", test, "--out", out)
    tuning = None
    if finetune.strip() != NO_FINETUNING:
        tuning = _finetuning(ctx, words, finetune)
        if judges.allow_overlap:
            tuning = dataclasses.replace(tuning, allow_overlap=True)
    return Study(data, train, test, out, ways, seeds, budget, judges, tuning, root)


def _budget(amounts: dict[str, float | None]) -> Budget:
    from savimae.study.plan import Budget

    given = {name: amount for name, amount in amounts.items() if amount is not None}
    if len(given) != 1:
        raise UsageError("give one of --steps, --flops and --minutes: what a cell may cost")
    ((name, amount),) = given.items()
    try:
        return Budget(name, amount)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _ways(
    ctx: click.Context,
    needed: Sequence[str],
    vary: Sequence[str],
    arguments: Sequence[str],
    root: str | None,
) -> tuple[Way, ...]:
    from savimae.study.plan import OF_CELLS, check_free, make_ways

    parsed, typed = _parsed(ctx, "train", [*needed, *arguments], needed)
    plain, _ = _parsed(ctx, "train", needed, needed)
    check_free(typed)
    common = {name: parsed.params[name] for name in typed}
    of_recipe = {
        name: value for name, value in (parsed.default_map or {}).items() if name not in OF_CELLS
    }

    def recipe(varied: Mapping[str, Any]) -> Mapping[str, Any]:
        return left_of_recipe(of_recipe, varied)

    varied: dict[str, list[tuple[str, Any]]] = {}
    for each in vary:
        name, values = _values(parsed, each)
        if name in common:
            raise UsageError(f"--vary {shown(each)}: it is given after the -- as well")
        if name in varied:
            raise UsageError(f"--vary {shown(each)}: this option is varied twice")
        varied[name] = values
    check_free(varied)

    def make(options: dict[str, Any]) -> Any:
        # What does not count in a way is at its default in it.
        given = {**plain.params, **options, "root": root}
        given.pop("allocator")
        config = train_config(**given)
        try:
            config.mask_spec()
            config.clip_config()
            config.saliency_config()
        except ValueError as error:
            raise UsageError(str(error)) from None
        return config

    return make_ways(common, varied, make, recipe)


def _parsed(
    ctx: click.Context, name: str, words: Sequence[str], needed: Sequence[str]
) -> tuple[click.Context, list[str]]:
    """A command line of another command, and the names of its options that were typed."""
    root = ctx.find_root()
    assert isinstance(root.command, click.Group)
    command = root.command.commands[name]
    parsed = command.make_context(name, list(words), parent=root)
    set_here = {word.removeprefix("--") for word in needed if word.startswith("--")}
    typed = [
        each for each in parsed.params
        if parsed.get_parameter_source(each) == ParameterSource.COMMANDLINE and each not in set_here
    ]  # fmt: skip
    for each in set_here:
        if parsed.params[each] != words[list(words).index(f"--{each}") + 1]:
            raise UsageError(f"--{each} after the -- is what `savimae study` sets itself")
    return parsed, typed


def _option(parsed: click.Context, name: str) -> click.Option | None:
    for parameter in parsed.command.params:
        if isinstance(parameter, click.Option) and f"--{name}" in parameter.opts:
            return parameter
    return None


def _values(parsed: click.Context, text: str) -> tuple[str, list[tuple[str, Any]]]:
    """`mask-type=savi,tube` -> its name, and the values as typed and as they are."""
    name, equals, listed = text.partition("=")
    words = [word.strip() for word in listed.split(",")]
    if not equals or not all(words):
        raise UsageError(f"--vary {shown(text)} is not like mask-type=savi,tube")
    if len(set(words)) < len(words):
        raise UsageError(f"--vary {shown(text)}: a value is given twice")
    option = _option(parsed, both_spellings(name.strip().removeprefix("--")))
    if option is None:
        raise UsageError(f"--vary {shown(text)}: `savimae train` has no option --{shown(name)}")
    if option.is_flag and not set(words) <= set(YES_NO):
        raise UsageError(f"--vary {shown(text)}: this option is a switch; vary it by yes,no")
    try:
        values = [
            YES_NO[word] if option.is_flag
            else option.type_cast_value(parsed, [word] if option.multiple else word)
            for word in words
        ]  # fmt: skip
    except click.UsageError as error:
        raise UsageError(f"--vary {shown(text)}: {error.format_message().rstrip('.')}") from None
    # What tells little by itself is named: "repeat 2", "hflip no".
    plain = isinstance(option.type, click.Choice)
    names = [word if plain else f"{name.strip()} {word}" for word in words]
    return str(option.name), list(zip(names, values, strict=True))


def _finetuning(ctx: click.Context, needed: Sequence[str], text: str) -> Any:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--finetune {shown(text)}: {error}") from None
    try:
        root = ctx.find_root()
        assert isinstance(root.command, click.Group)
        command = root.command.commands["finetune"]
        parsed = command.make_context("finetune", [*needed, *words], parent=root)
        plain = command.make_context("finetune", list(needed), parent=root)
        for name in OF_FINETUNING:
            if parsed.params[name] != plain.params[name]:
                raise UsageError(f"--{name.replace('_', '-')} is what `savimae study` sets itself")
        if parsed.params["task"] != plain.params["task"]:
            raise UsageError("a study compares top-1 of one class a video; leave --task out")
        given = {name: value for name, value in parsed.params.items() if name != "allocator"}
        return finetune_config(**given)
    except click.UsageError as error:
        raise UsageError(f"--finetune: {error.format_message().rstrip('.')}") from None
    except UsageError as error:
        raise UsageError(f"--finetune: {error}") from None
