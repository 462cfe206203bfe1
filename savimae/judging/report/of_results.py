"""What results say, as parts of a page."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from savimae.judging.report.about import curves, sentence
from savimae.judging.report.chart import scatter_chart
from savimae.judging.report.html import (
    MOST_ROWS,
    Cell,
    Html,
    Section,
    bar,
    element,
    figure,
    folded,
    join,
    matrix,
    note,
    paragraphs,
    picture,
    table,
)
from savimae.judging.report.results import (
    ATTENTION,
    EVALUATION,
    NEIGHBORS,
    PROBE,
    TEST,
    TUNED,
    Result,
    checked,
    own_test,
)
from savimae.judging.report.run import Run, count, name_of
from savimae.system.errors import SavimaeError, one_line, shown
from savimae.training.outputs import CLASSIFY, MULTILABEL, REGRESS
from savimae.training.scores import MEASURED, form, score_words

OURS = "pretrained"  # features of the encoder, in a probe
MOST_IN_MATRIX = 30  # classes of a confusion matrix; of more the most frequent mistakes are listed
MISTAKES = 15
MOST_PICTURES = 4  # of a result
WIDEST_PX = 1600  # pictures of results are made no wider
PIXELS_IN_ALL = 10**8  # of a picture that is taken into the page


def sections_of(results: Sequence[Result]) -> list[Section]:
    """A section for each kind of result that there is. Raises SavimaeError as `checked`."""
    kinds: tuple[tuple[str, str, str, Callable[[Result], Html]], ...] = (
        (TEST, "test", "Test", _test),
        (PROBE, "features", "What its features are worth", _probe),
        (TUNED, "classifiers", "Classifiers fine-tuned from it", _tuned),
        (EVALUATION, "evaluation", "Reconstruction losses", _evaluated),
        (NEIGHBORS, "neighbors", "Which videos it finds alike", _neighbors),
        (ATTENTION, "attention", "What it looks at", _attention),
    )
    sections = []
    for kind, anchor, title, make in kinds:
        of_kind = [each for each in results if each.kind == kind]
        if of_kind:
            parts = []
            for each in of_kind:
                parts.append(checked(each, make))
            sections.append(Section(anchor, title, join(*parts)))
    return sections


def _titled(result: Result, words: str) -> Html:
    return join(element("h3", name_of(result.path)), paragraphs(words) if words else "")


def labels_words(classifier: str, labels: int | None) -> str:
    """Such as "linear, 5 labels a class"."""
    return classifier if labels is None else f"{classifier}, {labels} labels a class"


def scores_of(content: dict[str, Any]) -> dict[tuple[str, int | None], dict[str, dict[str, Any]]]:
    """Scores of a probe by classifier and number of labels, then by features."""
    found: dict[tuple[str, int | None], dict[str, dict[str, Any]]] = {}
    for score in content["scores"]:
        key = (str(score["classifier"]), score.get("labels"))
        found.setdefault(key, {})[str(score["features"])] = score
    return found


def _probe(result: Result) -> Html:
    content = result.content
    scores = scores_of(content)
    kinds = list(dict.fromkeys(kind for each in scores.values() for kind in each))
    rows: list[list[str | Cell]] = [["top-1", *kinds]]
    details = [["features", "classifier", "top-1", "top-5", "chosen"]]
    for (classifier, labels), of_kind in scores.items():
        title = labels_words(classifier, labels)
        cells = [_shaded(of_kind[kind]) if kind in of_kind else "-" for kind in kinds]
        rows.append([title, *cells])
        for kind, score in of_kind.items():
            details.append([kind, title, _top1(score), f"{score['top5']:.3f}", score["detail"]])
    chance = f"{content['chance']:.3f}"
    rows.append(["most common class", *(chance for _ in kinds)])
    best = max(
        (score for score in content["scores"] if score["features"] == OURS),
        key=lambda score: score["top1"],
    )
    whose = f" of {shown(str(content['checkpoint']))}" if "checkpoint" in content else ""
    words = (
        f"Classifiers on frozen features{whose}: {count(content['n_train'])} videos to learn "
        f"from, {count(content['n_test'])} to test on, {len(content['classes'])} classes."
    )
    if content["shared"]:
        words += f" Both share {len(content['shared'])} recordings, which leaks."
    if content["overlap"]:
        words += f" {content['overlap']} test videos are training videos too."
    title = f"{best['features']} features, {best['classifier']}, top-1 {best['top1']:.3f}"
    baseline = (
        ""
        if len(kinds) > 1
        else note("Nothing stands beside it: without an untrained encoder and raw pixels such "
                  "numbers say little (`savimae probe` with --baselines).")
    )  # fmt: skip
    return join(
        _titled(result, words),
        table("Share of test videos whose class is named first", rows, classes=_last_quiet(rows)),
        baseline,
        folded("Top-5, and what was chosen", table("All scores", details, n_left=2)),
        folded(f"Confusion: {title}", _confusion(best["confusion"], content["classes"], title)),
    )


def _last_quiet(rows: Sequence[Any]) -> list[str]:
    return [""] * (len(rows) - 2) + ["quiet"]


def _top1(score: dict[str, Any]) -> str:
    draws = score.get("draws") or []
    spread = f" ± {float(np.std(draws, ddof=1)):.3f}" if len(draws) > 1 else ""
    return f"{score['top1']:.3f}{spread}"


def _shaded(score: dict[str, Any]) -> Cell:
    return Cell(_top1(score), float(score["top1"]) * 0.7)


def _confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Html:
    """The matrix of few classes; of many, and beside it, the most frequent mistakes."""
    names = [*map(str, classes), *map(str, range(len(classes), len(confusion)))][: len(confusion)]
    mistakes = sorted(
        ((n_videos, true, predicted) for true, row in enumerate(confusion)
         for predicted, n_videos in enumerate(row) if n_videos and true != predicted),
        key=lambda each: (-each[0], each[1:]),
    )[:MISTAKES]  # fmt: skip
    rows = [["true class", "taken for", "videos", "of its videos"]]
    for n_videos, true, predicted in mistakes:
        share = n_videos / max(sum(confusion[true]), 1)
        rows.append([names[true], names[predicted], str(n_videos), f"{share:.0%}"])
    listed = table("The most frequent mistakes", rows, n_left=2) if mistakes else Html("")
    if len(confusion) > MOST_IN_MATRIX:
        return listed
    caption = f"Rows: true classes; columns: what was named. {title}"
    return element("div", matrix(caption, names, confusion), listed, class_="side")


def task_of(test: dict[str, Any]) -> Any:
    """The task that a test is of."""
    return test.get("task", CLASSIFY)


def _test(result: Result) -> Html:
    test = result.content
    who = f" of {shown(str(test['classifier']))}" if "classifier" in test else ""
    if task_of(test) != CLASSIFY:
        words = f"Test{who} on {count(test['videos'])} videos: {score_words(test, task_of(test))}."
        return join(_titled(result, f"{words} {_against_nothing(test)}"), _parts_of(test))
    words = (
        f"Test{who} on {count(test['videos'])} videos: top-1 {test['top1']:.3f}, top-5 "
        f"{test['top5']:.3f}. Naming the most common class always would be right for "
        f"{chance_of(test['confusion']):.3f} of them."
    )
    title = f"top-1 {test['top1']:.3f}"
    return join(
        _titled(result, words), _of_classes(test),
        element("h3", "Confusion"), _confusion(test["confusion"], test["classes"], title),
    )  # fmt: skip


def _against_nothing(test: dict[str, Any]) -> str:
    """What the scores of labels or numbers are to be compared with, in words."""
    if task_of(test) == MULTILABEL:
        shares = [each["videos"] / test["videos"] for each in test["of_label"].values()]
        guess = float(np.mean([share for share in shares if share]))
        return f"Ranking videos at random would get a mAP of about {guess:.3f}."
    return "R² is 0 for the mean of the test videos, 1 for what is right."


def _parts_of(test: dict[str, Any]) -> Html:
    """A table of the labels, the best first, or of the numbers, with what is predicted of them."""
    if task_of(test) == MULTILABEL:
        rows = [["label", "videos", "average precision", "by chance", "F1", ""]]
        of_label = test["of_label"].items()
        for name, each in sorted(
            of_label, key=lambda it: -1 if it[1]["ap"] is None else -it[1]["ap"]
        ):
            n = each["videos"]
            ap = "-" if each["ap"] is None else f"{each['ap']:.3f}"
            f1 = "-" if each["f1"] is None else f"{each['f1']:.3f}"
            shares = f"{n / test['videos']:.3f}"
            rows.append([str(name), str(n), ap, shares, f1, bar(each["ap"] or 0.0)])
        listed = table("Average precision, and F1 of what has a probability of at least 1/2", rows)
        return listed if len(rows) <= MOST_ROWS else folded(f"{len(rows) - 1} labels", listed)
    scores = MEASURED[REGRESS].scores
    rows = [["number", *(score.words for score in scores), "true values"]]
    charts = []
    for k, (name, each) in enumerate(test["of_value"].items()):
        values = [row[k] for row in test["true"]]
        cells = ["-" if each[s.name] is None else form(each[s.name]) for s in scores]
        rows.append([str(name), *cells, f"{min(values):.4g} to {max(values):.4g}"])
        if k < MOST_PICTURES:
            charts.append(scatter_chart(values, [row[k] for row in test["predicted"]], str(name)))
    errors = table("Errors in the units of the list", rows)
    return join(element("div", *charts, class_="side"), errors)


def against_chance(test: dict[str, Any]) -> str:
    """What a top-1 is to be compared with, in words."""
    return f"{chance_of(test['confusion']):.3f} by naming the most common class"


def chance_of(confusion: Sequence[Sequence[int]]) -> float:
    """Top-1 of naming the most common class of the test always."""
    totals = [sum(row) for row in confusion]
    return max(totals) / max(sum(totals), 1)


def _of_classes(test: dict[str, Any]) -> Html:
    """Top-1 of each class that the test has, the best first."""
    found = [
        (row[number] / sum(row), name, sum(row))
        for number, (name, row) in enumerate(zip(test["classes"], test["confusion"], strict=True))
        if sum(row)
    ]
    rows: list[list[str]] = [["class", "videos", "top-1", ""]]
    for share, name, n_videos in sorted(found, key=lambda each: -each[0]):
        rows.append([str(name), str(n_videos), f"{share:.3f}", bar(share)])
    listed = table("Top-1 of each class", rows)
    return listed if len(rows) <= MOST_ROWS else folded(f"{len(rows) - 1} classes", listed)


def _tuned(result: Result) -> Html:
    run: Run = result.content
    test = own_test(run)
    parts = [_titled(result, sentence(run))]
    chance = None
    if test is None:
        parts.append(note("It has not been tested yet."))
    elif task_of(test.content) != CLASSIFY:
        content = test.content
        words = score_words(content, task_of(content))
        parts.append(paragraphs(
            f"Test on {count(content['videos'])} videos: {words}. {_against_nothing(content)}"
        ))  # fmt: skip
        parts.append(folded("Each of them", _parts_of(content)))
    else:
        content = test.content
        chance = chance_of(content["confusion"])
        title = f"top-1 {content['top1']:.3f}"
        parts.append(paragraphs(
            f"Test on {count(content['videos'])} videos: {title}, top-5 {content['top5']:.3f}; "
            f"{against_chance(content)}."
        ))  # fmt: skip
        confusion = _confusion(content["confusion"], content["classes"], title)
        parts.append(folded("Classes and confusion", join(_of_classes(content), confusion)))
    parts.append(folded("Its loss", curves(run, chance)))
    return join(*parts)


def _evaluated(result: Result) -> Html:
    rows = [["model", "mask", "clips", "visible", "loss", "salient", "other", "means alone"]]
    for each in result.content:
        losses = (each["loss"], each["loss_salient"], each["loss_other"], each["loss_of_mean"])
        rows.append([
            str(each["checkpoint"]), str(each["mask"]), count(each["clips"]),
            f"{each['visible_tokens']:.1f}",
            *("-" if loss is None else f"{loss:.4f}" for loss in losses),
        ])  # fmt: skip
    words = "The loss of training on other clips, with the same masks for all models."
    return join(_titled(result, words), table("Mean squared error over hidden tokens", rows, 2))


def _neighbors(result: Result) -> Html:
    found = result.content
    parts = []
    kinds = (("own_class", ""), ("own_class_in_other_recordings", " of other recordings"))
    for key, where in kinds:
        own = found.get(key)
        if own:
            parts.append(
                f"Of the {found['k']} nearest videos{where}, {own['share']:.1%} are of a video's "
                f"own class; by chance it would be {own['chance']:.1%} ({own['videos']:,} videos)."
            )
    pictures = [
        _file_picture(os.path.join(result.path, name), alt, caption)
        for name, alt, caption in (
            ("neighbors.png", "Rows of video frames: a query and its nearest videos",
             "Left: queries; then the videos whose features are most alike. Green: the query's "
             "class."),
            ("map.png", "A map of all videos as dots, colored by class",
             "All videos in the plane: near ones have features that are alike."),
        )
    ]  # fmt: skip
    return join(_titled(result, " ".join(parts)), *pictures)


def _attention(result: Result) -> Html:
    rows = [["video", "block", "salient share of tokens", "of attention", "correlation"]]
    for each in result.content:
        correlation = each["correlation"]
        rows.append([
            shown(os.path.basename(each["video"])), str(each["layer"]),
            f"{each['salient_share']:.1%}", f"{each['attention_on_salient']:.1%}",
            "-" if correlation is None else f"{correlation:.3f}",
        ])  # fmt: skip
    words = "Attention that tokens receive, beside what is salient."
    pictures = _folder_pictures(result.path, "Frames, salient patches, and attention in color")
    return join(_titled(result, words), *pictures, table("Attention and saliency", rows))


def reconstructed(result: Result) -> Html:
    """Pictures and numbers of `savimae reconstruct`."""
    rows = [["video", "mask", "hidden", "loss", "PSNR, dB", "means alone, dB", "SSIM"]]
    for each in result.content:
        rows.append([
            shown(os.path.basename(each["video"])), str(each["mask"]),
            f"{each['masked_share']:.0%}", f"{each['loss']:.4f}", f"{each['psnr_db']:.2f}",
            f"{each['psnr_db_of_means']:.2f}", f"{each['ssim']:.4f}",
        ])  # fmt: skip
    pictures = _folder_pictures(
        result.path, "Frames, what the encoder saw, and what the model made of the rest"
    )
    return join(
        _titled(result, ""), *pictures, table("How near the hidden pixels come", rows, n_left=2)
    )


def _folder_pictures(folder: str, alt: str) -> list[Html]:
    """The first pictures below a folder, by name."""
    paths = sorted(
        os.path.join(where, name)
        for where, _, names in os.walk(folder)
        for name in names
        if name.endswith(".png")
    )
    found = []
    for path in paths[:MOST_PICTURES]:
        caption = shown(os.path.relpath(path, folder).removesuffix(".png"))
        found.append(_file_picture(path, alt, caption))
    if len(paths) > MOST_PICTURES:
        found.append(note(f"{len(paths) - MOST_PICTURES} more in {shown(folder)}."))
    return found


def _file_picture(path: str, alt: str, caption: str) -> Html:
    """A picture from a file as a figure; nothing if it is not there.

    Raises:
        SavimaeError: it cannot be read.
    """
    if not os.path.isfile(path):
        return Html("")
    try:
        with Image.open(path) as image:
            if image.width * image.height > PIXELS_IN_ALL:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            drawn = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SavimaeError(
            f"{shown(path)}: not a picture ({one_line(error)}); delete it"
        ) from error
    if drawn.width > WIDEST_PX:
        height = max(1, round(drawn.height * WIDEST_PX / drawn.width))
        drawn = drawn.resize((WIDEST_PX, height), Image.Resampling.LANCZOS)
    return figure(picture(drawn, alt), caption)
