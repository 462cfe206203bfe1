"""What the files of a run say, as parts of a page: its course, data, checkpoints, settings."""

from __future__ import annotations

import json
import os
import shlex
import statistics
from typing import Any

from savimae.judging.report.chart import Level, Line, line_chart
from savimae.judging.report.html import Html, element, join, note, paragraphs, table
from savimae.judging.report.run import CLASSIFIER, PRETRAINING, Run, clock, count, loss_of_means
from savimae.model.config import GRAY
from savimae.system.errors import shown
from savimae.system.sizes import size_words
from savimae.training.checkpoint import FOLDER, LAST
from savimae.training.outputs import CLASSIFY, MULTILABEL, REGRESS
from savimae.training.scores import MEASURED


def sentence(run: Run) -> str:
    """What this is."""
    settings, last = run.settings, run.steps[-1]
    done = int(last["step"])
    how_far = f"{done:,} steps ({last['epoch']:.4g} epochs)"
    if done < run.total_steps:
        how_far = f"{done:,} of {run.total_steps:,} steps so far ({last['epoch']:.4g} epochs)"
    size = f"{run.shape.encoder_dim} wide, {run.shape.encoder_depth} blocks deep"
    if run.kind == CLASSIFIER:
        start = "an untrained encoder" if settings.get("untrained") else "the encoder of "
        start += "" if settings.get("untrained") else shown(str(settings.get("checkpoint")))
        tested = run.number_of_videos("test_videos")
        what = {
            CLASSIFY: "A classifier of videos", MULTILABEL: "A classifier of labels of videos",
            REGRESS: "A model that predicts numbers of videos",
        }[run.task]  # fmt: skip
        return (
            f"{what} ({size}), fine-tuned from {start} on "
            f"{run.number_of_videos()} labelled videos in {how_far}, and tested on {tested} others."
        )
    visible = last.get("visible_tokens")
    sees = "" if visible is None else (
        f" Of the {run.shape.n_tokens:,} tokens of a clip its encoder sees about {visible:.0f} and "
        f"learns to reconstruct {_hidden(settings)}."
    )  # fmt: skip
    return (
        f"A video encoder ({size}), pretrained without labels on {run.number_of_videos()} videos "
        f"in {how_far}.{sees}"
    )


def _hidden(settings: dict[str, Any]) -> str:
    what = "those that are hidden"
    if settings.get("decode") == "salient":
        what = "those that are hidden and salient"
    elif settings.get("decoder_mask_ratio"):
        what = "a part of those that are hidden"
    kind = settings.get("mask_type")
    if "mask_ratio" in settings:
        return f"{what} ({kind} masks hide {settings['mask_ratio']:.0%})"
    salient, other = settings.get("salient_mask_ratio"), settings.get("nonsalient_mask_ratio")
    if salient is None or other is None:
        return what
    return f"{what} ({kind} masks hide {salient:.0%} of the salient, {other:.0%} of the others)"


def curves(run: Run, chance: float | None) -> Html:
    """Charts of a run.

    Args:
        chance: top-1 of naming the most common class always; None where it is not known.
    """
    steps = run.steps
    x = [line["step"] for line in steps]

    def line(name: str, key: str, color: int = 0, dash: int = 0) -> Line:
        return Line(name, x, [each.get(key) for each in steps], color, dash)

    lines, level = [line("loss", "loss")], None
    caption = "Mean over the tokens since the line before in the log."
    if run.kind == PRETRAINING:
        value = loss_of_means(run.shape)
        if value is not None:
            level = Level("means alone", value)
            caption += (
                f" “Means alone”, {value:.3f}, is the loss of predicting nothing but each patch's "
                "mean (less where patches are flat): a model that stays there has learned nothing."
            )
        if any(each.get("loss_other") is not None for each in steps):
            lines += [line("salient tokens", "loss_salient", 1, 1),
                      line("other tokens", "loss_other", 2, 2)]  # fmt: skip
    else:
        caption = "Mean over the clips since the line before in the log."
    charts = [line_chart(lines, "step", "loss", caption, level, from_zero=True)]
    if run.kind == CLASSIFIER:
        measured = MEASURED[run.task]
        training, score = measured.training, measured.scores[0]
        scores = [line("training clips", training.name)]
        if run.tests:
            tested = [each["step"] for each in run.tests]
            values = [each.get(f"test_{score.name}") for each in run.tests]
            scores.append(Line("test videos", tested, values, 1))
        guessed = None if chance is None else Level("most common class", chance)
        words = "Clips and videos whose class is named first."
        if run.task != CLASSIFY:
            words = f"{measured.of_what[0].upper()}{measured.of_what[1:]}."
        charts.append(line_chart(scores, "step", score.words, words, guessed, from_zero=True))
    charts.append(
        line_chart([line("learning rate", "lr")], "step", "learning rate", "After each step.",
                   from_zero=True)
    )  # fmt: skip
    lowest = min(steps, key=lambda each: each["loss"])
    first, last = steps[0], steps[-1]
    words = (
        f"From {first['loss']:.4f} at step {first['step']:,.0f} to {last['loss']:.4f} at step "
        f"{last['step']:,.0f}; the lowest is {lowest['loss']:.4f} at step {lowest['step']:,.0f}."
    )
    return join(paragraphs(words), element("div", *charts, class_="side"))


