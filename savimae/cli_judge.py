"""The commands that look at a model and judge it: options -> one call."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from savimae.cli_options import (
    PATH,
    SAVING,
    SEED,
    TRAINING_MACHINE,
    GroupedCommand,
    finetune_config,
    optimization_options,
    option_group,
)
from savimae.errors import UsageError, shown

if TYPE_CHECKING:
    from savimae.pretrained import Machine, MaskOptions
    from savimae.views import Views

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


ONE_BY_ONE = (
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto"),
    click.option("--precision", type=click.Choice(["auto", "bf16", "fp32"]), default="auto"),
    click.option("--threads", type=click.IntRange(1), help="[the cores this process may use]"),
)
MACHINE_ONE_BY_ONE = option_group("Machine", *ONE_BY_ONE)
MACHINE = option_group(
    "Machine",
    click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True),
    *ONE_BY_ONE,
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
    return Machine.choose(**{name: options.pop(name) for name in names if name in options})


VIEWS = option_group(
    "Views, whose features are averaged",
    click.option("--clips", type=int, default=1, show_default=True, help="Spread over the time."),
    click.option(
        "--crops", type=int, help="Squares along the longer side.  [the whole frame, pressed]"
    ),
)
POOL = click.option(
    "--pool", type=click.Choice(["mean", "time", "tokens"]), default="mean", show_default=True,
    help="The mean of all tokens, one mean a time step, or all tokens.",
)  # fmt: skip


ALLOW_OVERLAP = click.option(
    "--allow-overlap", is_flag=True, help="Test videos may be training videos; the result says so."
)


def _views(options: dict[str, Any]) -> Views:
    from savimae.views import Views

    try:
        return Views(options.pop("clips"), options.pop("crops"))
    except ValueError as error:
        raise UsageError(str(error)) from None


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
        "--statistics", type=click.Choice(["visible", "target"]),
        help="What brings normalised predictions back to pixels. target leaks the answer.  "
        "[visible]",
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
@MACHINE_ONE_BY_ONE
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
@MACHINE
def evaluate(checkpoints: tuple[str, ...], data: str, out: str | None, **options: Any) -> None:
    """Print how well models reconstruct what masks hide: the loss of training, on any videos.

    The masks are the same for all models with the same grid of tokens. "means alone" is the loss of
    predicting nothing but each token's mean.
    """
    machine, masks = _machine(options), _masks(options)
    from savimae.evaluate import evaluate as run
    from savimae.evaluate import evaluation_table
    from savimae.files import refuse_folder, write_json

    if out is not None:
        refuse_folder(out)
    results = run(checkpoints, data, machine, masks, **options)
    if out is not None:
        write_json(out, [dataclasses.asdict(result) for result in results])
    click.echo(evaluation_table(results))


@click.command(cls=GroupedCommand)
@click.argument("checkpoint", type=PATH)
@option_group(
    "Features",
    click.option("--data", type=PATH, required=True, metavar="LIST_OR_FOLDER", help="Videos."),
    click.option("--out", type=PATH, required=True, metavar="FILE", help=".npz or .npy"),
    POOL,
)
@VIEWS
@option_group(
    "Clips",
    click.option("--root", type=PATH, help="Where a list's relative paths start."),
    click.option("--sampling-rate", type=int, help="[as the model was trained, else 4]"),
)
@MACHINE
def features(
    checkpoint: str, data: str, out: str, pool: str, root: str | None, sampling_rate: int | None,
    **options: Any,
) -> None:  # fmt: skip
    """Write what the encoder makes of whole clips, with paths and labels.

    FILE.npz holds `values` ([videos, D] for --pool mean), `labels` (-1 for none), `paths` and
    `settings`; beside FILE.npy lies a .json with the last three. Run it again to go on.
    """
    machine, views = _machine(options), _views(options)
    from savimae.features import encoder_features, make_features
    from savimae.pretrained import find_readable_videos, load_pretrained
    from savimae.views import ViewReader

    videos = find_readable_videos(data, root).videos
    pretrained = load_pretrained(checkpoint, machine.device)
    try:
        reader = ViewReader(pretrained.clips(sampling_rate), views)
    except ValueError as error:
        raise UsageError(str(error)) from None
    source = encoder_features(pretrained.model, pool, machine)
    values = make_features(out, source, videos, reader, machine).values
    click.echo(f"{shown(out)}: {list(values.shape)} of {len(videos)} videos")


@click.command(cls=GroupedCommand)
@click.argument("checkpoint", type=PATH)
@option_group(
    "The probe",
    click.option("--train", "train_list", type=PATH, required=True, metavar="LIST"),
    click.option("--test", "test_list", type=PATH, required=True, metavar="LIST"),
    click.option("--out", type=PATH, required=True, metavar="DIR", help="Scores and features."),
    POOL,
    click.option(
        "--baselines/--no-baselines", default=True, show_default=True,
        help="Probe an untrained encoder and raw pixels as well.",
    ),
    ALLOW_OVERLAP,
)  # fmt: skip
@VIEWS
@CLIPS
@MACHINE
def probe(checkpoint: str, train_list: str, test_list: str, out: str, **options: Any) -> None:
    """Print what frozen features are worth: nearest neighbours and a linear classifier.

    Lists hold `path label` lines; folders of class folders will do. DIR gets probe.json, a
    confusion matrix as PNG, and the features, which are computed only once.
    """
    machine, views = _machine(options), _views(options)
    from savimae.figures import check_matplotlib, plot_confusion
    from savimae.files import write_json
    from savimae.labels import overlap_words
    from savimae.probe import probe as run
    from savimae.probe import probe_table

    check_matplotlib()
    result = run(checkpoint, train_list, test_list, out, machine, views=views, **options)
    best = max(result.scores[:2], key=lambda score: score.top1)
    picture = f"{out}/confusion.png"
    title = f"{best.features} features, {best.classifier}: top-1 {best.top1:.3f}"
    plot_confusion(best.confusion, result.classes, title, picture)
    write_json(f"{out}/probe.json", {**dataclasses.asdict(result), "chance": result.chance})
    if result.shared:
        click.echo(
            f"warning: the lists share {len(result.shared)} recordings, such as "
            f"{shown(result.shared[0])}: what is learned from one leaks into the other",
            err=True,
        )
    for note in result.notes:
        click.echo(note)
    if result.overlap:
        click.echo(overlap_words(result.overlap, result.n_test), err=True)
    click.echo(f"{result.n_train} training videos, {result.n_test} test videos")
    click.echo(probe_table(result))
    click.echo(f"wrote {shown(out)}/probe.json\nwrote {shown(picture)}")


@click.command(cls=GroupedCommand)
@click.argument("checkpoint", type=PATH)
@option_group(
    "The ones that matter",
    click.option(
        "--train", "data", type=PATH, required=True, metavar="LIST",
        help="Videos; with --dataset, the folder of all its videos.",
    ),
    click.option("--test", type=PATH, metavar="LIST", help="Videos of the test."),
    click.option(
        "--dataset", type=click.Choice(["ucf101", "hmdb51"]), help="Train and test on its --split."
    ),
    click.option("--split", type=click.IntRange(1, 3), help="Of --dataset.  [1]"),
    click.option(
        "--splits", type=PATH, metavar="FOLDER",
        help="The official split files.  [under their usual name in or beside the videos]",
    ),
    ALLOW_OVERLAP,
    click.option(
        "--out", type=PATH, required=True, metavar="RUN",
        help="The run's folder: checkpoints, log, test.json. Run again to go on with it.",
    ),
    click.option("--epochs", type=int, default=100, show_default=True),
    click.option(
        "--batch-size", type=int, default=8, show_default=True,
        help="Clips at a time, of each process.",
    ),
    click.option(
        "--untrained", is_flag=True, help="Take the checkpoint's shape only, for comparison."
    ),
)  # fmt: skip
@option_group(
    "Clips",
    click.option("--root", type=PATH, help="Where a list's relative paths start."),
    click.option("--sampling-rate", type=int, help="[as the model was pretrained, else 4]"),
    click.option(
        "--smallest-crop", type=float, default=0.08, show_default=True,
        help="Share of the frame's area that random crops have at least; 1: whole frames.",
    ),
    click.option("--hflip/--no-hflip", default=True, show_default=True, help="Mirror every other."),
    click.option(
        "--erasing", type=float, default=0.25, show_default=True, help="Share of clips with a hole."
    ),
    click.option("--mixup", type=float, default=0.8, show_default=True, help="0: never."),
    click.option("--cutmix", type=float, default=1.0, show_default=True, help="0: never."),
)  # fmt: skip
@option_group(
    "Regularisation",
    click.option("--label-smoothing", type=float, default=0.1, show_default=True),
    click.option(
        "--layer-decay", type=float, default=0.75, show_default=True,
        help="Learning rate of a layer over that of the layer above.",
    ),
    click.option("--drop-path", type=float, default=0.1, show_default=True),
    click.option(
        "--head-dropout", type=float, default=0.0, show_default=True,
        help="Share of the features that the last layer does not see.",
    ),
    click.option(
        "--head-scale", type=float, default=0.001, show_default=True,
        help="Of the initial weights of the last layer.",
    ),
    click.option(
        "--ema", type=float, default=0.0, show_default=True,
        help="Decay of averaged weights, such as 0.9999, which are then tested; 0: none.",
    ),
)  # fmt: skip
@option_group(
    "Test",
    click.option("--test-clips", type=int, default=5, show_default=True),
    click.option(
        "--test-crops", type=click.IntRange(0), default=3, show_default=True,
        help="Squares along the longer side; 0: whole frames, pressed.",
    ),
    click.option(
        "--test-every", type=int, default=0, show_default=True, metavar="EPOCHS",
        help="0: at the end only.",
    ),
)  # fmt: skip
@optimization_options("5e-4", "1e-6, or a tenth of the rate if that is less", 5)
@TRAINING_MACHINE
@SAVING
def finetune(allocator: str, **options: Any) -> int:
    """Fine-tune a classifier on a pretrained encoder, and test it.

    Lists hold `path label` lines; folders of class folders will do. The test averages the softmax
    over clips and crops. Resuming, signals, log and many processes are as in `train`.
    """
    from savimae.allocator import keep_memory

    if allocator == "keep":
        keep_memory()  # before the first tensor
    from savimae.finetune import finetune as run

    return run(finetune_config(**options))
