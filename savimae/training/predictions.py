"""What a trained model makes of a video: a class, labels, or numbers; and their CSV.

Legend: K classes, labels or numbers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from savimae.data.list_lines import NO_LABEL
from savimae.data.lists import Video, label_of, labels_of, values_of
from savimae.system.files import atomic_file, path_text
from savimae.training.metrics import THRESHOLD
from savimae.training.outputs import MULTILABEL, REGRESS, Outputs

Columns = list[tuple[str, str]]  # names and what stands in a line


class Prediction(NamedTuple):
    """What a classifier makes of a video, or of a part of it."""

    path: str
    classes: Sequence[str]  # names of all K classes
    probabilities: np.ndarray  # float32 [K], which add up to 1
    true: str | None = None  # the class that the list names, in a test
    start_s: float | None = None  # the part of the video, if it is not all of it
    end_s: float | None = None

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.classes[int(self.probabilities.argmax())]

    @property
    def probability(self) -> float:
        """That of the likeliest class."""
        return float(self.probabilities.max())

    def top(self, k: int) -> list[tuple[str, float]]:
        """The `k` likeliest classes with their probabilities, likeliest first.

        Raises:
            ValueError: `k` is below 1.
        """
        return _top(k, self.classes, self.probabilities)

    def columns(self) -> Columns:
        return [
            *([("true", self.true)] if self.true is not None else []),
            ("label", self.label),
            ("probability", f"{self.probability:.6g}"),
            *_named("p_", self.classes, self.probabilities),
        ]

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "label": self.label,
            "probability": float(f"{self.probability:.6g}"),
            "probabilities": _rounded(self.classes, self.probabilities),
        }


class LabelsPrediction(NamedTuple):
    """What a model of several labels makes of a video, or of a part of it."""

    path: str
    classes: Sequence[str]  # names of all K labels
    probabilities: np.ndarray  # float32 [K], each for itself
    true: Sequence[str] | None = None  # the labels of the list, in a test
    start_s: float | None = None
    end_s: float | None = None

    @property
    def labels(self) -> list[str]:
        """Those with a probability of at least 1/2, in the order of `classes`; maybe none."""
        pairs = zip(self.classes, self.probabilities, strict=True)
        return [name for name, value in pairs if value >= THRESHOLD]

    def top(self, k: int) -> list[tuple[str, float]]:
        """The `k` likeliest labels with their probabilities, likeliest first.

        Raises:
            ValueError: `k` is below 1.
        """
        return _top(k, self.classes, self.probabilities)

    def columns(self) -> Columns:
        return [
            *([("true", ",".join(self.true) or NO_LABEL)] if self.true is not None else []),
            ("labels", ",".join(self.labels) or NO_LABEL),
            *_named("p_", self.classes, self.probabilities),
        ]

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "labels": self.labels,
            "probabilities": _rounded(self.classes, self.probabilities),
        }


class ValuesPrediction(NamedTuple):
    """The numbers that a model makes of a video, or of a part of it, in the units of its list."""

    path: str
    names: Sequence[str]  # of all K numbers
    values: np.ndarray  # float32 [K]
    true: Sequence[float] | None = None  # those of the list, in a test
    start_s: float | None = None
    end_s: float | None = None

    def columns(self) -> Columns:
        true = [] if self.true is None else _named("true_", self.names, self.true)
        return [*true, *_named("predicted_", self.names, self.values)]

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {"values": _rounded(self.names, self.values)}


AnyPrediction = Prediction | LabelsPrediction | ValuesPrediction


def make_prediction(
    outputs: Outputs,
    path: str,
    values: np.ndarray,
    video: Video | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
) -> AnyPrediction:
    """The prediction of a video whose outputs are float32 `[K]`.

    Args:
        video: of a test, with what its list says; None: nothing is known.
        start_s, end_s: the part of the video, if it is not all of it.
    """
    names = outputs.names
    if outputs.task == REGRESS:
        numbers = None if video is None else values_of(video)
        return ValuesPrediction(path, names, values, numbers, start_s, end_s)
    if outputs.task == MULTILABEL:
        labels = None if video is None else [names[label] for label in labels_of(video)]
        return LabelsPrediction(path, names, values, labels, start_s, end_s)
    name = None if video is None else names[label_of(video)]
    return Prediction(path, names, values, name, start_s, end_s)


def write_csv(path: str, predictions: Sequence[AnyPrediction]) -> None:
    """Write a line for each prediction: where, and what its `columns` say."""
    first = predictions[0]
    where = ["path", *(["start_s", "end_s"] if first.start_s is not None else [])]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*where, *(name for name, _ in first.columns())])
    for each in predictions:
        cells = [
            path_text(each.path),
            *([f"{each.start_s:.3f}", f"{each.end_s:.3f}"] if each.start_s is not None else []),
        ]
        rows.writerow([*cells, *(value for _, value in each.columns())])
    with atomic_file(path) as file:
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))


def _named(prefix: str, names: Sequence[str], values: Sequence[float] | np.ndarray) -> Columns:
    pairs = zip(names, values, strict=True)
    return [(f"{prefix}{name}", f"{value:.6g}") for name, value in pairs]


def _rounded(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: float(f"{value:.6g}") for name, value in zip(names, values, strict=True)}


def _top(k: int, names: Sequence[str], probabilities: np.ndarray) -> list[tuple[str, float]]:
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    order = np.argsort(-probabilities, kind="stable")[:k]
    return [(names[index], float(probabilities[index])) for index in order]
