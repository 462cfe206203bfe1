"""What commands share: types, decorators and groups of options, and the configs they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from savimae.system.errors import UsageError
from savimae.system.sizes import FrameSize, frame_size, parse_size

if TYPE_CHECKING:
    from savimae.saliency.config import SaliencyConfig
    from savimae.training.finetune import FinetuneConfig
    from savimae.training.pretrain import TrainConfig

SEED = click.IntRange(0, 2**63 - 1)
OTHERS = "Other options"
ALL_OPTIONS = "savimae.all_options"  # in the context of a command whose whole help is asked for


class NonEmptyPath(click.Path):
    """An empty path would be taken for the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("a path is empty", param, ctx)
        return super().convert(value, param, ctx)


class Channels(click.ParamType):
    """Channels of pixels, 1 or 3."""

    name = "1|3"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if str(value) not in ("1", "3"):
            self.fail(f"{value!r} is neither 1 (gray) nor 3 (RGB)", param, ctx)
        return int(value)


class Size(click.ParamType):
    """The size of frames: the side of a square, or height x width."""

    name = "S|HxW"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> FrameSize:
        if not isinstance(value, str):  # a default
            return frame_size(value)
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


PATH = NonEmptyPath(path_type=str)
SIZE = Size()
FIT_KINDS = click.Choice(["press", "crop", "pad"])
CHANNELS = click.option(
    "--channels", type=Channels(),
    help="1: gray videos, and RGB weights as gray ones.  [as the model was trained]",
)  # fmt: skip
SALIENCY_KIND = click.Choice(["frame-mean", "change"])
SALIENCY = click.option(
    "--saliency", type=SALIENCY_KIND, default="frame-mean",
    show_default=True, help="Distance from the frame's mean, or change from the frame before.",
)  # fmt: skip
FIT = click.option(
    "--fit", type=FIT_KINDS, default="press", show_default=True,
    help="Of frames of another shape: press the whole, crop the middle, or pad with black.",
)  # fmt: skip
ROOT = click.option("--root", type=PATH, help="Where a list's relative paths start.")


def both_spellings(name: str) -> str:
    """Options may be spelled with underscores, as the published scripts do."""
    return name.replace("_", "-")


