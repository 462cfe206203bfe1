"""The commands that train and convert models: options -> one call."""

from __future__ import annotations

from typing import Any

import click

from savimae.commands.options import (
    ALLOW_OVERLAP,
    CHANNELS,
    FIT_KINDS,
    PATH,
    ROOT,
    SALIENCY_KIND,
    SAVING,
    SIZE,
    TRAINING_MACHINE,
    BriefCommand,
    Channels,
    finetune_config,
    instead,
    optimization_options,
    option_group,
    recipe_option,
    train_config,
)
from savimae.system.allocator import keep_memory
from savimae.system.errors import one_line, shown


@click.command()
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--to", required=True,
    type=click.Choice(["savimae", "videomae", "huggingface", "onnx", "export"]),
    help="videomae: as published; huggingface: a folder for VideoMAEForPreTraining or, of a "
    "classifier, VideoMAEForVideoClassification; onnx, export (of torch): the encoder or the "
    "classifier as a program for other runtimes.",
)  # fmt: skip
@click.option(
    "--int8", is_flag=True, help="Of onnx: weights as 8-bit integers, a quarter as large."
)
@click.option("--input-size", type=SIZE, help="Not in published files.  [224]")
@click.option("--num-frames", type=click.IntRange(1), help="Not in published files.  [16]")
@click.option("--encoder-heads", type=click.IntRange(1), help="Of widths that no size has.")
@click.option("--decoder-heads", type=click.IntRange(1), help="Of widths that no size has.")
def convert(source: str, out: str, to: str, int8: bool, **shape: Any) -> None:
    """Convert weights between our layout, published checkpoints and Hugging Face, or to programs.

    SOURCE is a file or a Hugging Face folder; which layout it has is detected.
    """
    from savimae.training.weights import convert as convert_weights

    given = {name: value for name, value in shape.items() if value is not None}
    weights = convert_weights(source, out, to, int8, **given)
    n = sum(value.numel() for value in weights.state.values())
    click.echo(f"{shown(out)}: {n / 1e6:.2f} M parameters, {weights.layout} -> {to}")