def speed(run: Run) -> Html:
    """Clips a second and waiting, and when and where the run was started."""
    x = [line["step"] for line in run.steps]
    rates = Line("clips/s", x, [line.get("clips_per_s") for line in run.steps])
    waits = [line.get("data_wait_share") for line in run.steps]
    shares = Line("waiting", x, [None if each is None else 100 * each for each in waits])
    charts = [
        line_chart([rates], "step", "clips a second", "Of all processes.",
                   from_zero=True),
        line_chart([shares], "step", "waiting, % of the time", "While training waits, videos "
                   "are decoded; more --workers may help where this is much.", from_zero=True),
    ]  # fmt: skip
    rows = [["", "median", "lowest", "highest"]]
    for title, key, form in (
        ("clips a second", "clips_per_s", "{:.2f}"),
        ("waiting for videos", "data_wait_share", "{:.2%}"),
        ("10^9 operations a second", "gflop_per_s", "{:.1f}"),
        ("memory of the first process, GiB", "memory_gib", "{:.2f}"),
    ):
        values = [line[key] for line in run.steps if line.get(key) is not None]
        if values:
            numbers = (statistics.median(values), min(values), max(values))
            rows.append([title, *(form.format(each) for each in numbers)])
    replaced = sum(line.get("replaced_videos") or 0 for line in run.steps)
    broken = (
        note(f"{replaced:.0f} times a video that could not be decoded was replaced by another one.")
        if replaced
        else ""
    )
    return join(
        element("div", *charts, class_="side"), table("Over the lines of the log", rows), broken,
        table("Starts", _start_rows(run)),
    )  # fmt: skip


def _start_rows(run: Run) -> list[list[str]]:
    rows = [["started (UTC)", "at step", "processes", "clips a step", "device", "threads",
             "loading", "savimae", "torch"]]  # fmt: skip
    for start in run.starts:
        versions = start.get("versions", {})
        batch, times = start.get("batch_size", 1), start.get("accumulate", 1)
        processes = start.get("processes", 1)
        rows.append([
            clock(start.get("time", 0)), count(start.get("step", 0)), str(processes),
            str(batch * times * processes), str(start.get("device", "")),
            str(start.get("threads", "")), str(start.get("workers", "")),
            str(versions.get("savimae", "")), str(versions.get("torch", "")),
        ])  # fmt: skip
    return rows


def data(run: Run, looked: Html | None) -> Html:
    """Where the videos are and what a clip is, then what was found by looking at them."""
    settings, shape = run.settings, run.shape
    rate = settings.get("sampling_rate")
    gray = "gray " if shape.channels == GRAY else ""
    clip = (
        f"A clip has {shape.num_frames} {gray}frames, {rate} apart, resized to "
        f"{size_words(shape.input_size)}: {shape.n_tokens:,} tokens of "
        f"{shape.tubelet_size} frames x {shape.patch_size} x {shape.patch_size} pixels."
    )
    source = f" in {shown(str(run.starts[-1].get('data')))}" if run.starts else ""
    videos = f"{run.number_of_videos()} videos{source}."
    if run.kind == CLASSIFIER:
        test = f" in {shown(str(run.starts[-1].get('test')))}" if run.starts else ""
        videos = (
            f"{run.number_of_videos()} videos to learn from{source}; "
            f"{run.number_of_videos('test_videos')} to test on{test}."
        )
    rest = looked if looked is not None else note(
        f"`savimae report {shlex.quote(run.name)}` looks at the videos: classes, salient patches, "
        "examples."
    )  # fmt: skip
    return join(paragraphs(f"{videos} {clip}"), rest)


def checkpoints(run: Run) -> Html:
    """The files of weights."""
    folder = os.path.join(run.folder, FOLDER)
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    names = [name for name in names if name.endswith(".pt") and not name.startswith(".")]
    if not names:
        return note("There are none in this folder.")
    last = os.path.join(folder, LAST)
    rows = [["file", "MiB", "written (UTC)"]]
    links = [name for name in names if name != LAST and _is_same(os.path.join(folder, name), last)]
    for name in names:
        if name == LAST and links:
            continue
        path = os.path.join(folder, name)
        status = os.stat(path)
        title = f"{name} = {LAST}" if name in links else name
        rows.append([title, f"{status.st_size / 2**20:.1f}", clock(status.st_mtime)])
    caption = f"In {shown(folder)}; every command that takes weights takes them"
    return table(caption, rows)


def _is_same(path: str, other: str) -> bool:
    return os.path.exists(other) and os.path.samefile(path, other)


def settings_table(settings: dict[str, Any], caption: str) -> Html:
    """Settings as config.json holds them."""
    rows = [["setting", "value"]]
    for key, value in settings.items():
        rows.append([key, value if isinstance(value, str) else json.dumps(value)])
    return table(caption, rows, n_left=2, wrapped=True)


def commands_of(run: Run) -> list[Html]:
    """The command lines that a run was started and resumed with, each once."""
    parts: list[Html] = []
    told: list[str] = []
    for start in run.starts:
        command = start.get("command")
        if not isinstance(command, str) or command in told:
            continue
        told.append(command)
        folder = shown(shlex.quote(str(start.get("folder", ""))))
        parts.append(element("pre", f"cd {folder}", Html("\n"), command))
        if start.get("processes", 1) > 1:
            parts.append(note(
                f"This was done by {start['processes']} processes: under srun, or `torchrun "
                "--nproc-per-node N -m savimae` instead of `savimae`."
            ))  # fmt: skip
    if not told:
        parts.append(note(
            "The log does not hold the command of this run, as those of older versions. The "
            "settings say what it did."
        ))  # fmt: skip
    return parts