def saliency_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a frame becomes salient patches."""
    options = [
        click.option(
            "--input-size", type=SIZE, default=224, show_default=True,
            help="Of the frame, in pixels: the side of a square, or height x width.",
        ),
        click.option("--patch-size", default=16, show_default=True, help="Side of a patch."),
        FIT,
        SALIENCY,
        click.option(
            "--threshold", type=float,
            help="frame-mean: a pixel is salient from this share of its frame's greatest "
            "deviation.  [0.5]",
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
        ROOT,
    ]  # fmt: skip
    return _decorate(command, options)


def _decorate(command: Callable[..., Any], options: list[Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def saliency_config(
    saliency: str,
    threshold: float | None,
    input_size: FrameSize,
    patch_size: int,
    fit: str,
) -> SaliencyConfig:
    """The config that the options of `saliency_options` make."""
    from savimae.saliency.config import CHANGE, SaliencyConfig

    if saliency == CHANGE and threshold is not None:
        raise UsageError(
            "--threshold is for --saliency frame-mean; of change a clip's --salient-share is "
            "salient, which `savimae train` is told"
        )
    if threshold is None:
        threshold = SaliencyConfig.threshold
    try:
        return SaliencyConfig(input_size, patch_size, threshold, saliency, fit=fit)
    except ValueError as error:
        raise UsageError(str(error)) from None


def train_config(
    save_every: tuple[str, ...], num_frames_schedule: str | None = None, **options: Any
) -> TrainConfig:
    """The config that the options of `savimae train` make, apart from --allocator."""
    from savimae.training.checkpoint import SaveEvery
    from savimae.training.pretrain import TrainConfig
    from savimae.training.schedule import FrameSchedule

    try:
        lengths = None
        if num_frames_schedule is not None:
            lengths = FrameSchedule.parse(num_frames_schedule)
        return TrainConfig(
            save_every=tuple(map(SaveEvery.parse, save_every)),
            num_frames_schedule=lengths, **options,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from None


def finetune_config(test_crops: int, save_every: tuple[str, ...], **options: Any) -> FinetuneConfig:
    """The config that the options of `savimae finetune` make, apart from --allocator."""
    from savimae.training.checkpoint import SaveEvery
    from savimae.training.finetune import FinetuneConfig

    try:
        return FinetuneConfig(
            test_crops=test_crops or None, save_every=tuple(map(SaveEvery.parse, save_every)),
            **options,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from None


# By command and name of a --recipe, the defaults that it changes.
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "train": {
        "small": {
            "model": "tiny", "encoder_depth": 3, "decoder_depth": 2, "input_size": 112,
            "mask_type": "savi-tube", "saliency": "change", "salient_mask_ratio": 0.75,
            "decode": "salient",
            "optimizer": "muon", "lr": 5e-3, "batch_size": 32, "steps": 6400,
        },
    },
    "finetune": {
        "small": {
            "pool": "time", "standardize": True, "head_scale": 1.0,
            "batch_size": 32, "epochs": 40, "base_lr": 8e-3, "layer_decay": 1.0,
            "smallest_crop": 0.85, "hflip": False, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0,
            "drop_path": 0.0, "test_crops": 0,
        },
    },
}  # fmt: skip
# An option that is typed, or one of its values, counts more than what a recipe says of these.
INSTEAD_OF = {
    "lr": ("base_lr",),
    "base_lr": ("lr",),
    "steps": ("epochs",),
    "epochs": ("steps",),
    "model": ("encoder_depth", "decoder_depth"),
    "init": ("model", "encoder_depth", "decoder_depth", "input_size"),
    "mask_type tube": ("salient_mask_ratio",),
    "mask_type random": ("salient_mask_ratio",),
}


def recipe_option(command: str, meaning: str) -> Callable[..., Any]:
    """`--recipe`: other defaults of a command."""
    recipes = RECIPES[command]

    def take(ctx: click.Context, _param: click.Parameter, name: str) -> None:
        # Called before other options are read: what is typed counts more.
        ctx.default_map = dict(recipes.get(name, {}))

    return click.option(
        "--recipe", type=click.Choice(["published", *recipes]), default="published",
        show_default=True, is_eager=True, expose_value=False, callback=take, help=meaning,
    )  # fmt: skip


def instead(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """The callback of the options of INSTEAD_OF. What is typed is read before what is not."""
    name = str(param.name)
    if ctx.default_map and ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE:
        ctx.default_map = left_of_recipe(ctx.default_map, {name: value})
    return value


def left_of_recipe(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe still says beside options that are given; see INSTEAD_OF."""
    replaced = {
        other for name, value in given.items()
        for other in INSTEAD_OF.get(f"{name} {value}") or INSTEAD_OF.get(name, ())
    }  # fmt: skip
    return {name: value for name, value in recipe.items() if name not in replaced}


class GroupedCommand(click.Command):
    """A command whose help shows its options under headings; see `option_group`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, records in self.groups(ctx).items():
            with formatter.section(title):
                formatter.write_dl(records)

    def groups(self, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
        """Options and what they mean, by heading, in order."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                groups.setdefault(getattr(parameter, "group", OTHERS), []).append(record)
        return groups