@click.command(cls=BriefCommand)
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
    recipe_option(
        "train",
        "Other defaults; small: for up to thousands of clips and about an hour of two cores.",
    ),
    click.option(
        "--model",
        callback=instead,
        help="tiny, small, base, large, huge, or a published name.  [base]",
    ),
    click.option(
        "--init",
        type=PATH,
        callback=instead,
        metavar="CHECKPOINT",
        help="Weights to start from: ours, published, or a Hugging Face folder. Their shape is the "
        "default of the model's.",
    ),
    click.option(
        "--epochs", type=int, callback=instead, help="How often every video is seen.  [800]"
    ),
    click.option(
        "--batch-size",
        type=int,
        default=8,
        show_default=True,
        help="Clips at a time, of each process.",
    ),
    click.option(
        "--mask-type",
        type=click.Choice(["savi", "savi-tube", "tube", "random"]),
        default="savi",
        show_default=True,
        callback=instead,
        help="savi: salient tokens are masked less. tube: the same places at all times.",
    ),
    click.option(
        "--saliency",
        type=SALIENCY_KIND,
        help="Distance from the frame's mean, or change.  [that of the arrays, or frame-mean]",
    ),
    click.option(
        "--saliency-root",
        type=PATH,
        metavar="DIR",
        help="Arrays of `savimae preprocess`. Without it, saliency is computed from the clips.",
    ),
)
@option_group(
    "Model",
    click.option("--encoder-depth", type=int, help="Blocks of the encoder.  [the model's]"),
    click.option("--decoder-depth", type=int, help="Blocks of the decoder.  [4]"),
    click.option(
        "--input-size", type=SIZE,
        help="Of the frames, in pixels: the side of a square, or height x width.  [224]",
    ),
    click.option("--patch-size", type=int, help="Side of a patch, in pixels.  [16]"),
    click.option("--tubelet-size", type=int, help="Frames of a token.  [2]"),
    click.option(
        "--channels", type=Channels(),
        help="Of pixels: 3, RGB; 1, gray.  [those of --init, or 3]",
    ),
    click.option(
        "--pixel-mean", metavar="M,M,M",
        help="Of pixels in 0 to 1; see `inspect --statistics`.  [ImageNet's]",
    ),
    click.option("--pixel-std", metavar="S,S,S", help="Their deviation.  [ImageNet's]"),
)  # fmt: skip
@option_group(
    "Masks",
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
        "--equal-count",
        is_flag=True,
        help="Every clip shows as many tokens: what the ratios give on average (savi, savi-tube).",
    ),
    click.option(
        "--visible-tokens", type=int, metavar="N", help="Every clip shows so many tokens."
    ),
    click.option(
        "--decoder-mask-ratio",
        type=float,
        default=0.0,
        show_default=True,
        help="Masked tokens that are not reconstructed; 0.5 is a third faster (VideoMAE V2).",
    ),
    click.option(
        "--repeat",
        type=int,
        default=1,
        show_default=True,
        metavar="R",
        help="Masks of every clip that is loaded, each a clip of the batch. For slow loading.",
    ),
    click.option(
        "--decode",
        type=click.Choice(["all", "salient"]),
        default="all",
        show_default=True,
        help="salient: of the masked tokens only these are reconstructed, as in EVEREST.",
    ),
    click.option(
        "--salient-share",
        type=float,
        help="Salient share of a clip's tokens, those that change most.  [0.25]",
    ),
    click.option(
        "--saliency-threshold",
        type=float,
        help="Where saliency is computed from the clips; see `preprocess --threshold`.  [0.5]",
    ),
)
@option_group(
    "Clips",
    ROOT,
    click.option("--num-frames", type=int, help="Frames of a clip.  [16]"),
    click.option(
        "--num-frames-schedule",
        metavar="4,8,16",
        help="Short clips first: equal parts of the epochs with clips of so many frames.",
    ),
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
    click.option(
        "--fit",
        type=FIT_KINDS,
        help="Of frames of another shape: press the whole, crop the middle, or pad with black.  "
        "[that of the arrays, or press]",
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
@option_group(
    "Optimization",
    click.option(
        "--optimizer",
        type=click.Choice(["adamw", "muon"]),
        default="adamw",
        show_default=True,
        help="muon: of the matrices of the blocks. Fewer steps for the same loss.",
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
    if allocator == "keep":
        keep_memory()  # before the first tensor
    from savimae.training.pretrain import train as run

    config = train_config(**options)
    code = run(config)
    if code == 0:
        _show(config.out)
    return code


@click.command(cls=BriefCommand)
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
        "--out", type=PATH, required=True, metavar="RUN",
        help="The run's folder: checkpoints, log, test.json. Run again to go on with it.",
    ),
    click.option(
        "--epochs", type=int, callback=instead, help="How often every video is seen.  [100]"
    ),
    click.option(
        "--batch-size", type=int, default=8, show_default=True,
        help="Clips at a time, of each process.",
    ),
    click.option(
        "--task", type=click.Choice(["classify", "multilabel", "regress"]), default="classify",
        show_default=True,
        help="One class a video; any number of labels (`path 0,3`); numbers (`path 1.5,-3`).",
    ),
    click.option(
        "--untrained", is_flag=True, help="Take the checkpoint's shape only, for comparison."
    ),
    recipe_option(
        "finetune", "Other defaults; small: for a few hundred videos that look alike."
    ),
)  # fmt: skip
@option_group(
    "Lists",
    ROOT,
    click.option(
        "--splits",
        type=PATH,
        metavar="FOLDER",
        help="The official split files.  [under their usual name in or beside the videos]",
    ),
    ALLOW_OVERLAP,
)
@option_group(
    "Clips",
    click.option("--num-frames", type=click.IntRange(1), help="[as the model was pretrained]"),
    click.option("--input-size", type=SIZE, help="Of the frames.  [as it was pretrained]"),
    CHANNELS,
    click.option(
        "--fit", type=FIT_KINDS,
        help="Of whole frames; with pad, of parts of frames as well.  [as it was pretrained]",
    ),
    click.option("--sampling-rate", type=int, help="[as the model was pretrained, else 4]"),
    click.option(
        "--smallest-crop", type=float, default=0.08, show_default=True,
        help="Share of the frame's area that random crops have at least; 1: whole frames.",
    ),
    click.option("--hflip/--no-hflip", default=True, show_default=True, help="Mirror every other."),
    click.option(
        "--erasing", type=float, default=0.25, show_default=True, help="Share of clips with a hole."
    ),
    click.option("--mixup", type=float, help="0: never.  [0.8; of numbers 0]"),
    click.option("--cutmix", type=float, help="0: never.  [1; of numbers 0]"),
)  # fmt: skip
@option_group(
    "Task",
    click.option(
        "--loss", type=click.Choice(["mse", "huber"]),
        help="Of --task regress; huber: large errors count linearly.  [mse]",
    ),
    click.option(
        "--class-weights", type=click.Choice(["none", "balanced"]), default="none",
        show_default=True, help="balanced: rare classes or labels count as much as frequent ones.",
    ),
    click.option(
        "--sampling", type=click.Choice(["natural", "balanced"]), default="natural",
        show_default=True, help="balanced: every class equally often in an epoch.",
    ),
    click.option(
        "--freeze", type=click.IntRange(0), default=0, show_default=True, metavar="L",
        help="The patch embedding and the first L blocks keep their weights; 0: all learn.",
    ),
)  # fmt: skip
@option_group(
    "Head",
    click.option(
        "--pool", type=click.Choice(["mean", "time"]), default="mean", show_default=True,
        help="What the last layer sees: the mean of all tokens, or one mean for each time step.",
    ),
    click.option(
        "--standardize/--no-standardize", default=False, show_default=True,
        help="Let every value it sees have mean 0 and deviation 1 over the clips.",
    ),
    click.option(
        "--head-scale", type=float, default=0.001, show_default=True,
        help="Of its initial weights.",
    ),
)  # fmt: skip
@option_group(
    "Regularisation",
    click.option("--label-smoothing", type=float, help="[0.1; of several labels 0]"),
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
        "--ema", type=float, default=0.0, show_default=True,
        help="Decay of averaged weights, such as 0.9999, which are then tested; 0: none.",
    ),
)  # fmt: skip
@option_group(
    "Test",
    click.option("--test-clips", type=int, default=5, show_default=True),
    click.option(
        "--test-crops", type=click.IntRange(0), default=3, show_default=True,
        help="Parts in the input's shape, along the side with room; 0: whole frames.",
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

    Lists hold `path label` lines; folders of class folders will do. --task is for several labels of
    a video, and for numbers. The test averages what is predicted over clips and crops. Resuming,
    signals, log and many processes are as in `train`.
    """
    if allocator == "keep":
        keep_memory()  # before the first tensor
    from savimae.training.finetune import finetune as run

    config = finetune_config(**options)
    code = run(config)
    if code == 0:
        _show(config.out)
    return code


def _show(run: str) -> None:
    """Write RUN/report.html after training, from files alone, and draw the test of a classifier.

    A run that is done stays done: what goes wrong here is one line, and not its exit code.
    """
    from savimae.judging.pictures import draw_test, has_matplotlib
    from savimae.judging.report.page import report_at_end
    from savimae.training.classifier_test import read_result
    from savimae.training.distributed import find_world

    if not find_world().is_main:
        return
    try:
        written = report_at_end(run)
        if written is None:  # nothing was trained since
            return
        click.echo(f"wrote {shown(written)}")
        result = read_result(run)
        if result is not None and has_matplotlib():
            for path in draw_test(run, result):
                click.echo(f"wrote {shown(path)}")
    except Exception as error:
        click.echo(f"note: its report and pictures were not written: {one_line(error)}", err=True)
