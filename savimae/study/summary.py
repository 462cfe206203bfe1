"""What the cells of a study say together: means over seeds, and differences within them.

Legend: a row is a way, an untrained encoder or raw pixels; a column is a way to judge features,
with a number of labels.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from savimae.judging.probe import PIXELS
from savimae.study.cell import PRETRAINED
from savimae.study.plan import Cell, Study
from savimae.system.errors import SavimaeError, shown
from savimae.system.files import read_json

CONFIDENCE = 0.95


class Column(NamedTuple):
    """A way to judge features."""

    measure: str  # kNN, linear, attentive, fine-tuned
    labels: int | None  # training videos of each class; None: all

    @property
    def words(self) -> str:
        """Such as "linear, 5 a class"."""
        return self.measure if self.labels is None else f"{self.measure}, {self.labels} a class"


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over `n` seeds; None for the deviation of a single one."""

    mean: float
    deviation: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), deviation, len(values))

    @property
    def words(self) -> str:
        """Such as "0.412 ± 0.013"."""
        spread = "" if self.deviation is None else f" ± {self.deviation:.3f}"
        return f"{self.mean:.3f}{spread}"


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much better one row is than another, over the seeds that both have.

    The interval is that of a mean of n differences by Student's t, of n - 1 degrees of freedom;
    None of a single one.
    """

    row: str
    other: str
    column: Column
    mean: float
    interval: tuple[float, float] | None
    n: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    @property
    def words(self) -> str:
        """Such as "+0.031 (0.010 to 0.052)"."""
        within = "" if self.interval is None else " ({:+.3f} to {:+.3f})".format(*self.interval)
        return f"{self.mean:+.3f}{within}"


@dataclasses.dataclass(frozen=True)
class Summary:
    """All that is known of a study."""

    ways: list[str]
    baselines: list[str]  # rows of untrained encoders and of raw pixels
    columns: list[Column]
    top1: dict[tuple[str, Column], dict[int, float]]  # by seed
    cells: list[dict[str, Any]]  # the results, as they are in their files
    missing: list[str]  # names of cells that are not done
    chance: float
    n_train: int
    n_test: int

    @property
    def rows(self) -> list[str]:
        return self.ways + self.baselines

    def spread(self, row: str, column: Column) -> Spread | None:
        values = self.top1.get((row, column))
        return Spread.of(list(values.values())) if values else None

    def difference(self, row: str, other: str, column: Column) -> Difference | None:
        """None where the two have no seed in common."""
        ours, theirs = self.top1.get((row, column), {}), self.top1.get((other, column), {})
        values = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        if not values:
            return None
        return Difference(row, other, column, float(np.mean(values)), interval(values), len(values))

    def of_way(self, way: str, name: str) -> list[float]:
        """One number of each cell of a way, such as `steps`."""
        return [cell[name] for cell in self.cells if cell["way"] == way]


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """Where their mean may be, with 95 %: mean ± t s / sqrt(n). None of a single one."""
    from scipy.stats import t

    n = len(differences)
    if n < 2:
        return None
    mean, deviation = float(np.mean(differences)), float(np.std(differences, ddof=1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / math.sqrt(n)
    return mean - half, mean + half


def collect(study: Study) -> Summary:
    """Read what the cells of a study have found so far.

    Raises:
        SavimaeError: no cell is done, or a result that cannot be read.
    """
    cells = study.cells()
    results = [(cell, _read(cell)) for cell in cells if os.path.exists(cell.result)]
    if not results:
        raise SavimaeError(f"{shown(study.out)}: no cell of this study is done yet")
    one_shape = len({cell.way.name for cell in cells if cell.with_baselines}) == 1
    top1: dict[tuple[str, Column], dict[int, float]] = {}
    baselines: list[str] = []
    for cell, result in results:
        for score in result["scores"]:
            row = _row(score["encoder"], cell.way.name, one_shape)
            column = Column(score["measure"], score["labels"])
            top1.setdefault((row, column), {})[cell.seed] = score["top1"]
            if score["encoder"] != PRETRAINED and row not in baselines:
                baselines.append(row)
    first = results[0][1]
    columns = sorted({column for _, column in top1}, key=_order)
    return Summary(
        [way.name for way in study.ways], sorted(baselines, key=lambda row: PIXELS in row),
        columns, top1, [result for _, result in results],
        [cell.name for cell in cells if not os.path.exists(cell.result)],
        first["chance"], first["n_train"], first["n_test"],
    )  # fmt: skip


def _row(encoder: str, way: str, one_shape: bool) -> str:
    if encoder == PRETRAINED:
        return way
    return encoder if one_shape else f"{encoder}, as {way}"


def _order(column: Column) -> tuple[int, float]:
    """kNN, linear, attentive, fine-tuned; few labels first."""
    known = ("kNN", "linear", "attentive")
    place = known.index(column.measure) if column.measure in known else len(known)
    return place, math.inf if column.labels is None else column.labels


def _read(cell: Cell) -> dict[str, Any]:
    try:
        result: dict[str, Any] = read_json(cell.result)
        if (result["way"], result["seed"]) != (cell.way.name, cell.seed):
            raise ValueError("of another cell")
        for score in result["scores"]:
            if not isinstance(score, Mapping) or not 0 <= score["top1"] <= 1:
                raise ValueError("a score that is none")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SavimaeError(
            f"{shown(cell.result)}: not the result of this cell; delete it, and the cell is done "
            "again from what it has"
        ) from error
    return result
