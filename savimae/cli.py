"""The command line: options -> a config -> one call. Nothing is computed here.

Heavy imports (Numba, PyAV, torch) happen inside the commands that need them, so that `--help`
answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from savimae import __version__
from savimae.cli_judge import evaluate, features, finetune, probe, reconstruct
from savimae.cli_options import (
    PATH,
    SAVING,
    SEED,
    TRAINING_MACHINE,
    GroupedCommand,
    array_options,
    both_spellings,
    optimization_options,
    option_group,
    saliency_config,
    saliency_options,
    train_config,
    walk_options,
)
from savimae.cli_slurm import slurm
from savimae.errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    SavimaeError,
    UsageError,
    one_line,
    shown,
)

if TYPE_CHECKING:
    from savimae.preprocess import Job, RunOptions


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": both_spellings,
        "max_content_width": 100,
    }
)
@click.version_option(__version__, prog_name="savimae")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Saliency-aware VideoMAE pretraining on CPU nodes and Slurm clusters.

    Start with `savimae demo`: it makes a few small videos and runs everything on them.
    """


for command in (slurm, reconstruct, evaluate, features, probe, finetune):
    cli.add_command(command)


def main() -> None:
    """Run the command line; an error is one line and an exit code, a traceback with --debug."""
    debug = "--debug" in sys.argv[1:]
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        code = _fail("interrupted; run the same command again to go on", EXIT_INTERRUPTED)
    except click.UsageError as error:
        code = _fail_usage(error)
    except KeyboardInterrupt:
        code = _fail("interrupted; run the same command again to go on", EXIT_INTERRUPTED)
    except UsageError as error:
        if debug:
            raise
        code = _fail(str(error), EXIT_USAGE)
    except SavimaeError as error:
        if debug:
            raise
        code = _fail(str(error), EXIT_FAILURE)
    except OSError as error:
        if debug:
            raise
        names = [shown(os.fsdecode(name)) for name in (error.filename, error.filename2) if name]
        code = _fail(": ".join([*names[:1], one_line(error)]), EXIT_FAILURE)
    except Exception as error:
        if debug:
            raise
        code = _fail(
            f"a bug in savimae: {one_line(error)}; `savimae --debug …` shows where", EXIT_FAILURE
        )
    sys.exit(code or 0)


def _fail_usage(error: click.UsageError) -> int:
    """One line for a wrong option; the help for a command that was given nothing."""
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        error.show()
        return EXIT_USAGE
    command = error.ctx.command_path if error.ctx else "savimae"
    text = " ".join(error.format_message().split())
    return _fail(f"{text.rstrip('.')}; see `{command} --help`", EXIT_USAGE)


def _fail(text: str, code: int) -> int:
    click.echo(f"savimae: {text}", err=True)
    return code


# ------------------------------------------------------------------------------------ commands


def _run_options(
    *,
    workers: int | None,
    shard: str,
    overwrite: bool,
    limit: int | None,
    root: str | None,
    list_path: str | None = None,
) -> RunOptions:
    from savimae.cores import available_cores
    from savimae.preprocess import RunOptions, Shard

    try:
        part = Shard.parse(shard)
    except ValueError as error:
        raise UsageError(f"--shard {error}") from None
    return RunOptions(workers or available_cores(), part, overwrite, limit, list_path, root)


def _walk(source: str, out: str, job: Job, **walk: Any) -> int:
    """Run a job over a data set and print its summary; returns the exit code."""
    from savimae.preprocess import process

    report = process(source, out, job, _run_options(**walk))
    click.echo(f"{shown(out)}: {report.summary()}")
    return EXIT_FAILURE if report.failures else 0


@cli.command()
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@saliency_options
@array_options
@walk_options
@click.option("--check", is_flag=True, help="Compute nothing; exit with 1 if an array is missing.")
@click.option(
    "--allow-missing", type=click.IntRange(0), metavar="N", help="With --check: up to N may be."
)
def preprocess(
    source: str,
    out: str,
    input_size: int,
    patch_size: int,
    threshold: float,
    dtype: str,
    check: bool,
    allow_missing: int | None,
    **walk: Any,
) -> int:
    """Compute the salient patches of every video: one array a video.

    SOURCE is a folder of videos or of frame folders, a list file, or one video. OUT mirrors its
    structure: Class/video.npy, [frames, patches down, patches across], 1 where salient.

    Run it again to go on after an interruption: finished videos are skipped.
    """
    from savimae.preprocess import ArrayJob

    config = saliency_config(input_size=input_size, patch_size=patch_size, threshold=threshold)
    job = ArrayJob(config, dtype)
    if not check:
        if allow_missing is not None:
            raise UsageError("--allow-missing goes with --check")
        return _walk(source, out, job, **walk)
    if walk["overwrite"]:
        raise UsageError("--check computes nothing, and so cannot --overwrite")
    if walk["workers"] is not None:
        raise UsageError("--check computes nothing, and so needs no --workers")
    return _check(source, out, job, allow_missing or 0, **walk)


