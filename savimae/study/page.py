"""The report of a study as one page: what `study.md` says, its picture, and the cells' losses."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from PIL import Image

from savimae.judging.report.about import commands_of, settings_table
from savimae.judging.report.chart import Level, Line, line_chart
from savimae.judging.report.html import (
    Html,
    KeyFigure,
    Section,
    element,
    escaped,
    figure,
    folded,
    join,
    key_figures,
    note,
    page,
    picture,
    table,
)
from savimae.judging.report.page import footer, write_page
from savimae.judging.report.run import Run, loss_of_means, name_of, reading
from savimae.study.cell import PRETRAINED
from savimae.study.plan import CELLS, RESULT, cell_folder
from savimae.study.report import PICTURE, TEXT
from savimae.system.errors import SavimaeError, one_line, shown
from savimae.training.log import read_lines, read_settings

WORDS = ("In words", "Top-1 on the test videos", "Differences", "What this does not say",
         "What each way cost")  # fmt: skip


def write_study_report(folder: str, out: str) -> None:
    """Write the report of a study in `folder` as one page.

    Raises:
        SavimaeError: it has no report of its own yet, or files that cannot be read.
    """
    with reading(folder, "a file of this study is not as savimae writes it"):
        text = study_page(folder)
    write_page(out, text)


def study_page(folder: str) -> str:
    """The whole page of `write_study_report`."""
    settings = read_settings(folder)
    title, parts = read_parts(os.path.join(folder, TEXT))
    ways = [str(way) for way in settings.get("ways", {})]
    seeds = {way: _seeds(folder, way) for way in ways}
    n_cells = sum(map(len, seeds.values()))
    done = sum(is_done for each in seeds.values() for _, is_done in each)
    keys = [
        KeyFigure("Ways of pretraining", str(len(ways)), ", ".join(map(shown, ways))),
        KeyFigure("Cells done", str(done), f"of {n_cells} that were begun"),
        KeyFigure("Cost of a cell", str(settings.get("budget", ""))),
    ]
    lead, *rest = parts.pop("", [Html("")])
    sections = [
        Section(_anchor(name), name, join(*parts.pop(name))) for name in WORDS if name in parts
    ]
    sections += [Section(_anchor(name), name, join(*blocks)) for name, blocks in parts.items()]
    sections.append(Section("losses", "Losses", _losses(folder, seeds)))
    about = join(*rest)
    sections.append(
        Section("settings", "Settings", join(
            about, settings_table(settings, "As config.json holds them; to go on must repeat them"),
        ))
    )  # fmt: skip
    sections.append(Section("commands", "Commands of its cells", _commands(folder, seeds)))
    whole = join(element("p", title, class_="lead"), lead, key_figures(keys))
    sections = [each for each in sections if each.content]
    return page(name_of(folder), whole, sections, footer())


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _seeds(folder: str, way: str) -> list[tuple[int, bool]]:
    """Seeds of a way whose cells were begun, and whether they are done."""
    of_way = os.path.dirname(cell_folder(folder, way, 1))
    names = os.listdir(of_way) if os.path.isdir(of_way) else []
    numbers = [match[1] for name in names if (match := re.fullmatch(r"seed-(\d+)", name))]
    return [
        (seed, os.path.isfile(os.path.join(cell_folder(folder, way, seed), RESULT)))
        for seed in sorted(map(int, numbers))
    ]


def _losses(folder: str, seeds: dict[str, list[tuple[int, bool]]]) -> Html:
    """A small chart for each way, with a line for each seed."""
    charts = []
    for way, of_way in seeds.items():
        lines, level = [], None
        for place, (seed, _) in enumerate(of_way):
            run = os.path.join(cell_folder(folder, way, seed), PRETRAINED)
            steps = [line for line in read_lines(run) if "loss" in line]
            if not steps:
                continue
            x = [line["step"] for line in steps]
            lines.append(Line(f"seed {seed}", x, [line["loss"] for line in steps], place, place))
            value = loss_of_means(Run(run, read_settings(run), []).shape)
            level = None if value is None else Level("means alone", value)
        charts.append(line_chart(lines, "step", shown(way), "Loss.", level, from_zero=True))
    if not any(charts):
        return note(f"No cell in {shown(os.path.join(folder, CELLS))} has a log yet.")
    return element("div", *charts, class_="side")


def _commands(folder: str, seeds: dict[str, list[tuple[int, bool]]]) -> Html:
    """The pretraining of each cell, as it was begun."""
    parts = []
    for way, of_way in seeds.items():
        for seed, _ in of_way:
            run = os.path.join(cell_folder(folder, way, seed), PRETRAINED)
            lines = read_lines(run)
            if lines:
                parts.append(element("h3", f"{way}, seed {seed}"))
                parts += commands_of(Run(run, {}, lines))
    return folded(f"{sum(map(len, seeds.values()))} cells", join(*parts)) if parts else Html("")


# ------------------------------------------------------------------------------- Markdown of ours


def read_parts(path: str) -> tuple[str, dict[str, list[Html]]]:
    """The title of a study's Markdown, and its blocks by heading, "" for those before the first.

    Only what `study.report` writes is known: headings, paragraphs, lists, tables, one picture.

    Raises:
        SavimaeError: there is none, or it cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        raise SavimaeError(
            f"{shown(path)}: not there yet; write it with `savimae study … --collect`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SavimaeError(f"{shown(path)}: {one_line(error)}") from error
    title, heading = "", ""
    parts: dict[str, list[Html]] = {}
    for block in re.split(r"\n{2,}", text.strip()):
        if block.startswith("# "):
            title = block.removeprefix("# ")
        elif block.startswith("## "):
            heading = block.removeprefix("## ")
        else:
            part = _block(block.split("\n"), heading, os.path.dirname(path))
            parts.setdefault(heading, []).append(part)
    return title, parts


def _block(lines: Sequence[str], heading: str, folder: str) -> Html:
    if lines[0].startswith("|"):
        rows = [_cells(line) for line in lines if not re.fullmatch(r"(\|-+)+\|", line)]
        return table(heading, rows)
    if lines[0].startswith("- "):
        return element("ul", *(element("li", inline(line.removeprefix("- "))) for line in lines))
    if match := re.fullmatch(r"!\[(.*)\]\((.*)\)", lines[0]):
        return _picture(os.path.join(folder, PICTURE), match[1])
    return element("p", inline(" ".join(lines)))


def _cells(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", line.strip())[1:-1]
    return [cell.strip().replace("\\|", "|") for cell in cells]


def inline(text: str) -> Html:
    """`**bold**` and code in backticks, all else escaped."""
    return join(*_inline(text))


def _inline(text: str) -> Iterator[Html]:
    for part in re.split(r"(`[^`]+`|\*\*.+?\*\*)", text):
        if part.startswith("`") and part.endswith("`") and len(part) > 2:
            yield element("code", part[1:-1])
        elif part.startswith("**") and part.endswith("**") and len(part) > 4:
            yield element("strong", inline(part[2:-2]))
        else:
            yield escaped(part)


def _picture(path: str, caption: str) -> Html:
    try:
        with Image.open(path) as image:
            return figure(picture(image, "Top-1 of each way as dots and bars"), caption)
    except (OSError, ValueError, SyntaxError) as error:
        return note(f"{shown(path)}: cannot be shown ({one_line(error)}).")
