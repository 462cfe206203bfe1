"""A page of HTML that needs nothing but itself: elements, tables, pictures inside, a style sheet.

Text is escaped where it becomes part of an element; only what is `Html` already is taken as it is.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from savimae.system.errors import shown

MOST_ROWS = 24  # of a table that is open at once; longer ones are folded
VOID = ("img", "meta", "br")  # elements that hold nothing
QUALITY = 88  # of pictures, as WebP
STRONGEST_SHADE = 0.7  # of a cell, so that its number stays legible on it

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1c2430; --quiet: #566173;
  --line: #d8dee7; --panel: #f4f6f9; --c1: #0a5fbf; --c2: #c2410c; --c3: #15803d; --c4: #7c3aed;
  --c5: #be185d; --c6: #0f766e; --c7: #a16207; --c8: #475569; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ground: #12161c; --ink: #e5e9ef; --quiet: #9aa6b6; --line: #2f3845; --panel: #1b212a;
    --c1: #6cb2ff; --c2: #ff9f61; --c3: #63d48d; --c4: #bda0ff; --c5: #ff8fc4; --c6: #5fd0c5;
    --c7: #e5c04f; --c8: #a9b6c8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1.25rem 4rem; background: var(--ground);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; overflow-wrap: anywhere; }
p, ul { max-width: 46rem; }
p { margin: .5rem 0; }
a { color: var(--c1); }
.lead { font-size: 1.12rem; overflow-wrap: anywhere; }
.note { color: var(--quiet); font-size: .92rem; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin: 1.2rem 0 0; font-size: .95rem; }
dl.keys { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem;
  margin: 1.3rem 0 0; }
dl.keys > div { display: flex; flex-direction: column; background: var(--panel);
  border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
dl.keys dt { color: var(--quiet); font-size: .88rem; }
dl.keys dd { margin: 0; font-size: 1.55rem; font-weight: 650; line-height: 1.25; }
dl.keys dd.note { font-size: .85rem; font-weight: 400; line-height: 1.35; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1rem 1.6rem; align-items: start; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: .8rem; }
figure { margin: .9rem 0; min-width: 0; break-inside: avoid; }
figure img { display: block; max-width: min(100%, 56rem); height: auto; border-radius: .3rem; }
.frames figure { margin: 0; }
.frames img { width: 100%; }
figcaption { color: var(--quiet); font-size: .9rem; margin-top: .35rem; max-width: 60rem;
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; max-width: 100%; margin: .9rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .94rem; }
caption { text-align: left; color: var(--quiet); font-size: .9rem; padding: 0 0 .35rem; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--line); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; }
.left, th.left { text-align: left; }
.wrap { white-space: normal; overflow-wrap: anywhere; min-width: 9rem; }
tr.quiet > * { color: var(--quiet); }
tr.best > * { font-weight: 650; }
.matrix td, .matrix th { padding: .2rem .45rem; border: 1px solid var(--line); font-size: .85rem; }
.matrix thead th.turned { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left;
  font-weight: 500; padding: .45rem .2rem; vertical-align: top; }
.bar { display: inline-block; width: 7rem; height: .6rem; background: var(--line);
  border-radius: .3rem; overflow: hidden; }
.bar > span { display: block; height: 100%; background: var(--c1); }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: .4rem;
  padding: .7rem .9rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .88rem; }
code { font-size: .92em; overflow-wrap: anywhere; }
details > summary { cursor: pointer; color: var(--c1); margin: .5rem 0; }
svg.chart { display: block; width: 100%; height: auto; max-width: 34rem; }
.chart text { fill: var(--quiet); font-size: 12px; }
.chart .title { fill: var(--ink); font-size: 13px; font-weight: 600; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart .level { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 2 3; }
.chart path { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.legend { display: block; margin-bottom: .2rem; }
.key { display: inline-block; margin-right: 1rem; white-space: nowrap; color: var(--ink); }
.key svg { width: 1.7rem; height: .6rem; margin-right: .35rem; }
.key path { fill: none; stroke-width: 2.5; }
.key .level { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 2 3; }
footer { margin-top: 3rem; color: var(--quiet); font-size: .88rem; }
@media (max-width: 600px) { body { padding: 1rem .9rem 3rem; } h1 { font-size: 1.5rem; }
  dl.keys { grid-template-columns: 1fr 1fr; } dl.keys dd { font-size: 1.3rem; }
  .frames { grid-template-columns: 1fr 1fr; }
  .chart text, .chart .title { font-size: 15px; } }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } nav { display: none; }
  h2 { break-after: avoid; } h3 { break-after: avoid; } tr, dl.keys > div { break-inside: avoid; }
  .side { grid-template-columns: 1fr 1fr; } figure img { max-height: 14cm; width: auto; }
  .frames { grid-template-columns: repeat(6, 1fr); } .frames img { width: 100%; }
  .scroll { overflow: visible; } th, td { white-space: normal; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


class Html(str):
    """Markup, whose texts are escaped already."""

    __slots__ = ()


class Section(NamedTuple):
    """A part of the page that the list of contents names."""

    anchor: str
    title: str
    content: Html


class Cell(NamedTuple):
    """A cell of a table whose background says how much its number is, 0 to 1."""

    text: str
    shade: float


def escaped(text: str) -> Html:
    """Text as markup; control characters and bytes that are no text are shown as escapes."""
    return text if isinstance(text, Html) else Html(html.escape(shown(text)))


def join(*parts: str) -> Html:
    """Parts one after the other; those that are no markup are escaped."""
    return Html("".join(map(escaped, parts)))


def element(name: str, /, *content: str, **attributes: str) -> Html:
    """`<name attribute="…">content</name>`; content that is no markup is escaped.

    An attribute that Python's words do not allow ends in an underscore: `class_`.
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
    )
    if name in VOID:
        return Html(f"<{name}{words}>")
    return Html(f"<{name}{words}>{join(*content)}</{name}>")


