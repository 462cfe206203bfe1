"""What the logs of runs hold to be drawn: which losses can be compared, and averages of them.

Legend: L lines of a log. A line holds means over the steps since the line before.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from savimae.judging.names import short_names
from savimae.model.loss import means_alone
from savimae.saliency.config import FRAME_MEAN
from savimae.system.errors import SavimaeError, UsageError, shown
from savimae.system.settings import CONFIG
from savimae.training.log import LOG, read_lines, read_log, read_settings
from savimae.training.outputs import CLASSIFY, MULTILABEL, REGRESS, TASKS
from savimae.training.scores import is_test

SIDES = range(1, 1 << 20)  # pixels or frames that a side of a token may have


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """Over how many steps around each one a curve is averaged."""

    share: float = 0.02  # of the run's steps
    steps: int | None = None  # so many instead

    @classmethod
    def parse(cls, text: str) -> Smoothing:
        """`2%` and `0.02` are shares of a run's steps, `200` is steps, `0` is none.

        Raises:
            UsageError: anything else.
        """
        try:
            value = float(text.removesuffix("%"))
        except ValueError:
            value = -1.0
        share = value / 100 if text.endswith("%") else value
        if 0 <= share <= 1 and (text.endswith("%") or value < 1):
            return cls(share=share)
        if text.isdecimal() and len(text) <= 12:
            return cls(steps=int(text))
        raise UsageError(f"--smooth {shown(text)}: not like 2%, 0.02 or 200 (steps); 0 for none")

    def window(self, last_step: float) -> float:
        """Steps that are averaged, in a run of so many."""
        return self.share * last_step if self.steps is None else self.steps

    @property
    def words(self) -> str:
        return (
            f"{100 * self.share:.3g} % of the steps"
            if self.steps is None
            else f"{self.steps} steps"
        )


class Loss(NamedTuple):
    """Which loss a run has. Those of two runs can be compared where these are equal."""

    words: str
    of_means: float | None  # of predicting each token's mean; None where data decide it


class Series(NamedTuple):
    """A curve. NaN where the log has no value."""

    epochs: np.ndarray  # float64 [L]
    logged: np.ndarray  # float64 [L]
    smoothed: np.ndarray | None  # float64 [L]; None where the average is over one line


@dataclasses.dataclass(frozen=True)
class Curves:
    """The log of a run."""

    name: str  # differs from those of the other runs
    task: str | None  # of a classifier; None: pretraining
    loss: Loss
    lines: list[dict[str, Any]]  # of steps
    tests: list[dict[str, Any]]

    def has(self, key: str) -> bool:
        return any(line.get(key) is not None for line in self.lines)

    def values(self, key: str) -> np.ndarray:
        """The values of all lines, float64 `[L]`; NaN where there is none."""
        return _values(self.lines, key)

    @property
    def is_classifier(self) -> bool:
        return self.task is not None

    def scores(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and a score of each test, float64; empty without tests."""
        return _values(self.tests, "epoch"), _values(self.tests, f"test_{name}")

    def series(self, key: str, smoothing: Smoothing | None = None) -> Series:
        """A value over the epochs, and its average over the steps around."""
        logged = self.values(key)
        return Series(self.values("epoch"), logged, self.averaged(logged, smoothing))

    def averaged(self, values: np.ndarray, smoothing: Smoothing | None) -> np.ndarray | None:
        """Averages of values of all lines, float64 `[L]`; None if each would be over one line."""
        steps = self.values("step")
        window = 0.0 if smoothing is None else smoothing.window(float(steps[-1]))
        return average(steps, values, window) if window > np.diff(steps, prepend=0).min() else None


