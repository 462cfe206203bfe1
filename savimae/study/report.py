"""What a study leaves: a table, `study.json`, `study.md` in plain words, and a picture."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

from savimae.study.cell import UNTRAINED
from savimae.study.picture import draw_study
from savimae.study.plan import Study, own_options
from savimae.study.summary import Column, Difference, Summary, collect
from savimae.system.errors import shown
from savimae.system.files import atomic_file, write_json
from savimae.system.tables import table

JSON, TEXT, PICTURE = "study.json", "study.md", "study.png"


def write_report(study: Study) -> tuple[Summary, list[str]]:
    """Collect what is done and write it down; returns the summary and the files' paths.

    Raises:
        SavimaeError: as `collect`, or matplotlib is not installed.
    """
    summary = collect(study)
    paths = [os.path.join(study.out, name) for name in (JSON, TEXT, PICTURE)]
    write_json(paths[0], as_json(study, summary))
    with atomic_file(paths[1]) as file:
        file.write(as_text(study, summary).encode("utf-8", "replace"))
    draw_study(summary, paths[2])
    return summary, paths


def summary_table(summary: Summary) -> str:
    """A row for each way and baseline, a column for each way to judge: mean ± deviation."""
    return table(_table_rows(summary))


def _table_rows(summary: Summary) -> list[list[str]]:
    rows = [["", "seeds", *(column.words for column in summary.columns)]]
    for row in summary.rows:
        spreads = [summary.spread(row, column) for column in summary.columns]
        counts = sorted({spread.n for spread in spreads if spread is not None})
        cells = ["-" if spread is None else spread.words for spread in spreads]
        rows.append([row, "/".join(map(str, counts)) or "0", *cells])
    chance = f"{summary.chance:.3f}"
    rows.append(["most common class", "", *(chance for _ in summary.columns)])
    return rows


def as_json(study: Study, summary: Summary) -> dict[str, Any]:
    """Everything, with numbers as they are."""
    return {
        "settings": {**study.settings(), "seeds": study.seeds},
        "chance": summary.chance,
        "n_train": summary.n_train,
        "n_test": summary.n_test,
        "missing": summary.missing,
        "scores": [
            {
                "row": row,
                "measure": column.measure,
                "labels": column.labels,
                "top1": {str(seed): value for seed, value in summary.top1[row, column].items()},
                **dataclasses.asdict(spread),
            }
            for row in summary.rows
            for column in summary.columns
            if (spread := summary.spread(row, column)) is not None
        ],
        "differences": [
            {
                "row": each.row, "other": each.other,
                "measure": each.column.measure, "labels": each.column.labels,
                "mean": each.mean, "interval": each.interval, "n": each.n,
            }
            for each in differences(summary)
        ],
        "cells": summary.cells,
    }  # fmt: skip


def differences(summary: Summary) -> Iterator[Difference]:
    """Of every way from what it is compared with: the first way, and the baselines."""
    for column in summary.columns:
        for way in summary.ways:
            for other in (summary.ways[0], *summary.baselines):
                found = summary.difference(way, other, column) if other != way else None
                if found is not None:
                    yield found


# ------------------------------------------------------------------------------------- words


def as_text(study: Study, summary: Summary) -> str:
    """Markdown: what was done, the table, the differences, and how to read them."""
    lines = ["# Ways of pretraining at equal cost", "", *_what_was_done(study, summary), ""]
    lines += ["## Top-1 on the test videos", "", "Mean ± standard deviation over seeds.", ""]
    lines += _markdown(_table_rows(summary))
    lines += ["", f"![dots: seeds; bars: mean ± standard deviation]({PICTURE})", ""]
    lines += ["## What each way cost", "", *_markdown(_cost_rows(summary)), ""]
    lines += ["## Differences", "", *_difference_lines(summary), ""]
    lines += ["## In words", "", *reading(summary), ""]
    lines += ["## What this does not say", "", *_limits(summary), ""]
    return "\n".join(lines)


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _what_was_done(study: Study, summary: Summary) -> list[str]:
    of_all = {way.name: own_options(way.config) for way in study.ways}
    first, *others = of_all.values()
    common = [each for each in first if all(each in other for other in others)]
    lines = [
        f"Each of {len(study.ways)} ways, with {study.seeds} seeds, is pretrained for "
        f"{study.budget.words} on `{shown(study.data)}`. Its frozen features are then judged with "
        f"{summary.n_train} labelled videos (`{shown(study.train)}`) on {summary.n_test} others "
        f"(`{shown(study.test)}`), beside an untrained encoder and raw pixels.",
        "",
        f"- Common to all ways: {_options(common) or 'the defaults of `savimae train`'}",
    ]
    for name, options in of_all.items():
        own = [each for each in options if each not in common]
        lines.append(f"- {name}: {_options(own) or 'nothing else'}")
    judges = study.judges
    layer = "the last layer" if judges.layer is None else f"layer {judges.layer}"
    lines.append(f"- Features: `--pool {judges.pool}`, {layer}")
    if study.finetuning is not None:
        tuned = own_options(study.finetuning)
        lines.append(f"- Fine-tuning: {_options(tuned) or 'the defaults of `savimae finetune`'}")
    if summary.missing:
        lines += ["", f"**Not done yet: {'; '.join(summary.missing)}.**"]
    return lines


def _options(options: Sequence[str]) -> str:
    return ", ".join(f"`{each}`" for each in options)


def _cost_rows(summary: Summary) -> list[list[str]]:
    rows = [["", "steps", "epochs", "10^12 operations", "minutes", "loss", "visible tokens"]]
    for way in summary.ways:
        if not summary.of_way(way, "steps"):
            continue

        def mean(name: str, scale: float = 1.0, of: str = way) -> float:
            values = summary.of_way(of, name)
            return sum(values) / len(values) * scale

        rows.append([
            way, f"{mean('steps'):.0f}", f"{mean('epochs'):.1f}",
            f"{mean('flops', 1e-12):.1f}", f"{mean('seconds', 1 / 60):.1f}",
            f"{mean('loss'):.3f}", f"{mean('visible_tokens'):.1f}",
        ])  # fmt: skip
    return rows


def _difference_lines(summary: Summary) -> list[str]:
    found = list(differences(summary))
    lines = ["Paired by seed; in brackets where their mean is with 95 % (Student's t).", ""]
    others = list(dict.fromkeys(each.other for each in found))
    for other in others:
        words = {(each.row, each.column): each.words for each in found if each.other == other}
        rows = [[f"less {other}", *(column.words for column in summary.columns)]]
        for way in dict.fromkeys(row for row, _ in words):
            rows.append([way, *(words.get((way, column), "-") for column in summary.columns)])
        lines += [*_markdown(rows), ""]
    return lines[:-1]


def reading(summary: Summary) -> list[str]:
    """What the numbers say, in sentences; a difference counts if its interval leaves zero out."""
    return [f"- {_reading_of(summary, column)}" for column in summary.columns]


def _reading_of(summary: Summary, column: Column) -> str:
    ways = [way for way in summary.ways if summary.spread(way, column) is not None]
    if not ways:
        return f"**{column.words}**: nothing yet."

    def mean(row: str) -> float:
        spread = summary.spread(row, column)
        return -1.0 if spread is None else spread.mean

    best = max(ways, key=mean)
    parts = [f"**{column.words}**: the highest of the ways is {best}, {mean(best):.3f}."]
    for baseline in summary.baselines:
        found = summary.difference(best, baseline, column)
        if found is not None:
            what = "an untrained encoder" if baseline == UNTRAINED else baseline
            parts.append(f"{_against(found, what, mean(baseline))}.")
    first = ways[0]
    compared = [summary.difference(way, first, column) for way in ways[1:]]
    clear = [each for each in compared if each is not None and each.is_clear]
    if clear:
        listed = "; ".join(f"{each.row} {each.words}" for each in clear)
        parts.append(f"Different from {first}: {listed}.")
    elif compared:
        parts.append(f"No way differs clearly from {first}.")
    return " ".join(parts)


def _against(found: Difference, what: str, mean: float) -> str:
    if found.interval is None:
        return f"{what.capitalize()} has {mean:.3f}; one seed does not say how much that varies"
    if not found.is_clear:
        return f"It does not differ clearly from {what}, {mean:.3f}: {found.words}"
    side = "above" if found.mean > 0 else "below"
    return f"It is {side} {what}, {mean:.3f}, by {abs(found.mean):.3f}: {found.words}"


def _limits(summary: Summary) -> list[str]:
    error = math.sqrt(0.25 / summary.n_test)
    n = sum(1 for _ in differences(summary))
    return [
        "- The intervals are about seeds (weights, masks, order), with the same videos. Of a test "
        f"of {summary.n_test} videos a top-1 near one half has a standard error of {error:.3f} of "
        "its own, which all ways share.",
        f"- Of {n} differences without any truth in them about {max(1, round(n * 0.05))} would "
        "look clear.",
        "- Every way has the same budget and learning rate: another one may win with more, or with "
        "a rate of its own.",
    ]
