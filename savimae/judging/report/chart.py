"""Charts as SVG inside a page: they take the page's colors, and need no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from savimae.judging.report.html import Html, element, figure, join

WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 34, 40  # around the plot: room for numbers and titles
MOST_POINTS = 300  # of a line; of more, neighbours become their mean
MOST_DOTS = 1000  # of a scatter chart; of more, every so-many-th is drawn
N_COLORS = 8
DASHES = ("", "6 4", "2 3", "8 3 2 3")
N_TICKS = 5


class Line(NamedTuple):
    """One line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]  # None: nothing there
    color: int = 0  # of N_COLORS
    dash: int = 0  # of DASHES


class Level(NamedTuple):
    """A value that lines are to be held against, drawn from side to side."""

    name: str
    value: float


def line_chart(
    lines: Sequence[Line],
    x_title: str,
    y_title: str,
    caption: str,
    level: Level | None = None,
    from_zero: bool = False,
) -> Html:
    """A chart with its legend and a caption; of no points, nothing.

    Args:
        level: is drawn if there is one, and within the chart.
        from_zero: let the vertical axis begin at 0.
    """
    drawn = [
        (line, [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None])
        for line in lines
    ]
    drawn = [(line, points) for line, points in drawn if points]
    if not drawn:
        return Html("")
    most = max(len(points) for _, points in drawn)
    together = math.ceil(most / MOST_POINTS)
    drawn = [(line, thinned(points, together)) for line, points in drawn]
    values = [y for _, points in drawn for _, y in points] + ([level.value] if level else [])
    y_ticks = ticks(min(values), max(values), from_zero)
    xs = [x for _, points in drawn for x, _ in points]
    left, right = min(0.0, *xs), max(xs)
    x_ticks = [tick for tick in ticks(left, right, True) if tick <= right] or [right]
    low, high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left or 1)
        up = (y - low) / (high - low)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    parts = [element("title", f"{y_title} over {x_title}: {_words(drawn)}")]
    parts.append(element("text", y_title, x="2", y="15", class_="title"))
    for tick in y_ticks:
        _, y = place(left, tick)
        parts.append(_segment(LEFT, y, WIDTH - RIGHT, y, "grid"))
        parts.append(_text(LEFT - 6, y + 4, number(tick), "end"))
    for tick in x_ticks:
        x, _ = place(tick, low)
        parts.append(_text(x, HEIGHT - BOTTOM + 16, number(tick), "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_title, "middle"))
    if level is not None:
        _, y = place(left, level.value)
        parts.append(_segment(LEFT, y, WIDTH - RIGHT, y, "level"))
    for line, points in drawn:
        if len(points) == 1:  # a dot: a line of no length with round ends
            points = points * 2
        placed = " L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in points)
        round_ends = {"stroke_linecap": "round"} if len(set(points)) == 1 else {}
        width = {"style": "stroke-width: 6"} if round_ends else {}
        parts.append(
            element("path", d=f"M{placed}", **_look(line, bool(round_ends)), **round_ends, **width)
        )
    chart = element(
        "svg", *parts, class_="chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img",
    )  # fmt: skip
    if together > 1:
        caption += f" Each point is the mean of {together} lines of the log."
    return figure(chart, join(_legend([line for line, _ in drawn], level), caption))


def scatter_chart(true: Sequence[float], predicted: Sequence[float], name: str) -> Html:
    """Predicted numbers against true ones, on axes alike; on the dashed line they are the same."""
    marks = ticks(min(*true, *predicted), max(*true, *predicted), False)
    low, high = marks[0], marks[-1]
    side = WIDTH - LEFT - 2 * RIGHT  # of the plot, a square; half of a number stands beside it
    bottom = TOP + side

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = ((value - low) / (high - low) for value in (x, y))
        return LEFT + across * side, bottom - up * side

    parts = [element("title", f"{name}: predicted over true, {len(true)} videos")]
    parts.append(element("text", f"{name}, predicted", x="2", y="15", class_="title"))
    for tick in marks:
        x, y = place(tick, tick)
        parts.append(_segment(LEFT, y, LEFT + side, y, "grid"))
        parts.append(_text(LEFT - 6, y + 4, number(tick), "end"))
        parts.append(_text(x, bottom + 16, number(tick), "middle"))
    parts.append(_text(LEFT + side / 2, bottom + BOTTOM - 6, "true", "middle"))
    parts.append(_segment(*place(low, low), *place(high, high), "level"))
    apart = math.ceil(len(true) / MOST_DOTS)
    points = list(zip(true, predicted, strict=True))[::apart]
    dots = " ".join("M{:.1f} {:.1f}h0".format(*place(x, y)) for x, y in points)  # with round ends
    style = "stroke-width: 5; opacity: 0.6"
    parts.append(element("path", d=dots, stroke="var(--c1)", stroke_linecap="round", style=style))
    box = f"0 0 {WIDTH} {bottom + BOTTOM}"
    chart = element("svg", *parts, class_="chart", viewBox=box, role="img")
    shown = "Each dot is a test video" if apart == 1 else f"Each dot is one of {apart} test videos"
    return figure(chart, f"{shown}; on the dashed line predictions are right.")


def thinned(points: Sequence[tuple[float, float]], together: int) -> list[tuple[float, float]]:
    """The means of so many neighbouring points at a time."""
    groups = [points[n : n + together] for n in range(0, len(points), together)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def ticks(low: float, high: float, from_zero: bool) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, from below `low` to above `high`."""
    if from_zero:
        low = min(low, 0.0)
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / N_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def number(value: float) -> str:
    """A number of an axis."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{value:g}"


def _words(drawn: Sequence[tuple[Line, Sequence[tuple[float, float]]]]) -> str:
    """What a reader of screens is told: where each line begins and ends."""
    return "; ".join(
        f"{line.name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for line, points in drawn
    )


def _legend(lines: Sequence[Line], level: Level | None) -> Html:
    """What each line is; nothing for a single one."""
    looks = [(line.name, _look(line)) for line in lines]
    if level is not None:
        looks.append((level.name, {"class_": "level"}))
    if len(looks) == 1:
        return Html("")
    keys = [
        element(
            "span", element("svg", element("path", d="M0 5 L28 5", **look), viewBox="0 0 28 10",
                            aria_hidden="true"), name, class_="key",
        )
        for name, look in looks
    ]  # fmt: skip
    return element("span", *keys, class_="legend")


def _look(line: Line, is_dot: bool = False) -> dict[str, str]:
    dash = "" if is_dot else DASHES[line.dash % len(DASHES)]
    look = {"stroke": f"var(--c{1 + line.color % N_COLORS})"}
    return {**look, "stroke_dasharray": dash} if dash else look


def _segment(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return element("line", **{name: f"{each:.1f}" for name, each in ends.items()}, class_=kind)


def _text(x: float, y: float, text: str, anchor: str) -> Html:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)