def _check(source: str, out: str, job: Job, allowed: int, **walk: Any) -> int:
    """Print what is there and what is missing; returns the exit code."""
    from savimae.preprocess import check

    looked, unreadable = check(source, out, job, _run_options(**walk), allowed)
    missing = [shown(video.path) for video in looked.missing]
    missing += [f"{shown(path)}: {reason}" for path, reason in unreadable]
    for line in missing[:10]:
        click.echo(f"missing: {line}", err=True)
    if len(missing) > 10:
        click.echo(f"missing: … and {len(missing) - 10} more", err=True)
    n = len(looked.done)
    click.echo(f"{shown(out)}: {n} of {n + len(missing)} arrays are there, {len(missing)} missing")
    return EXIT_FAILURE if len(missing) > allowed else 0


@cli.command()
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@click.option("--input-size", default=224, show_default=True, help="Side of the maps.")
@walk_options
def saliency(source: str, out: str, input_size: int, **walk: Any) -> int:
    """Write the saliency maps of every video as PNG: Class/video/img_00001.png, …

    The first of the two steps that `preprocess` does in one; for looking at maps, or for tools that
    read them.
    """
    from savimae.preprocess import MapJob

    # Maps have neither patches nor a threshold.
    config = saliency_config(input_size=input_size, patch_size=1)
    return _walk(source, out, MapJob(config), **walk)


@cli.command()
@click.argument("saliency_root", type=PATH)
@click.argument("out", type=PATH)
@saliency_options
@array_options
@walk_options
def patches(
    saliency_root: str, out: str, input_size: int, patch_size: int, threshold: float, dtype: str,
    **walk: Any,
) -> int:  # fmt: skip
    """Turn saliency maps into arrays: one folder of gray PNGs a video, of any size.

    The second of the two steps that `preprocess` does in one; for maps of another saliency model.
    """
    from savimae.preprocess import ArrayJob

    config = saliency_config(input_size=input_size, patch_size=patch_size, threshold=threshold)
    return _walk(saliency_root, out, ArrayJob(config, dtype, from_maps=True), **walk)


@cli.command()
@click.argument("root", type=PATH)
@click.argument("list_path", metavar="LIST", type=PATH)
@click.option(
    "--splits", type=PATH, metavar="FOLDER",
    help="The official split files of UCF101 (classInd.txt, …) or HMDB51 (*_test_split1.txt, …).",
)  # fmt: skip
@click.option("--split", type=click.IntRange(1, 3), help="Of --splits.  [1]")
@click.option("--part", type=click.Choice(["train", "test"]), help="Of --splits.  [train]")
@click.option(
    "--against", type=PATH, help="Warn if this list shares videos or recordings with ours."
)
@click.option("--sizes", is_flag=True, help="Note sizes, for sharding very many videos.")
def index(
    root: str, list_path: str, splits: str | None, split: int | None, part: str | None,
    against: str | None, sizes: bool,
) -> int:  # fmt: skip
    """Write a list file of the videos below ROOT: one `path label` a line.

    Labels are the sorted class folders, or those of an official split.
    """
    from savimae.index import make_index

    for name, value in (("split", split), ("part", part)):
        if value is not None and splits is None:
            raise UsageError(f"--{name} goes with --splits, the folder of the official split files")
    report = make_index(
        root, list_path, splits, split or 1, part or "train", against, sizes
    )  # fmt: skip
    for path, reason in report.unreadable:
        click.echo(f"failed: {shown(path)}: {reason}", err=True)
    for name in report.missing[:10]:
        click.echo(f"missing: {shown(name)}", err=True)
    if len(report.missing) > 10:
        click.echo(f"missing: … and {len(report.missing) - 10} more", err=True)
    if report.shared_videos:
        click.echo(
            f"warning: this list and {shown(str(against))} share {len(report.shared_videos)} "
            f"videos, such as {shown(report.shared_videos[0])}",
            err=True,
        )
    if report.shared_groups:
        click.echo(
            f"warning: {report.other_side} share {len(report.shared_groups)} recordings, such as "
            f"{shown(report.shared_groups[0])}: what is learned from one leaks into the other",
            err=True,
        )
    click.echo(
        f"{shown(list_path)}: {report.videos} videos, {report.classes} classes, "
        f"{len(report.missing)} missing"
    )
    return EXIT_FAILURE if report.missing or report.unreadable else 0


