"""The commands that look at a model and judge it: options -> one call."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from savimae.commands.options import (
    ALLOW_OVERLAP,
    CHANNELS,
    FIT_KINDS,
    PATH,
    ROOT,
    SALIENCY_KIND,
    SEED,
    SIZE,
    GroupedCommand,
    option_group,
)
from savimae.system.allocator import keep_memory
from savimae.system.errors import EXIT_FAILURE, EXIT_STOPPED, UsageError, shown

if TYPE_CHECKING:
    from savimae.judging.load import Machine
    from savimae.samples.multi_view import Views
    from savimae.training.loaded_weights import ClipShape

MASKS = option_group(
    "Masks (default: as the model was trained)",
    click.option("--mask-type", type=click.Choice(["savi", "savi-tube", "tube", "random"])),
    click.option("--mask-ratio", type=float, help="Of tube and random."),
    click.option("--salient-mask-ratio", type=float, help="Of savi and savi-tube."),
    click.option("--nonsalient-mask-ratio", type=float, help="Of savi and savi-tube."),
)
RATE = click.option("--sampling-rate", type=int, help="[as the model was trained, else 4]")
SEED_OF_CLIPS = click.option("--seed", type=SEED, default=0, show_default=True)
CLIPS = option_group("Clips", ROOT, RATE, SEED_OF_CLIPS)
CLIP_SHAPE = (
    click.option("--num-frames", type=click.IntRange(1), help="[as the model was trained]"),
    click.option("--input-size", type=SIZE, help="Of the frames.  [as it was trained]"),
    CHANNELS,
    click.option("--fit", type=FIT_KINDS, help="Of whole frames.  [as it was trained]"),
)
OF_SALIENCY = option_group(
    "Saliency",
    click.option("--saliency-root", type=PATH, help="Arrays.  [computed from the clips]"),
    click.option(
        "--saliency", type=SALIENCY_KIND, help="Its kind.  [that of the arrays, or as trained]"
    ),
    click.option("--saliency-threshold", type=float, help="Where it is computed.  [0.5]"),
    click.option("--salient-share", type=float, help="Of a clip's tokens; of change.  [0.25]"),
)


ONE_BY_ONE = (
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto"),
    click.option("--precision", type=click.Choice(["auto", "bf16", "fp32"]), default="auto"),
    click.option("--threads", type=click.IntRange(1), help="[the cores this process may use]"),
)
WHOLE_CLIPS = option_group("Clips", ROOT, RATE, *CLIP_SHAPE)
ENCODED_CLIPS = option_group("Clips", ROOT, RATE, *CLIP_SHAPE, SEED_OF_CLIPS)
ANIMATIONS = click.Choice(["mp4", "gif", "none"])
MACHINE_ONE_BY_ONE = option_group("Machine", *ONE_BY_ONE)
MACHINE = option_group(
    "Machine",
    click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True),
    *ONE_BY_ONE,
    click.option(
        "--workers", type=click.IntRange(0), help="Threads that load.  [a quarter of --threads]"
    ),
)


VIEWS = option_group(
    "Views, whose features are averaged",
    click.option("--clips", type=int, default=1, show_default=True, help="Spread over the time."),
    click.option(
        "--crops",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Parts in the input's shape, along the side with room; 0: whole frames.",
    ),
)


class LabelCounts(click.ParamType):
    """`5,20,all` -> (5, 20, None)."""

    name = "counts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        counts = []
        for word in value.split(","):
            if word.strip() != "all" and not (word.strip().isdecimal() and int(word) > 0):
                self.fail(f"{value!r} is not like 5,20,all", param, ctx)
            counts.append(None if word.strip() == "all" else int(word))
        return tuple(counts)


LAYER = click.option(
    "--layer", type=click.IntRange(1), metavar="L",
    help="Features of an inner block, 1 to the encoder's depth.  [the last, after its norm]",
)  # fmt: skip
POOL = click.option(
    "--pool", type=click.Choice(["mean", "time", "tokens"]), default="mean", show_default=True,
    help="The mean of all tokens, one mean a time step, or all tokens.",
)  # fmt: skip


Config = TypeVar("Config")


def _make(config: Callable[..., Config], options: dict[str, Any]) -> Config:
    """Fill a dataclass with those options that are its fields.

    Raises:
        UsageError: values that do not fit.
    """
    names = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    try:
        return config(**{name: options[name] for name in names if name in options})
    except ValueError as error:
        raise UsageError(str(error)) from None


def _views(options: dict[str, Any]) -> Views:
    """Raises UsageError as `_make`."""
    from savimae.samples.multi_view import Views

    views = _make(Views, {"clips": options["clips"], "crops": options["crops"] or None})
    _check_fit(options["fit"], views)
    return views


def _check_fit(fit: str | None, views: Views) -> None:
    """Raises UsageError for a fit that no view sees."""
    if fit == "crop" and views.crops is not None:
        raise UsageError(
            f"--fit crop is for whole frames, and {views.crops} crops of a frame are seen; give "
            "--crops 0, or leave it out"
        )


def _clip_shape(options: dict[str, Any]) -> ClipShape:
    from savimae.training.loaded_weights import ClipShape

    return _make(ClipShape, options)


def _choose_machine(
    device: str, precision: str, threads: int | None, batch_size: int = 1,
    workers: int | None = None, **_: Any,
) -> Machine:  # fmt: skip
    from savimae.judging.load import Machine

    return Machine.choose(device, precision, threads, batch_size, workers)


@click.command(cls=GroupedCommand)
@click.argument("checkpoints", metavar="CHECKPOINT...", type=PATH, nargs=-1, required=True)
@click.argument("source", type=PATH)
@option_group(
    "The pictures",
    click.option("--out", type=PATH, required=True, metavar="DIR", help="Where they go."),
    click.option(
        "--statistics", type=click.Choice(["visible", "target"]),
        help="What brings normalised predictions back to pixels. target leaks the answer.  "
        "[visible]",
    ),
    click.option("--sheet", is_flag=True, help="Many videos in one picture, DIR/sheet.png."),
    click.option(
        "--videos", "n_videos", type=click.IntRange(1),
        help="How many of a list or folder.  [4; 12 on a sheet]",
    ),
    click.option("--animation", type=ANIMATIONS, help="[mp4; none beside a sheet]"),
)  # fmt: skip
@MASKS
@ENCODED_CLIPS
@OF_SALIENCY
@MACHINE_ONE_BY_ONE
def reconstruct(checkpoints: tuple[str, ...], source: str, out: str, **options: Any) -> None:
    """Draw what models make of hidden patches: pictures, animations, PSNR and SSIM as JSON.

    CHECKPOINT is the folder of a run, a checkpoint, or published weights; several are drawn side by
    side. SOURCE is a video, a list or a folder.

    Checkpoints with the same grid of tokens get the same clips and masks: those that the first one
    was trained with, unless options say otherwise.
    """
    keep_memory()  # before the first tensor
    from savimae.judging.load import ClipOptions, MaskOptions
    from savimae.judging.reconstruct import Drawings, draw_reconstructions

    drawn = draw_reconstructions(
        checkpoints, source, out, _choose_machine(**options), _make(MaskOptions, options),
        _make(ClipOptions, options), _make(Drawings, options),
    )  # fmt: skip
    for path in drawn.written:
        click.echo(f"wrote {shown(path)}")


@click.command(cls=GroupedCommand)
@click.argument("checkpoint", type=PATH)
@click.argument("source", type=PATH)
@option_group(
    "The pictures",
    click.option("--out", type=PATH, required=True, metavar="DIR", help="Where they go."),
    click.option(
        "--layer", type=click.IntRange(1), metavar="L",
        help="Attention in block L, 1 to the encoder's depth.  [the last]",
    ),
    click.option("--heads", is_flag=True, help="Draw each head too."),
    click.option(
        "--videos", "n_videos", type=click.IntRange(1), default=4, show_default=True,
        help="How many of a list or folder.",
    ),
    click.option("--animation", type=ANIMATIONS, default="mp4", show_default=True),
)  # fmt: skip
@WHOLE_CLIPS
@OF_SALIENCY
@MACHINE_ONE_BY_ONE
def attention(checkpoint: str, source: str, out: str, **options: Any) -> None:
    """Draw what an encoder looks at: the attention that each part of a clip receives.

    CHECKPOINT is the folder of a run, a checkpoint, or published weights. SOURCE is a video, a list
    or a folder; the middle clip of each video is drawn, beside its saliency. The numbers are
    written too: VIDEO.npz, and attention.json for how attention goes with saliency.
    """
    keep_memory()  # before the first tensor
    from savimae.judging.attention import AttentionDrawings, draw_attention_maps
    from savimae.judging.load import ClipOptions

    drawn = draw_attention_maps(
        checkpoint, source, out, _choose_machine(**options), _make(ClipOptions, options),
        _make(AttentionDrawings, options), _clip_shape(options),
    )  # fmt: skip
    for path in drawn.written:
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
@OF_SALIENCY
@MACHINE
def evaluate(
    checkpoints: tuple[str, ...], data: str, clips_per_video: int, out: str | None, **options: Any
) -> None:
    """Print how well models reconstruct what masks hide: the loss of training, on any videos.

    The masks are the same for all models with the same grid of tokens. "means alone" is the loss of
    predicting nothing but each token's mean.
    """
    keep_memory()  # before the first tensor
    from savimae.judging.evaluate import evaluate as run
    from savimae.judging.evaluate import evaluation_table
    from savimae.judging.load import ClipOptions, MaskOptions
    from savimae.system.files import refuse_folder, write_json

    if out is not None:
        refuse_folder(out)
    results = run(
        checkpoints, data, _choose_machine(**options), _make(MaskOptions, options),
        _make(ClipOptions, options), clips_per_video,
    )  # fmt: skip
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
    LAYER,
)
@VIEWS
@WHOLE_CLIPS
@MACHINE
def features(
    checkpoint: str, data: str, out: str, pool: str, layer: int | None, root: str | None,
    sampling_rate: int | None, **options: Any,
) -> None:  # fmt: skip
    """Write what the encoder makes of whole clips, with paths and labels.

    FILE.npz holds `values` ([videos, D] for --pool mean), `labels` (-1 for none), `paths` and
    `settings`; beside FILE.npy lies a .json with the last three. Run it again to go on.
    """
    keep_memory()  # before the first tensor
    from savimae.data.lists import find_readable_videos
    from savimae.judging.features import encoder_features, make_features
    from savimae.judging.load import load_trained
    from savimae.samples.multi_view import ViewReader

    machine, views = _choose_machine(**options), _views(options)
    videos = find_readable_videos(data, root).videos
    trained = load_trained(checkpoint, machine.device, _clip_shape(options))
    try:
        reader = ViewReader(trained.clips(sampling_rate), views)
        source = encoder_features(trained.encoder, pool, machine, layer)
    except ValueError as error:
        raise UsageError(str(error)) from None
    values = make_features(out, source, videos, reader, machine).values
    click.echo(f"{shown(out)}: {list(values.shape)} of {len(videos)} videos")


TEST_VIEWS = option_group(
    "Views, whose probabilities are averaged",
    click.option("--clips", type=click.IntRange(1), help="[as in the classifier's own test]"),
    click.option(
        "--crops", type=click.IntRange(0),
        help="Parts in the input's shape, along the side with room; 0: whole frames.  "
        "[as in its test]",
    ),
)  # fmt: skip


@click.command(cls=GroupedCommand)
@click.argument("classifier", type=PATH)
@click.argument("source", type=PATH)
@option_group(
    "The labels",
    click.option("--out", type=PATH, metavar="FILE", help="Write them: .csv or .jsonl"),
    click.option(
        "--top", type=click.IntRange(1), metavar="K",
        help="Likeliest classes or labels that are printed.  [3]",
    ),
    click.option(
        "--every", metavar="2s", help="A line for each window of so many seconds of a video."
    ),
)  # fmt: skip
@TEST_VIEWS
@WHOLE_CLIPS
@MACHINE
def predict(
    classifier: str, source: str, out: str | None, top: int | None, every: str | None,
    clips: int | None, crops: int | None, root: str | None, sampling_rate: int | None,
    **options: Any,
) -> int:  # fmt: skip
    """Print which classes new videos are of, with probabilities; or their numbers.

    CLASSIFIER is a run of `savimae finetune`, a checkpoint of it, or a Hugging Face folder. SOURCE
    is a video, a list or a folder. FILE has a line for each video: path, label, probability, and
    the probability of every class; or what --task of `finetune` asked for.
    """
    keep_memory()  # before the first tensor
    from savimae.data.lists import find_videos
    from savimae.judging.load import load_trained_classifier
    from savimae.judging.predict import (
        BrokenVideo,
        check_out,
        parse_every,
        predict_videos,
        predict_windows,
        write_predictions,
    )
    from savimae.samples.multi_view import ViewReader
    from savimae.system.files import refuse_folder
    from savimae.training.outputs import REGRESS
    from savimae.training.predictions import ValuesPrediction

    if out is not None:
        refuse_folder(out)
        check_out(out)
    machine = _choose_machine(**options)
    trained = load_trained_classifier(classifier, machine.device, _clip_shape(options))
    if top is not None and trained.outputs.task == REGRESS:
        raise UsageError(f"--top is for classes and labels; {shown(classifier)} predicts numbers")
    found = find_videos(source, root, weigh=False)
    try:
        _check_fit(options["fit"], trained.views(clips, crops))
        if every is None:
            reader = ViewReader(trained.clips(sampling_rate), trained.views(clips, crops))
            predicted = predict_videos(trained, found.videos, reader, machine)
        else:
            reader = ViewReader(trained.clips(sampling_rate), trained.views(clips or 1, crops))
            predicted = predict_windows(
                trained, found.videos, reader, machine, parse_every(every)
            )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from None
    broken = [BrokenVideo(*each) for each in found.unreadable]
    width = max((len(shown(video.path)) for video in found.videos), default=0)
    written = []
    for each in predicted:
        if isinstance(each, BrokenVideo):
            broken.append(each)
            continue
        window = "" if each.start_s is None else f"  {each.start_s:9.2f} to {each.end_s:.2f} s"
        if isinstance(each, ValuesPrediction):
            pairs = zip(each.names, each.values, strict=True)
            said = "  ".join(f"{shown(name)} {value:.6g}" for name, value in pairs)
        else:
            said = "  ".join(f"{shown(name)} {value:.3f}" for name, value in each.top(top or 3))
        click.echo(f"{shown(each.path):{width}}{window}  {said}")
        written.append(each)
    for path, reason in broken:
        click.echo(f"failed: {shown(path)}: {reason}", err=True)
    if out is not None and written:
        write_predictions(out, written)
        click.echo(f"wrote {shown(out)}", err=True)
    return EXIT_FAILURE if broken else 0


@click.command(cls=GroupedCommand)
@click.argument("classifier", type=PATH)
@option_group(
    "The test",
    click.option("--test", "test_list", type=PATH, required=True, metavar="LIST"),
    click.option(
        "--out", type=PATH, required=True, metavar="DIR",
        help="test.json, predictions.csv, pictures. Run again to go on with it.",
    ),
)  # fmt: skip
@TEST_VIEWS
@WHOLE_CLIPS
@MACHINE
def test(
    classifier: str, test_list: str, out: str, clips: int | None, crops: int | None,
    root: str | None, sampling_rate: int | None, **options: Any,
) -> int:  # fmt: skip
    """Test a classifier on another list of labelled videos, or with more views.

    CLASSIFIER is a run of `savimae finetune`, a checkpoint of it, or a Hugging Face folder. Classes
    are matched by name; a list of folders or `path label` lines will do.
    """
    keep_memory()  # before the first tensor
    from savimae.judging.load import load_trained_classifier
    from savimae.judging.pictures import check_matplotlib, draw_test
    from savimae.judging.predict import run_test
    from savimae.samples.multi_view import ViewReader
    from savimae.training.scores import score_words

    check_matplotlib()
    machine = _choose_machine(**options)
    trained = load_trained_classifier(classifier, machine.device, _clip_shape(options))
    try:
        _check_fit(options["fit"], trained.views(clips, crops))
        reader = ViewReader(trained.clips(sampling_rate), trained.views(clips, crops))
    except ValueError as error:
        raise UsageError(str(error)) from None
    result = run_test(trained, test_list, out, reader, machine, root)
    if result is None:
        click.echo(
            f"stopped, and saved in {shown(out)}; run the same command again to go on (exit code "
            f"{EXIT_STOPPED})",
            err=True,
        )
        return EXIT_STOPPED
    for note in result["notes"]:
        click.echo(note)
    words = score_words(result, trained.outputs.task)
    click.echo(f"{result['videos']} test videos: {words}")
    for path in (f"{out}/test.json", f"{out}/predictions.csv", *draw_test(out, result)):
        click.echo(f"wrote {shown(path)}")
    return 0


@click.command(cls=GroupedCommand)
@click.argument("checkpoint", type=PATH)
@option_group(
    "The probe",
    click.option("--train", "train_list", type=PATH, required=True, metavar="LIST"),
    click.option("--test", "test_list", type=PATH, required=True, metavar="LIST"),
    click.option("--out", type=PATH, required=True, metavar="DIR", help="Scores and features."),
    POOL,
    LAYER,
    click.option(
        "--baselines/--no-baselines", default=True, show_default=True,
        help="Probe an untrained encoder and raw pixels as well.",
    ),
    click.option(
        "--labels", type=LabelCounts(), default="all", show_default=True, metavar="N,N,…",
        help="Training videos of each class: 5,20,all. Each number is drawn five times.",
    ),
    click.option(
        "--attentive", is_flag=True,
        help="Fit attentive probes too: on all tokens, which are kept in DIR.",
    ),
    ALLOW_OVERLAP,
)  # fmt: skip
@VIEWS
@ENCODED_CLIPS
@MACHINE
def probe(
    checkpoint: str, train_list: str, test_list: str, out: str, pool: str, layer: int | None,
    baselines: bool, labels: tuple[int | None, ...], attentive: bool, allow_overlap: bool,
    root: str | None, sampling_rate: int | None, seed: int, **options: Any,
) -> None:  # fmt: skip
    """Print what frozen features are worth: kNN, a linear classifier and an attentive probe.

    Lists hold `path label` lines; folders of class folders will do. DIR gets probe.json, a
    confusion matrix as PNG, and the features, which are computed only once.
    """
    keep_memory()  # before the first tensor
    from savimae.data.labels import overlap_words
    from savimae.judging.pictures import check_matplotlib, plot_confusion
    from savimae.judging.probe import probe as run
    from savimae.judging.probe import probe_table
    from savimae.system.files import write_json

    check_matplotlib()
    result = run(
        checkpoint, train_list, test_list, out, _choose_machine(**options), pool=pool, layer=layer,
        views=_views(options), root=root, sampling_rate=sampling_rate, seed=seed,
        baselines=baselines, attentive=attentive, label_counts=labels, allow_overlap=allow_overlap,
        clip_shape=_clip_shape(options),
    )  # fmt: skip
    of_model = [score for score in result.scores if score.features == "pretrained"]
    best = max(of_model, key=lambda score: score.top1)
    picture = f"{out}/confusion.png"
    title = f"{best.features} features, {best.classifier}: top-1 {best.top1:.3f}"
    plot_confusion(best.confusion, result.classes, title, picture)
    of_what = {"checkpoint": checkpoint, "train": train_list, "test": test_list}
    write_json(
        f"{out}/probe.json", {**of_what, **dataclasses.asdict(result), "chance": result.chance}
    )
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
    "Neighbours",
    click.option("--data", type=PATH, required=True, metavar="LIST_OR_FOLDER", help="Videos."),
    click.option("--out", type=PATH, required=True, metavar="DIR", help="Pictures and features."),
    click.option(
        "--query", type=PATH, multiple=True, metavar="VIDEO",
        help="Whose neighbours are shown; of the list or not. May be repeated.",
    ),
    click.option(
        "--queries", type=click.IntRange(1), metavar="N",
        help="So many of the list, spread over its classes.  [6; none beside --query]",
    ),
    click.option(
        "--k", type=click.IntRange(1), metavar="K",
        help="Neighbours of each.  [8, or all others of fewer]",
    ),
    click.option(
        "--map", "map_by", type=click.Choice(["pca", "tsne", "umap"]), default="pca",
        show_default=True, help="How the map of all videos is made.",
    ),
    POOL,
    LAYER,
)  # fmt: skip
@VIEWS
@WHOLE_CLIPS
@MACHINE
def neighbors(
    checkpoint: str, data: str, out: str, pool: str, layer: int | None, root: str | None,
    sampling_rate: int | None, **options: Any,
) -> None:  # fmt: skip
    """Draw which videos an encoder finds alike: a sheet of nearest neighbours, a map of all.

    DIR gets neighbors.png, map.png, neighbors.json (with how often neighbours are of the same
    class), and the features, which are computed only once. Run it again to go on.
    """
    keep_memory()  # before the first tensor
    from savimae.judging.neighbors import NeighborOptions, find_neighbors, own_class_words

    found = find_neighbors(
        checkpoint, data, out, _choose_machine(**options), _make(NeighborOptions, options),
        pool=pool, layer=layer, views=_views(options), root=root,
        sampling_rate=sampling_rate, clip_shape=_clip_shape(options),
    )  # fmt: skip
    for note in found.notes:
        click.echo(note, err=True)
    for line in own_class_words(found):
        click.echo(line)
    for path in found.written:
        click.echo(f"wrote {shown(path)}")


@click.command()
@click.argument("runs", metavar="RUN...", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, default="loss.png", show_default=True, help="The PNG to write.")
@click.option(
    "--smooth", metavar="SHARE_OR_STEPS",
    help="Average curves over 5% (or 0.05) of the steps, or over 200 steps; 0: as logged.  [2%]",
)  # fmt: skip
def plot(runs: tuple[str, ...], out: str, smooth: str | None) -> None:
    """Draw what runs did in one picture: loss, accuracy, learning rate, clips per second.

    Losses that cannot be compared have panels of their own: classifiers and pretraining, normalised
    targets and plain pixels, all masked tokens and salient ones.
    """
    from savimae.judging.curves import Smoothing
    from savimae.judging.pictures import plot_runs
    from savimae.system.files import refuse_folder

    refuse_folder(out)
    plot_runs(list(runs), out, None if smooth is None else Smoothing.parse(smooth))
    click.echo(f"wrote {shown(out)}")


@click.command()
@click.argument("runs", metavar="RUN_A RUN_B...", type=PATH, nargs=-1, required=True)
def compare(runs: tuple[str, ...]) -> None:
    """Print a table of runs: where they are, how fast they are, which settings differ."""
    from savimae.judging.compare import compare_runs

    click.echo(compare_runs(list(runs)))


@click.command()
@click.argument("run", metavar="RUN_OR_STUDY", type=PATH)
@click.argument("results", metavar="[RESULTS]...", type=PATH, nargs=-1)
@click.option("--out", type=PATH, metavar="FILE", help="The page.  [RUN/report.html]")
def report(run: str, results: tuple[str, ...], out: str | None) -> None:
    """Write one page of HTML with all that is known of a run, or of a study.

    Settings, data, loss, speed, reconstructions, results, checkpoints, and the commands that
    repeat it. RESULTS are folders that `probe`, `test`, `finetune`, `reconstruct`, `neighbors` and
    `attention` wrote, or the file of `evaluate`; those inside RUN are found. The page needs nothing
    but itself.
    """
    keep_memory()  # before the first tensor
    from savimae.judging.load import Machine
    from savimae.judging.report.look import look
    from savimae.judging.report.page import REPORT, write_run_report
    from savimae.judging.report.results import find_results
    from savimae.judging.report.run import STUDY, Run, check_folder
    from savimae.study.page import write_study_report
    from savimae.system.files import refuse_folder
    from savimae.training.log import read_settings

    target = os.path.join(run, REPORT) if out is None else out
    refuse_folder(target)
    check_folder(run)
    if read_settings(run).get("output") == STUDY:
        if results:
            raise UsageError(
                f"{shown(run)} is a study, whose results lie in its cells; name no others"
            )
        write_study_report(run, target)
    else:
        found = Run.read(run)
        of_others = find_results(run, results)
        machine = Machine.choose("cpu", "auto", None)
        write_run_report(found, of_others, target, look(found, machine))
    click.echo(f"wrote {shown(target)}")
