"""The commands that look at a model and judge it: options -> one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from savimae.cli_options import PATH, SEED, GroupedCommand, option_group
from savimae.errors import shown

if TYPE_CHECKING:
    from savimae.pretrained import Machine, MaskOptions

MASKS = option_group(
    "Masks (default: as the model was trained)",
    click.option("--mask-type", type=click.Choice(["savi", "savi-tube", "tube", "random"])),
    click.option("--mask-ratio", type=float, help="Of tube and random."),
    click.option("--salient-mask-ratio", type=float, help="Of savi and savi-tube."),
    click.option("--nonsalient-mask-ratio", type=float, help="Of savi and savi-tube."),
)
CLIPS = option_group(
    "Clips",
    click.option("--root", type=PATH, help="Where a list's relative paths start."),
    click.option("--sampling-rate", type=int, help="[as the model was trained, else 4]"),
    click.option("--seed", type=SEED, default=0, show_default=True),
)
SALIENCY = option_group(
    "Saliency",
    click.option("--saliency-root", type=PATH, help="Arrays.  [computed from the clips]"),
    click.option("--saliency-threshold", type=float, help="Where it is computed.  [0.5]"),
)


def machine_options(batch_size: int) -> Callable[..., Any]:
    return option_group(
        "Machine",
        click.option("--batch-size", type=click.IntRange(1), default=batch_size, show_default=True),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto"),
        click.option("--precision", type=click.Choice(["auto", "bf16", "fp32"]), default="auto"),
        click.option("--threads", type=click.IntRange(1), help="[the cores this process may use]"),
        click.option(
            "--workers", type=click.IntRange(0), help="Threads that load.  [a quarter of --threads]"
        ),
    )


def _taken(options: dict[str, Any], config: type) -> dict[str, Any]:
    """The options that are fields of a dataclass, removed from the others."""
    return {
        field.name: options.pop(field.name)
        for field in dataclasses.fields(config)
        if field.name in options
    }


def _machine(options: dict[str, Any]) -> Machine:
    from savimae.allocator import keep_memory

    keep_memory()  # before the first tensor
    from savimae.pretrained import Machine

    names = ("device", "precision", "batch_size", "threads", "workers")
    return Machine.choose(**{name: options.pop(name) for name in names})


def _masks(options: dict[str, Any]) -> MaskOptions:
    from savimae.pretrained import MaskOptions

    return MaskOptions(**_taken(options, MaskOptions))


@click.command(cls=GroupedCommand)
@click.argument("checkpoint", type=PATH)
@click.argument("source", type=PATH)
@option_group(
    "The pictures",
    click.option("--out", type=PATH, required=True, metavar="DIR", help="Where they go."),
    click.option(
        "--statistics", type=click.Choice(["visible", "target"]), default="visible",
        show_default=True,
        help="What brings normalised predictions back to pixels. target leaks the answer.",
    ),
    click.option(
        "--videos", "n_videos", type=click.IntRange(1), default=4, show_default=True,
        help="How many of a list or folder.",
    ),
    click.option(
        "--animation", type=click.Choice(["mp4", "gif", "none"]), default="mp4", show_default=True
    ),
)  # fmt: skip
@MASKS
@CLIPS
@SALIENCY
@machine_options(1)
def reconstruct(checkpoint: str, source: str, out: str, **options: Any) -> None:
    """Draw what a model makes of hidden patches: pictures, animations, PSNR and SSIM as JSON.

    CHECKPOINT is the folder of a run, a checkpoint, or published weights. SOURCE is a video, a list
    or a folder.
    """
    machine, masks = _machine(options), _masks(options)
    from savimae.gallery import draw_reconstructions

    for path in draw_reconstructions(checkpoint, source, out, machine, masks, **options).written:
        click.echo(f"wrote {shown(path)}")


@click.command(cls=GroupedCommand)
@click.argument("checkpoints", metavar="CHECKPOINT...", type=PATH, nargs=-1, required=True)
@option_group(
    "What to evaluate on",
    click.option("--data", type=PATH, required=True, metavar="LIST_OR_FOLDER", help="Videos."),
    click.option(
        "--clips", "clips_per_video", type=click.IntRange(1), default=1, show_default=True,
        help="Of each video, with starts and masks of their own.",
    ),
    click.option("--out", type=PATH, metavar="JSON", help="Write the table as JSON as well."),
)  # fmt: skip
@MASKS
@CLIPS
@SALIENCY
@machine_options(8)
def evaluate(checkpoints: tuple[str, ...], data: str, out: str | None, **options: Any) -> None:
    """Print how well models reconstruct what masks hide: the loss of training, on any videos.

    The masks are the same for all models with the same grid of tokens. "means alone" is the loss of
    predicting nothing but each token's mean.
    """
    machine, masks = _machine(options), _masks(options)
    from savimae.evaluate import evaluate as run
    from savimae.evaluate import evaluation_table
    from savimae.files import write_json

    results = run(checkpoints, data, machine, masks, **options)
    if out is not None:
        write_json(out, [dataclasses.asdict(result) for result in results])
    click.echo(evaluation_table(results))