def _values(lines: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    found = [line.get(key) for line in lines]
    return np.array([np.nan if value is None else float(value) for value in found])


def average(steps: np.ndarray, values: np.ndarray, window: float) -> np.ndarray:
    """The mean over `window` steps around the middle of each line: float64 `[L]`.

    The window is narrower near the first step, where losses fall fast and a lopsided mean would
    lag, and is cut off at the last.

    Args:
        steps: ascending, from above 0; a value is the mean over the steps since the one before.
        values: NaN where there is none; they count nowhere.
    """
    borders = np.concatenate(([0.0], steps))
    widths, middles = np.diff(borders), (borders[:-1] + borders[1:]) / 2
    half = np.minimum(window / 2, middles)
    is_there = np.isfinite(values)
    within = []
    with np.errstate(over="ignore", invalid="ignore"):  # a value near the greatest float
        for terms in (np.where(is_there, values, 0), is_there):
            total = np.concatenate(([0.0], np.cumsum(terms * widths)))
            ends = [np.interp(middles + sign * half, borders, total) for sign in (1, -1)]
            within.append(ends[0] - ends[1])
        sums, counts = within
        return np.where(counts > 0, sums / np.where(counts > 0, counts, 1), np.nan)


def read_curves(runs: Sequence[str]) -> list[Curves]:
    """The logs of runs, each with a name that differs from the others'.

    Raises:
        UsageError: not the folder of a run, or one that is named twice.
        SavimaeError: a log or settings that cannot be read.
    """
    found = []
    for run, name in zip(runs, short_names(runs), strict=True):
        lines, settings = read_log(run), read_settings(run)
        steps = np.array([float(line["step"]) for line in lines])
        if (np.diff(steps, prepend=0) <= 0).any():
            raise SavimaeError(
                f"{shown(os.path.join(run, LOG))}: its steps do not ascend; mend or remove the "
                "lines that do not belong to this run"
            )
        task = _task(run, settings)
        loss = _squared_error(run, settings) if task is None else _of_task(run, settings, task)
        tests = [line for line in read_lines(run) if is_test(line)]
        found.append(Curves(name, task, loss, lines, tests))
    return found


def _squared_error(run: str, settings: Mapping[str, Any]) -> Loss:
    """Of pretraining: over which tokens, of which size, of which target."""
    t, side = (_setting(run, settings, name, int) for name in ("tubelet_size", "patch_size"))
    is_normalized = _setting(run, settings, "norm_target", bool)
    tokens = "masked tokens"
    if settings.get("decode", "all") == "salient":
        kind = settings.get("saliency_kind", FRAME_MEAN)
        of_kind = [settings.get(name) for name in ("salient_share", "saliency_threshold")]
        which = ", ".join(str(value) for value in (kind, *of_kind) if value is not None)
        tokens = f"salient masked tokens ({shown(which)})"
    target = "normalised" if is_normalized else "plain"
    words = f"mean squared error: {tokens} of {t} x {side} x {side} pixels, {target}"
    return Loss(words, means_alone(t * side * side) if is_normalized else None)


def _task(run: str, settings: Mapping[str, Any]) -> str | None:
    """What a classifier was fine-tuned for; None of pretraining.

    Raises:
        SavimaeError: nothing that is known.
    """
    if settings.get("output") != "classifier":
        return None
    task = settings.get("task", CLASSIFY)
    if task not in TASKS:
        raise SavimaeError(
            f"{shown(os.path.join(run, CONFIG))}: task is {shown(repr(task))[:60]}; name the "
            "folder of a run, with the settings it wrote"
        )
    return str(task)


def _of_task(run: str, settings: Mapping[str, Any], task: str) -> Loss:
    """Of a classifier: which loss, with which targets."""
    names = ("label_smoothing", "mixup", "cutmix")
    smoothed, mixup, cutmix = (_setting(run, settings, name, float) for name in names)
    words = ["cross-entropy"]
    if task == MULTILABEL:
        words = ["binary cross-entropy, summed over labels"]
    if task == REGRESS:
        words = [f"error of standardised numbers, {shown(str(settings.get('loss')))[:20]}"]
    words += ["balanced class weights"] if settings.get("class_weights") == "balanced" else []
    words += [f"labels smoothed by {smoothed:g}"] if smoothed else []
    words += [f"mixup {mixup:g}"] if mixup else []
    words += [f"cutmix {cutmix:g}"] if cutmix else []
    return Loss(", ".join(words), None)


def _setting(run: str, settings: Mapping[str, Any], name: str, kind: type) -> Any:
    """A setting that decides what a loss means.

    Raises:
        SavimaeError: it is not there, or no such value.
    """
    value = settings.get(name)
    if kind is bool:
        is_one = isinstance(value, bool)
    else:
        is_one = isinstance(value, int | float if kind is float else int)
        is_one &= not isinstance(value, bool)
    if not is_one or (kind is int and value not in SIDES):
        path = shown(os.path.join(run, CONFIG))
        found = f"{name} is {shown(repr(value))[:60]}" if name in settings else f"no {name} in it"
        raise SavimaeError(f"{path}: {found}; name the folder of a run, with the settings it wrote")
    return value