class BriefCommand(GroupedCommand):
    """A command of many options: --help shows the first group of them, --help-all shows all."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--help-all"], is_flag=True, is_eager=True, expose_value=False,
                callback=self._show_all, help=f"Show all {len(self.params)} options.",
            )
        )  # fmt: skip

    def _show_all(self, ctx: click.Context, _param: click.Parameter, is_asked: bool) -> None:
        if is_asked and not ctx.resilient_parsing:
            ctx.meta[ALL_OPTIONS] = True
            click.echo(ctx.get_help())
            ctx.exit()

    def groups(self, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
        groups = super().groups(ctx)
        if ctx.meta.get(ALL_OPTIONS):
            return groups
        first = next(iter(groups))
        return {first: groups[first], OTHERS: groups[OTHERS]}


class PassingCommand(GroupedCommand):
    """A command that passes words on to another one, and says so where they lack their `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = "train" if self.name in ("pipeline", "study") else self.name
            raise click.UsageError(
                f"{error.format_message().rstrip('.')} Options of `savimae {name}` go after a --",
                ctx,
            ) from None


def option_group(title: str, *options: Callable[..., Any]) -> Callable[..., Any]:
    """Options that the help shows together under `title`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        before = len(getattr(command, "__click_params__", []))
        command = _decorate(command, list(options))
        for parameter in command.__click_params__[before:]:  # type: ignore[attr-defined]
            parameter.group = title
        return command

    return decorate


def optimization_options(base_lr: str, min_lr: str, warmup: int) -> Callable[..., Any]:
    """How a model learns; the arguments are the defaults, as the help shows them."""
    return option_group(
        "Optimization",
        click.option(
            "--steps", type=int, callback=instead, help="Length of the run, instead of --epochs."
        ),
        click.option(
            "--accumulate",
            type=int,
            default=1,
            show_default=True,
            help="Batches that make up a step.",
        ),
        click.option(
            "--base-lr",
            type=float,
            callback=instead,
            help=f"Rate for an effective batch of 256; it grows with the batch.  [{base_lr}]",
        ),
        click.option(
            "--lr",
            type=float,
            callback=instead,
            help="The learning rate itself, instead of --base-lr.",
        ),
        click.option("--min-lr", type=float, help=f"[{min_lr}]"),
        click.option(
            "--warmup-epochs", type=float, help=f"[a tenth of the epochs, at most {warmup}]"
        ),
        click.option("--weight-decay", type=float, default=0.05, show_default=True),
        click.option("--clip-grad", type=float, help="Greatest norm of the gradient.  [none]"),
        click.option("--seed", type=SEED, default=0, show_default=True),
    )


TRAINING_MACHINE = option_group(
    "Machine",
    click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "bf16", "fp32"]),
        default="auto",
        show_default=True,
        help="auto: bf16 where the processor has it.",
    ),
    click.option(
        "--attention",
        type=click.Choice(["auto", "products", "fused"]),
        default="auto",
        show_default=True,
        help="On CPUs. auto: what is faster here, measured when a run begins.",
    ),
    click.option("--threads", type=click.IntRange(1), help="[the cores this process may use]"),
    click.option(
        "--workers",
        "--num-workers",
        "workers",
        type=click.IntRange(0),
        help="Threads that load clips; 0: none beside.  [a quarter of --threads]",
    ),
    click.option("--compile", is_flag=True, help="Compile the model with torch.compile."),
    click.option("--checkpoint-activations", is_flag=True, help="Less memory, a third more work."),
    click.option(
        "--allocator",
        type=click.Choice(["keep", "default"]),
        default="keep",
        show_default=True,
        help="keep: the C library keeps freed memory, which is much faster (Linux).",
    ),
)

SAVING = option_group(
    "Saving and logging",
    click.option(
        "--resume",
        default="auto",
        show_default=True,
        metavar="auto|never|PATH",
        help="auto: go on where RUN was left.",
    ),
    click.option(
        "--extend",
        is_flag=True,
        help="Go on with more epochs or steps than the run was begun with.",
    ),
    click.option(
        "--save-every",
        multiple=True,
        default=("10ep", "15min"),
        show_default=True,
        metavar="10ep|200steps|15min",
        help="May be repeated.",
    ),
    click.option(
        "--keep", type=int, default=3, show_default=True, help="Checkpoints that are kept."
    ),
    click.option(
        "--log-every", type=int, default=10, show_default=True, help="Steps of a line of the log."
    ),
    click.option("--tensorboard", is_flag=True, help="Write RUN/tensorboard as well."),
)
ALLOW_OVERLAP = click.option(
    "--allow-overlap", is_flag=True, help="Test videos may be training videos; the result says so."
)
