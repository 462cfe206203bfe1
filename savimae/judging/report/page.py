"""The report of a run: one page with all that is known of it, from its files and from results.

What takes decoding videos or running the model is in `look`; all else is read from JSON and logs,
and takes milliseconds.
"""

from __future__ import annotations

import os
import shlex
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from savimae import __version__
from savimae.judging.report.about import (
    checkpoints,
    commands_of,
    curves,
    data,
    sentence,
    settings_table,
    speed,
)
from savimae.judging.report.html import (
    Html,
    KeyFigure,
    Section,
    element,
    join,
    key_figures,
    note,
    page,
    paragraphs,
)
from savimae.judging.report.of_results import (
    OURS,
    against_chance,
    chance_of,
    labels_words,
    reconstructed,
    scores_of,
    sections_of,
    task_of,
)
from savimae.judging.report.results import (
    PROBE,
    RECONSTRUCTIONS,
    TUNED,
    Result,
    checked,
    find_results,
    own_test,
)
from savimae.judging.report.run import (
    CLASSIFIER,
    DAMAGED,
    PRETRAINING,
    Run,
    count,
    loss_of_means,
    name_of,
    reading,
)
from savimae.system.errors import shown
from savimae.system.files import atomic_file
from savimae.system.progress import duration
from savimae.training.log import LOG
from savimae.training.outputs import CLASSIFY
from savimae.training.scores import MEASURED, form

REPORT = "report.html"
IN_BRIEF = ("map", "f1_micro", "mae", "r2")  # scores of labels and numbers that come first


class Looked(NamedTuple):
    """What was found out by decoding videos and running the model."""

    data: Html
    reconstructions: Html


def write_run_report(run: Run, results: Sequence[Result], out: str, looked: Looked | None) -> None:
    """Write the report of a run as one page.

    Args:
        out: the file.
        looked: None: nothing was looked at, the page says how that is done.

    Raises:
        SavimaeError: files of the run, or a result, that are not as commands write them.
    """
    with reading(run.folder, DAMAGED):
        text = run_page(run, results, looked)
    write_page(out, text)


def write_page(out: str, text: str) -> None:
    """Write a page, atomically."""
    with atomic_file(out) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def report_at_end(folder: str) -> str | None:
    """Write RUN/report.html after training, from files alone; returns it.

    None if the one that is there is newer than the log: nothing was trained since.

    Raises:
        SavimaeError: as `write_run_report`.
    """
    out, log = os.path.join(folder, REPORT), os.path.join(folder, LOG)
    if os.path.exists(out) and os.stat(out).st_mtime_ns > os.stat(log).st_mtime_ns:
        return None
    write_run_report(Run.read(folder), find_results(folder, []), out, None)
    return out


def run_page(run: Run, results: Sequence[Result], looked: Looked | None) -> str:
    """The whole page of `write_run_report`."""
    own = own_test(run)
    keys = key_figures(_keys(run, results, own))
    results = [*([] if own is None else [own]), *results]
    found = sections_of(results)
    chance = None if own is None else checked(own, _chance)
    caption = "As config.json holds them; a resumed run must repeat them"
    sections = [
        _reconstructions(results, looked),
        *(each for each in found if each.anchor == "test"),
        Section("loss", "Loss", curves(run, chance)),
        *(each for each in found if each.anchor != "test"),
        Section("data", "Data", data(run, looked.data if looked else None)),
        Section("speed", "Speed and waiting", speed(run)),
        Section("checkpoints", "Checkpoints", checkpoints(run)),
        Section("settings", "Settings", settings_table(run.settings, caption)),
        Section("commands", "Commands that repeat it", _commands(run, results, looked)),
    ]
    others = [each for each in results if _is_of_another(each, run)]
    names = ", ".join(f"{name_of(each.path)} is of {shown(str(each.model))}" for each in others)
    warning = note(f"By what they record, results here are of other models: {names}.")
    lead = join(element("p", sentence(run), class_="lead"), keys, warning if others else Html(""))
    sections = [each for each in sections if each.content]
    return page(run.name, lead, sections, footer())


def footer() -> str:
    """Who wrote the page, and when."""
    now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    return f"Written by savimae {__version__} on {now} UTC. Nothing here comes from the network."


