"""The picture of a study: a dot for each seed, a bar for mean and deviation."""

from __future__ import annotations

import math

from savimae.judging.pictures import new_figure, write_figure
from savimae.study.summary import Summary
from savimae.system.errors import shown

MOST_ACROSS = 3  # panels
OF_WAYS, OF_BASELINES = "C0", "0.45"  # colours


def draw_study(summary: Summary, out: str) -> None:
    """Write a PNG with a panel for each way to judge, and a line in it for each row.

    Raises:
        SavimaeError: matplotlib is not installed.
    """
    n = len(summary.columns)
    across = min(n, MOST_ACROSS)
    down = math.ceil(n / across)
    rows = summary.rows
    longest = max(len(row) for row in rows)
    size = (3.2 * across + 0.085 * longest, down * (1.3 + 0.32 * len(rows)))
    figure = new_figure(size)
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, column in zip(panels[:n], summary.columns, strict=True):
        for place, row in enumerate(rows):
            spread = summary.spread(row, column)
            if spread is None:
                continue
            color = OF_WAYS if row in summary.ways else OF_BASELINES
            values = list(summary.top1[row, column].values())
            axes.plot(values, [place] * len(values), "o", color=color, alpha=0.4, markersize=5)
            axes.errorbar(
                spread.mean, place, xerr=spread.deviation or 0.0, fmt="|", color=color,
                markersize=12, markeredgewidth=2, capsize=0, linewidth=2,
            )  # fmt: skip
        axes.axvline(summary.chance, color="0.6", linestyle=":", linewidth=1)
        axes.set_title(column.words)
        axes.set_xlabel("top-1 (dotted: most common class)")
        axes.set_yticks(range(len(rows)), [shown(row) for row in rows])
        axes.tick_params(labelbottom=True)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    for axes in panels[n:]:
        axes.set_visible(False)
    write_figure(figure, out)