@cli.command()
@click.argument("source", type=PATH)
@click.option("--out", type=PATH, help="The PNG to write.  [default: NAME.png]")
@saliency_options
@click.option("--frames", type=click.IntRange(1, 24), default=6, show_default=True)
@click.option(
    "--animation", type=click.Choice(["mp4", "gif", "none"]), default="mp4", show_default=True
)
def inspect(
    source: str, out: str | None, input_size: int, patch_size: int, threshold: float, frames: int,
    animation: str,
) -> None:  # fmt: skip
    """Draw frames, their saliency and their salient patches: a PNG, and an animation beside it.

    SOURCE is a video or a frame folder; of a whole data set the first video is drawn.
    """
    from savimae.figures import inspect_video
    from savimae.lists import find_videos
    from savimae.video import VideoError

    config = saliency_config(input_size=input_size, patch_size=patch_size, threshold=threshold)
    found = find_videos(source)
    if not found.videos:
        path, reason = found.unreadable[0]
        raise SavimaeError(f"{shown(path)}: {reason}")
    video = found.videos[0]
    try:
        written = inspect_video(
            video.path, out or f"{os.path.basename(video.name)}.png", config, frames, animation
        )
    except VideoError as error:
        raise SavimaeError(f"{shown(video.path)}: {error}") from error
    if len(found.videos) > 1:
        click.echo(f"the first of {len(found.videos)} videos; name another one to see it")
    for path in written:
        click.echo(f"wrote {shown(path)}")


@cli.command()
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--to", type=click.Choice(["savimae", "videomae", "huggingface"]), required=True,
    help="videomae: as published; huggingface: a folder for VideoMAEForPreTraining or, of a "
    "classifier, VideoMAEForVideoClassification.",
)  # fmt: skip
@click.option("--image-size", type=click.IntRange(1), help="Not in published files.  [224]")
@click.option("--num-frames", type=click.IntRange(1), help="Not in published files.  [16]")
@click.option("--encoder-heads", type=click.IntRange(1), help="Of widths that no size has.")
@click.option("--decoder-heads", type=click.IntRange(1), help="Of widths that no size has.")
def convert(source: str, out: str, to: str, **shape: int | None) -> None:
    """Convert weights between our layout, published checkpoints and Hugging Face.

    SOURCE is a file or a Hugging Face folder; which layout it has is detected.
    """
    from savimae.convert import convert as convert_weights

    given = {name: value for name, value in shape.items() if value is not None}
    weights = convert_weights(source, out, to, **given)
    n = sum(value.numel() for value in weights.state.values())
    click.echo(f"{shown(out)}: {n / 1e6:.2f} M parameters, {weights.layout} -> {to}")