def _keys(run: Run, results: Sequence[Result], own: Result | None) -> list[KeyFigure]:
    last = run.steps[-1]
    keys = [] if own is None else checked(own, _test_keys)
    level = loss_of_means(run.shape) if run.kind == PRETRAINING else None
    remark = "" if level is None else f"{last['loss'] / level:.0%} of “means alone” ({level:.3f})"
    if run.kind == CLASSIFIER:
        training = MEASURED[run.task].training
        if last.get(training.name) is not None:
            value = form(last[training.name])
            remark = f"of training clips, whose {training.words} is {value}"
    keys.append(KeyFigure("Loss now", f"{last['loss']:.3f}", remark))
    ours = [each for each in results if not _is_of_another(each, run)]
    best = _best(ours) if run.kind == PRETRAINING else None
    if best is not None:
        keys.append(best)
    done = int(last["step"])
    remark = f"all; {last['epoch']:.4g} epochs"
    if done < run.total_steps:
        remark = f"of {run.total_steps:,}; {last['epoch']:.4g} epochs"
    keys.append(KeyFigure("Steps", f"{done:,}", remark))
    rates = [line["clips_per_s"] for line in run.steps if line.get("clips_per_s") is not None]
    if rates:
        waits = [line["data_wait_share"] for line in run.steps if line.get("data_wait_share")]
        waiting = f"{statistics.fmean(waits) if waits else 0:.1%} of the time waiting for videos"
        keys.append(KeyFigure("Clips a second", f"{statistics.median(rates):.3g}", waiting))
    keys.append(KeyFigure("Time of training", duration(run.seconds), _machine(run)))
    return keys


def _is_of_another(result: Result, run: Run) -> bool:
    """Whether a result names a model that is not called as this run is."""
    return result.model not in (None, run.name)


def _chance(result: Result) -> float | None:
    """Top-1 of naming the most common class of a test; None of labels and numbers."""
    test = result.content
    return chance_of(test["confusion"]) if task_of(test) == CLASSIFY else None


def _test_keys(result: Result) -> list[KeyFigure]:
    test = result.content
    if task_of(test) != CLASSIFY:
        scores = [each for each in MEASURED[task_of(test)].scores if each.name in IN_BRIEF]
        known = [each for each in scores if test[each.name] is not None]
        remark = f"{count(test['videos'])} videos"
        return [
            KeyFigure(f"Test {each.words}", form(test[each.name]), remark) for each in known
        ]  # fmt: skip
    return [
        KeyFigure("Test top-1", f"{test['top1']:.3f}", against_chance(test)),
        KeyFigure("Test top-5", f"{test['top5']:.3f}", f"{count(test['videos'])} videos"),
    ]


def _machine(run: Run) -> str:
    if not run.starts:
        return ""
    start = run.starts[-1]
    processes, threads = start.get("processes", 1), start.get("threads")
    of_each = "" if processes == 1 else f"{processes} processes, each "
    return f"{of_each}{threads} {'thread' if threads == 1 else 'threads'}, {start.get('device')}"


def _best(results: Sequence[Result]) -> KeyFigure | None:
    """The highest top-1 on labelled videos, with what it is to be compared with."""
    found: list[tuple[float, str]] = []
    for each in results:
        if each.kind == TUNED and each.content.tests and each.content.task == CLASSIFY:
            top1 = each.content.tests[-1]["test_top1"]
            found.append((top1, f"fine-tuned: {name_of(each.path)}"))
        elif each.kind == PROBE:
            found += checked(each, _probed)
    if not found:
        return None
    top1, words = max(found)
    return KeyFigure("Best top-1 with labels", f"{top1:.3f}", words)


def _probed(result: Result) -> list[tuple[float, str]]:
    """Each top-1 of the encoder in a probe, and in words how others do in its place."""
    found = []
    for (classifier, labels), of_features in scores_of(result.content).items():
        others = [f"{kind} {score['top1']:.3f}" for kind, score in of_features.items()
                  if kind != OURS]  # fmt: skip
        words = f"{labels_words(classifier, labels)}; {', '.join(others) or 'no baselines'}"
        if OURS in of_features:
            found.append((float(of_features[OURS]["top1"]), words))
    return found


def _reconstructions(results: Sequence[Result], looked: Looked | None) -> Section:
    parts = [looked.reconstructions] if looked else []
    for each in results:
        if each.kind == RECONSTRUCTIONS:
            parts.append(checked(each, reconstructed))
    return Section("reconstructions", "What it makes of hidden patches", join(*parts))


def _commands(run: Run, results: Sequence[Result], looked: Looked | None) -> Html:
    parts = commands_of(run)
    given = [each.path for each in results if not _is_inside(each.path, run.folder)]
    paths = [shown(shlex.quote(os.path.abspath(each))) for each in (run.folder, *given)]
    parts.append(paragraphs("This page again:" if looked else "This page with pictures:"))
    parts.append(element("pre", f"savimae report {' '.join(dict.fromkeys(paths))}"))
    return join(*parts)


def _is_inside(path: str, folder: str) -> bool:
    ours = os.path.realpath(folder)
    return os.path.commonpath([ours, os.path.realpath(path)]) == ours