def table(
    caption: str,
    rows: Sequence[Sequence[str | Cell]],
    n_left: int = 1,
    classes: Sequence[str] = (),
    wrapped: bool = False,
) -> Html:
    """A table that scrolls sideways where the page is narrower.

    Args:
        caption: what the table is.
        rows: the first one has the titles of the columns; the first cell of a row is its title.
        n_left: columns that are set to the left.
        classes: of each row but the first, "" for none; none: no row has one.
        wrapped: let long texts of the left columns have several lines.
    """

    def cell(name: str, column: int, value: str | Cell, **more: str) -> Html:
        kind = ("left wrap" if wrapped else "left") if column < n_left else ""
        attributes = {**more, **({"class_": kind} if kind else {})}
        if isinstance(value, Cell):
            shade = f"background: rgba(70, 130, 220, {STRONGEST_SHADE * value.shade:.3f})"
            return element(name, value.text, **attributes, style=shade)
        return element(name, value, **attributes)

    head = element("tr", *(cell("th", n, each, scope="col") for n, each in enumerate(rows[0])))
    body = []
    for number, row in enumerate(rows[1:]):
        cells = [cell("th", 0, row[0], scope="row")]
        cells += [cell("td", n, each) for n, each in enumerate(row[1:], 1)]
        kind = classes[number] if classes else ""
        body.append(element("tr", *cells, **({"class_": kind} if kind else {})))
    return element(
        "div",
        element(
            "table", element("caption", caption), element("thead", head), element("tbody", *body)
        ),
        class_="scroll", tabindex="0", role="region", aria_label=caption,
    )  # fmt: skip


def matrix(caption: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> Html:
    """A confusion matrix [true][predicted], shaded by the share of each true class."""
    titles = element("th", "true \\ predicted", scope="col", class_="left")
    columns = [element("th", name, scope="col", class_="turned") for name in names]
    body = []
    for name, row in zip(names, counts, strict=True):
        total = max(sum(row), 1)
        cells = []
        for count in row:
            shade = f"background: rgba(70, 130, 220, {STRONGEST_SHADE * count / total:.3f})"
            cells.append(element("td", str(count) if count else "", style=shade))
        body.append(element("tr", element("th", name, scope="row", class_="left"), *cells))
    return element(
        "div",
        element(
            "table", element("caption", caption),
            element("thead", element("tr", titles, *columns)), element("tbody", *body),
            class_="matrix",
        ),
        class_="scroll", tabindex="0", role="region", aria_label=caption,
    )  # fmt: skip


def bar(share: float) -> Html:
    """A bar of this share of its length, 0 to 1, beside a number that says it."""
    return element("span", element("span", style=f"width: {share:.1%}"), class_="bar")


def figure(content: str, caption: str) -> Html:
    return element("figure", content, element("figcaption", caption))


def folded(title: str, content: str) -> Html:
    """Content that is shown when its title is clicked, and printed only if it is open."""
    return element("details", element("summary", title), content)


def picture(image: Image.Image, alt: str) -> Html:
    """A picture inside the page, as WebP; `alt` says what it shows to those who do not see it."""
    encoded = io.BytesIO()
    image.convert("RGB").save(encoded, "WEBP", quality=QUALITY)
    source = "data:image/webp;base64," + base64.b64encode(encoded.getvalue()).decode()
    return element(
        "img", src=source, alt=alt, width=str(image.width), height=str(image.height)
    )  # fmt: skip


def paragraphs(*texts: str) -> Html:
    return join(*(element("p", text) for text in texts))


def note(text: str) -> Html:
    return element("p", text, class_="note")


class KeyFigure(NamedTuple):
    """A number that a reader looks for first."""

    name: str
    value: str
    remark: str = ""


def key_figures(figures: Sequence[KeyFigure]) -> Html:
    return element(
        "dl",
        *(
            element(
                "div", element("dt", each.name), element("dd", each.value),
                element("dd", each.remark, class_="note") if each.remark else "",
            )
            for each in figures
        ),
        class_="keys",
    )  # fmt: skip


def page(title: str, lead: Html, sections: Sequence[Section], footer: str) -> str:
    """The whole page: title, what it begins with, a list of contents, sections."""
    contents = element(
        "nav", *(element("a", each.title, href=f"#{each.anchor}") for each in sections),
        aria_label="Contents",
    )  # fmt: skip
    body = [
        element("section", element("h2", each.title), each.content, id=each.anchor)
        for each in sections
    ]
    head = join(
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    whole = element(
        "body", element("header", element("h1", title), lead, contents), element("main", *body),
        element("footer", footer),
    )  # fmt: skip
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n{whole}</html>\n'