@cli.command(cls=GroupedCommand)
@option_group(
    "The ones that matter",
    click.option(
        "--data",
        "--data-path",
        "data",
        type=PATH,
        required=True,
        metavar="LIST_OR_FOLDER",
        help="Videos or frame folders: a list (`path label` a line), or a folder of any depth.",
    ),
    click.option(
        "--out",
        "--output-dir",
        "out",
        type=PATH,
        required=True,
        metavar="RUN",
        help="The run's folder: checkpoints, log, config. Run again to go on with it.",
    ),
    click.option(
        "--saliency-root",
        type=PATH,
        metavar="DIR",
        help="Arrays of `savimae preprocess`. Without it, saliency is computed from the clips.",
    ),
    click.option(
        "--epochs", type=int, default=800, show_default=True, help="How often every video is seen."
    ),
    click.option(
        "--batch-size",
        type=int,
        default=8,
        show_default=True,
        help="Clips at a time, of each process.",
    ),
)
@option_group(
    "Model",
    click.option(
        "--model",
        help="tiny, small, base, large, huge, or a published name.  [base]",
    ),
    click.option(
        "--init",
        type=PATH,
        metavar="CHECKPOINT",
        help="Weights to start from: ours, published, or a Hugging Face folder. Their shape is the "
        "default of the model's.",
    ),
    click.option("--decoder-depth", type=int, help="Blocks of the decoder.  [4]"),
    click.option("--input-size", type=int, help="Side of the frames, in pixels.  [224]"),
    click.option("--patch-size", type=int, help="Side of a patch, in pixels.  [16]"),
    click.option("--tubelet-size", type=int, help="Frames of a token.  [2]"),
)
@option_group(
    "Masks",
    click.option(
        "--mask-type",
        type=click.Choice(["savi", "savi-tube", "tube", "random"]),
        default="savi",
        show_default=True,
    ),
    click.option(
        "--salient-mask-ratio",
        type=float,
        help="Masked share of the salient tokens (savi, savi-tube).  [0.85]",
    ),
    click.option(
        "--nonsalient-mask-ratio",
        type=float,
        help="Masked share of the other tokens (savi, savi-tube).  [0.95]",
    ),
    click.option(
        "--mask-ratio",
        type=float,
        help="Masked share (tube, random).  [0.9]",
    ),
    click.option(
        "--decoder-mask-ratio",
        type=float,
        default=0.0,
        show_default=True,
        help="Masked tokens that are not reconstructed; 0.5 is a third faster (VideoMAE V2).",
    ),
    click.option(
        "--saliency-threshold",
        type=float,
        help="Where saliency is computed from the clips; see `preprocess --threshold`.  [0.5]",
    ),
)
@option_group(
    "Clips",
    click.option("--root", type=PATH, help="Where a list's relative paths start."),
    click.option("--num-frames", type=int, help="Frames of a clip.  [16]"),
    click.option(
        "--sampling-rate",
        type=int,
        default=4,
        show_default=True,
        help="Every so many frames of the video.",
    ),
    click.option(
        "--augment",
        type=click.Choice(["none", "multiscale"]),
        default="none",
        show_default=True,
        help="multiscale: random crops. Saliency is then computed from the crops.",
    ),
    click.option("--hflip", is_flag=True, help="Mirror every other clip."),
    click.option(
        "--on-bad-video",
        type=click.Choice(["stop", "skip"]),
        default="stop",
        show_default=True,
        help="When one cannot be decoded. skip: use another, say so, count it.",
    ),
)
@optimization_options("1.5e-4", "1e-5, or a tenth of the rate if that is less", 40)
@TRAINING_MACHINE
@SAVING
def train(allocator: str, **options: Any) -> int:
    """Pretrain a VideoMAE on videos, masking salient patches less.

    Works alone, under torchrun and under srun. TERM, INT and USR1 finish the step, save, and exit
    with code 85: run the same command again to go on, exactly as if nothing had happened.
    """
    from savimae.allocator import keep_memory

    if allocator == "keep":
        keep_memory()  # before the first tensor
    from savimae.train import train as run

    return run(train_config(**options))


@cli.command()
@click.argument("runs", metavar="RUN...", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, default="loss.png", show_default=True, help="The PNG to write.")
def plot(runs: tuple[str, ...], out: str) -> None:
    """Draw the loss and the learning rate of runs in one picture."""
    from savimae.figures import plot_runs

    plot_runs(list(runs), out)
    click.echo(f"wrote {shown(out)}")


@cli.command()
@click.argument("runs", metavar="RUN_A RUN_B...", type=PATH, nargs=-1, required=True)
def compare(runs: tuple[str, ...]) -> None:
    """Print a table of runs: where they are, how fast they are, which settings differ."""
    from savimae.runs import compare_runs

    click.echo(compare_runs(list(runs)))


@cli.command()
@click.option("--out", type=PATH, default="savimae-demo", show_default=True, metavar="DIR")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--workers", type=click.IntRange(1), help="Default: the cores this process may use.")
@click.option(
    "--full", is_flag=True,
    help="Judge pretraining instead, with probes and fine-tuning: about half an hour.",
)  # fmt: skip
def demo(out: str, seed: int, workers: int | None, full: bool) -> int:
    """Make a small set of real videos and run the whole pipeline on it: about two minutes."""
    from savimae.allocator import keep_memory

    keep_memory()
    from savimae.cores import available_cores
    from savimae.demo import run_demo
    from savimae.demo_scores import run_full_demo

    return (run_full_demo if full else run_demo)(out, seed, workers or available_cores())
