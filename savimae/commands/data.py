"""The commands that look at videos and make arrays: options -> one call."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from savimae.commands.options import (
    FIT,
    PATH,
    SALIENCY,
    SEED,
    SIZE,
    Channels,
    array_options,
    saliency_config,
    saliency_options,
    walk_options,
)
from savimae.system.errors import EXIT_FAILURE, SavimaeError, UsageError, shown
from savimae.system.sizes import FrameSize

if TYPE_CHECKING:
    from savimae.data.random_split import RandomSplit
    from savimae.data.shards import Shard
    from savimae.saliency.config import SaliencyConfig
    from savimae.saliency.makers import ArrayMaker, Maker
    from savimae.saliency.preprocess import WalkOptions


def _walk_options(
    *,
    workers: int | None,
    shard: str,
    overwrite: bool,
    limit: int | None,
    root: str | None,
    list_path: str | None = None,
) -> WalkOptions:
    from savimae.saliency.preprocess import WalkOptions
    from savimae.system.cores import available_cores

    part = _shard(shard)
    return WalkOptions(workers or available_cores(), part, overwrite, limit, list_path, root)


def _shard(text: str) -> Shard:
    """What --shard says."""
    from savimae.data.shards import Shard

    try:
        return Shard.parse(text)
    except ValueError as error:
        raise UsageError(f"--shard {error}") from None


def _walk(source: str, out: str, maker: Maker, **walk: Any) -> int:
    """Make the outputs of a data set and print a summary; returns the exit code."""
    from savimae.saliency.config import mostly_salient
    from savimae.saliency.preprocess import process

    report = process(source, out, maker, _walk_options(**walk))
    if warning := mostly_salient(report.salient_share, "patches"):
        click.echo(warning, err=True)
    click.echo(f"{shown(out)}: {report.summary()}")
    return EXIT_FAILURE if report.failures else 0


@click.command()
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
    input_size: FrameSize,
    patch_size: int,
    fit: str,
    saliency: str,
    threshold: float | None,
    dtype: str,
    check: bool,
    allow_missing: int | None,
    **walk: Any,
) -> int:
    """Compute the salient patches of every video: one array a video.

    SOURCE is a folder of videos or of frame folders, a list file, or one video. OUT mirrors its
    structure: Class/video.npy, [frames, patches down, patches across], 1 where salient; of change
    the mean difference in quarters of a gray level, 0 to 255.

    Run it again to go on after an interruption: finished videos are skipped.
    """
    config = saliency_config(saliency, threshold, input_size, patch_size, fit)
    maker = _array_maker(config, dtype)
    if check:
        return _check(source, out, maker, allow_missing or 0, **walk)
    if allow_missing is not None:
        raise UsageError("--allow-missing goes with --check")
    return _walk(source, out, maker, **walk)


def _array_maker(config: SaliencyConfig, dtype: str, from_maps: bool = False) -> ArrayMaker:
    from savimae.saliency.config import CHANGE
    from savimae.saliency.makers import ArrayMaker

    if config.kind == CHANGE and dtype != ArrayMaker.dtype:
        raise UsageError(f"--dtype {dtype} is for --saliency frame-mean; scores are uint8")
    return ArrayMaker(config, dtype, from_maps)


def _check(source: str, out: str, maker: Maker, allowed: int = 0, **walk: Any) -> int:
    """Print what is there and what is missing; returns the exit code."""
    from savimae.saliency.preprocess import check

    if walk["overwrite"]:
        raise UsageError("--check computes nothing, and so cannot --overwrite")
    if walk["workers"] is not None:
        raise UsageError("--check computes nothing, and so needs no --workers")
    looked, unreadable = check(source, out, maker, _walk_options(**walk), allowed)
    missing = [shown(video.path) for video in looked.missing]
    missing += [f"{shown(path)}: {reason}" for path, reason in unreadable]
    for line in missing[:10]:
        click.echo(f"missing: {line}", err=True)
    if len(missing) > 10:
        click.echo(f"missing: … and {len(missing) - 10} more", err=True)
    n = len(looked.done)
    click.echo(
        f"{shown(out)}: {n} of {n + len(missing)} {maker.outputs} are there, {len(missing)} missing"
    )
    return EXIT_FAILURE if len(missing) > allowed else 0


@click.command()
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--short-side",
    type=click.IntRange(1),
    metavar="PIXELS",
    help="Resize frames so that their shorter side is this long.  [as they are]",
)
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    default=90,
    show_default=True,
    help="Of JPEG. 95 takes 1.4 times as much space, 75 a third less.",
)
@click.option("--list", "list_path", type=PATH, help="Write a training list of the frames.")
@walk_options
@click.option(
    "--check", is_flag=True, help="Write no frames; exit with 1 if a video's are missing."
)
def frames(
    source: str, out: str, short_side: int | None, quality: int, check: bool, **walk: Any
) -> int:  # fmt: skip
    """Write the frames of every video as JPEG: Class/video/img_00001.jpg, …

    SOURCE is what `preprocess` takes; folders of frames are read and written anew. Commands that
    read videos read these folders as well, as the same videos with the same frames.

    Run it again to go on after an interruption: finished videos are skipped.
    """
    from savimae.saliency.makers import FrameMaker

    walk_or_check = _check if check else _walk
    return walk_or_check(source, out, FrameMaker(short_side, quality), **walk)


@click.command()
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--input-size", type=SIZE, default=224, show_default=True,
    help="Of the maps, in pixels: the side of a square, or height x width.",
)  # fmt: skip
@click.option(
    "--patch-size", type=click.IntRange(1), help="Of --fit pad: its padding is whole patches.  [16]"
)
@FIT
@SALIENCY
@walk_options
def saliency(
    source: str, out: str, input_size: FrameSize, patch_size: int | None, fit: str, saliency: str,
    **walk: Any,
) -> int:  # fmt: skip
    """Write the saliency maps of every video as PNG: Class/video/img_00001.png, …

    The first of the two steps that `preprocess` does in one; for looking at maps, or for tools that
    read them.
    """
    from savimae.saliency.config import SaliencyConfig
    from savimae.saliency.makers import MapMaker

    if patch_size is not None and fit != "pad":
        raise UsageError("--patch-size is for --fit pad; maps have no patches")
    unit = 1 if fit != "pad" else patch_size or SaliencyConfig.patch_size
    config = saliency_config(saliency, None, input_size, unit, fit)
    return _walk(source, out, MapMaker(config), **walk)


@click.command()
@click.argument("saliency_root", type=PATH)
@click.argument("out", type=PATH)
@saliency_options
@array_options
@walk_options
def patches(
    saliency_root: str, out: str, input_size: FrameSize, patch_size: int, fit: str,
    saliency: str, threshold: float | None, dtype: str, **walk: Any,
) -> int:  # fmt: skip
    """Turn saliency maps into arrays: one folder of gray PNGs a video, of any size.

    The second of the two steps that `preprocess` does in one; for maps of another saliency model.
    """
    from savimae.saliency.config import check_maps

    config = saliency_config(saliency, threshold, input_size, patch_size, fit)
    try:
        check_maps(saliency_root, config)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return _walk(saliency_root, out, _array_maker(config, dtype, from_maps=True), **walk)


@click.command()
@click.argument("arrays", type=PATH)
@click.argument("out", metavar="PACK", type=PATH)
@click.option("--shard", metavar="I/N", default="0/1", help="Write file I (from 0) of N only.")
@click.option("--overwrite", is_flag=True, help="Write it anew if it is there.")
def pack(arrays: str, out: str, shard: str, overwrite: bool) -> int:
    """Put the arrays of a data set into few files, the folder PACK.

    ARRAYS is a folder that `preprocess` wrote. PACK is taken wherever ARRAYS is
    (--saliency-root), holds the same bits, and every array has a checksum that is compared when it
    is read. ARRAYS is left as it is.

    N tasks may write the N files at once, each with its own I. Run it again to go on after an
    interruption; a file that is there, of the same arrays, is left alone.
    """
    from savimae.saliency.pack import write_pack

    done = write_pack(arrays, out, _shard(shard), overwrite)
    what = f"{shown(done.path)}: {done.arrays} arrays, {done.size / 1e6:.1f} MB"
    click.echo(f"{what}, was there already" if done.was_there else f"{what}, {done.seconds:.1f} s")
    return 0


@click.command()
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
@click.option(
    "--match", multiple=True, metavar="GLOB", help="Only videos of such names.  [may be repeated]"
)
@click.option(
    "--exclude", multiple=True, metavar="GLOB", help="No videos of such names.  [may be repeated]"
)
@click.option(
    "--test-share",
    type=float,
    metavar="SHARE",
    help="Set this share of each class aside for a test, drawn at random.",
)
@click.option("--test-list", type=PATH, metavar="LIST", help="Of --test-share: their list.")
@click.option(
    "--by-group",
    is_flag=True,
    help="Of --test-share: keep a recording together, by the names of UCF101 and HMDB51.",
)
@click.option(
    "--group-pattern",
    metavar="REGEX",
    help="The same by other names: what this finds in Class/video, or its first group.",
)
@click.option("--seed", type=SEED, help="Of --test-share.  [0]")
def index(
    root: str, list_path: str, splits: str | None, split: int | None, part: str | None,
    against: str | None, sizes: bool, match: tuple[str, ...], exclude: tuple[str, ...],
    test_share: float | None, test_list: str | None, by_group: bool, group_pattern: str | None,
    seed: int | None,
) -> int:  # fmt: skip
    """Write a list file of the videos below ROOT: one `path label` a line.

    Labels are the sorted class folders, or those of an official split. With --test-share, LIST is
    for training, and --test-list for the test.

    A GLOB with a / is compared with the path of a video below ROOT (Class/video.avi), one without
    with the last part of it; both with the extension and without. Its * stands for a / as well.
    """
    from savimae.data.make_list import make_index

    for name, value in (("split", split), ("part", part)):
        if value is not None and splits is None:
            raise UsageError(f"--{name} goes with --splits, the folder of the official split files")
    random = None
    if test_share is not None:
        if splits is not None:
            raise UsageError("--splits says what the test is; leave it or --test-share out")
        random = _random_split(list_path, test_list, test_share, by_group, group_pattern, seed)
    for name, value in (
        ("test-list", test_list), ("by-group", by_group or None), ("group-pattern", group_pattern),
        ("seed", seed),
    ):  # fmt: skip
        if value is not None and random is None:
            raise UsageError(f"--{name} goes with --test-share, the share of the test")
    report = make_index(
        root, list_path, splits, split or 1, part or "train", against, sizes, match, exclude,
        test_list, random,
    )  # fmt: skip
    for note in report.notes:
        click.echo(note, err=True)
    for path, reason in report.unreadable:
        click.echo(f"failed: {shown(path)}: {reason}", err=True)
    for name in report.missing[:10]:
        click.echo(f"missing: {shown(name)}", err=True)
    if len(report.missing) > 10:
        click.echo(f"missing: … and {len(report.missing) - 10} more", err=True)
    if report.shared_videos:
        click.echo(
            f"warning: {report.ours} and {shown(str(against))} share {len(report.shared_videos)} "
            f"videos, such as {shown(report.shared_videos[0])}",
            err=True,
        )
    if report.shared_groups:
        click.echo(
            f"warning: {report.other_side} share {len(report.shared_groups)} recordings, such as "
            f"{shown(report.shared_groups[0])}: what is learned from one leaks into the other"
            f"{report.remedy}",
            err=True,
        )
    counts = f"{report.videos} videos, {report.classes} classes"
    if test_list is None:
        click.echo(f"{shown(list_path)}: {counts}, {len(report.missing)} missing")
    else:
        of_recordings = ""
        if report.recordings:
            of_recordings = f"; {report.recordings} recordings, none of them on both sides"
        click.echo(
            f"{shown(list_path)}: {counts}; {shown(test_list)}: {report.test_videos} videos"
            f"{of_recordings}"
        )
    return EXIT_FAILURE if report.missing or report.unreadable else 0


def _random_split(
    list_path: str, test_list: str | None, share: float, by_group: bool,
    group_pattern: str | None, seed: int | None,
) -> RandomSplit:  # fmt: skip
    from savimae.data.random_split import RandomSplit
    from savimae.system.files import refuse_folder

    if test_list is None:
        raise UsageError(
            "--test-share needs a --test-list, where the videos of the test are listed"
        )
    for path in (list_path, test_list):
        refuse_folder(path)
    if os.path.realpath(list_path) == os.path.realpath(test_list):
        raise UsageError(f"{shown(test_list)} would be both lists; give --test-list another name")
    try:
        return RandomSplit(share, seed or 0, by_group, group_pattern)
    except ValueError as error:
        raise UsageError(str(error)) from None


@click.command()
@click.argument("source", type=PATH)
@click.option("--out", type=PATH, help="The PNG to write.  [default: NAME.png]")
@saliency_options
@click.option("--frames", type=click.IntRange(1, 24), default=6, show_default=True)
@click.option(
    "--animation", type=click.Choice(["mp4", "gif", "none"]), default="mp4", show_default=True
)
@click.option(
    "--statistics", is_flag=True,
    help="Draw nothing; print mean and deviation of the pixels, as options of `savimae train`.",
)  # fmt: skip
@click.option("--channels", type=Channels(), help="Of --statistics: 3, RGB; 1, gray.  [3]")
@click.pass_context
def inspect(
    ctx: click.Context, source: str, out: str | None, input_size: FrameSize, patch_size: int,
    fit: str, saliency: str, threshold: float | None, frames: int, animation: str,
    statistics: bool, channels: int | None,
) -> None:  # fmt: skip
    """Draw frames, their saliency and their salient patches: a PNG, and an animation beside it.

    SOURCE is a video, a stack or a frame folder; of a whole data set the first video is drawn.
    --statistics looks at all of it: at most 256 videos, and 16 frames of each.
    """
    if statistics:
        for name in ("out", "patch_size", "saliency", "threshold", "frames", "animation"):
            if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE:
                raise UsageError(f"--{name.replace('_', '-')} is for pictures, not --statistics")
        _print_statistics(source, input_size, channels or 3, fit)
        return
    if channels is not None:
        raise UsageError("--channels goes with --statistics; pictures show a video as it is")
    from savimae.data.lists import find_videos
    from savimae.data.video import VideoError
    from savimae.judging.pictures import inspect_video

    config = saliency_config(saliency, threshold, input_size, patch_size, fit)
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


def _print_statistics(source: str, input_size: FrameSize, channels: int, fit: str) -> None:
    from savimae.data.lists import find_readable_videos
    from savimae.samples.pixel_statistics import measure_pixels, option_words

    videos = find_readable_videos(source).videos
    found = measure_pixels(videos, input_size, channels, fit)
    click.echo(f"{found.n_frames} frames of {found.n_videos} of {len(videos)} videos", err=True)
    click.echo(option_words(found) + (" --channels 1" if channels == 1 else ""))
