"""What commands share: types, decorators and groups of options, and the configs they become."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from savimae.errors import UsageError

if TYPE_CHECKING:
    from savimae.config import SaliencyConfig
    from savimae.train import TrainConfig

SEED = click.IntRange(0, 2**63 - 1)


class NonEmptyPath(click.Path):
    """An empty path would be taken for the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("a path is empty", param, ctx)
        return super().convert(value, param, ctx)


PATH = NonEmptyPath(path_type=str)


def both_spellings(name: str) -> str:
    """Options may be spelled with underscores, as the published scripts do."""
    return name.replace("_", "-")


def saliency_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a frame becomes salient patches."""
    options = [
        click.option("--input-size", default=224, show_default=True, help="Side of the frame."),
        click.option("--patch-size", default=16, show_default=True, help="Side of a patch."),
        click.option(
            "--threshold", default=0.5, show_default=True,
            help="A pixel is salient from this share of its frame's greatest deviation.",
        ),
    ]  # fmt: skip
    return _decorate(command, options)


def array_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What commands that write arrays have in common."""
    options = [
        click.option(
            "--dtype", type=click.Choice(["uint8", "float32"]), default="uint8", show_default=True,
            help="float32 is what the published trainer reads.",
        ),
        click.option(
            "--list", "list_path", type=PATH, help="Write a training list of what succeeded."
        ),
    ]  # fmt: skip
    return _decorate(command, options)


def walk_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How to walk over a data set."""
    options = [
        click.option(
            "--workers", type=click.IntRange(1), default=None,
            help="Processes. Default: the cores this process may use.",
        ),
        click.option("--shard", metavar="I/N", default="0/1", help="Part I (from 0) of N only."),
        click.option("--overwrite", is_flag=True, help="Redo finished videos as well."),
        click.option("--limit", type=click.IntRange(1), help="Only the first videos."),
        click.option("--root", type=PATH, help="Where a list's relative paths start."),
    ]  # fmt: skip
    return _decorate(command, options)


def _decorate(command: Callable[..., Any], options: list[Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def saliency_config(**values: Any) -> SaliencyConfig:
    """The config that the options of `saliency_options` make."""
    from savimae.config import SaliencyConfig

    try:
        return SaliencyConfig(**values)
    except ValueError as error:
        raise UsageError(str(error)) from None


def train_config(save_every: tuple[str, ...], **options: Any) -> TrainConfig:
    """The config that the options of `savimae train` make, apart from --allocator."""
    from savimae.loop import SaveEvery
    from savimae.train import TrainConfig

    try:
        return TrainConfig(save_every=tuple(map(SaveEvery.parse, save_every)), **options)
    except ValueError as error:
        raise UsageError(str(error)) from None


class GroupedCommand(click.Command):
    """A command whose help shows its options under headings; see `option_group`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                title = getattr(parameter, "group", "Other options")
                groups.setdefault(title, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def option_group(title: str, *options: Callable[..., Any]) -> Callable[..., Any]:
    """Options that the help shows together under `title`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        before = len(getattr(command, "__click_params__", []))
        command = _decorate(command, list(options))
        for parameter in command.__click_params__[before:]:  # type: ignore[attr-defined]
            parameter.group = title
        return command

    return decorate
