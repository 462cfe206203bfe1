"""What tests are summed up with: the names of scores in test.json and in the log, and in words.

A line of the log about a test has them with `test_` before, and so is told from others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from savimae.training.outputs import CLASSIFY, MULTILABEL, REGRESS


class Score(NamedTuple):
    """A score of a test."""

    name: str  # in test.json
    words: str


class Measured(NamedTuple):
    """What is known of a task in training and in tests."""

    training: Score  # of training clips; its name is that in the log
    scores: tuple[Score, ...]  # of a test, the one that counts most first
    of_what: str  # what the first of them is, for the title of a curve


MEASURED = {
    CLASSIFY: Measured(
        Score("train_top1", "top-1"), (Score("top1", "top-1"), Score("top5", "top-5")),
        "share of clips (training) and of videos (test) that it gets right",
    ),
    MULTILABEL: Measured(
        Score("train_f1", "F1"),
        (Score("map", "mAP"), Score("f1_micro", "F1 micro"), Score("f1_macro", "F1 macro")),
        "F1 of training clips; mean average precision of the labels in the test",
    ),
    REGRESS: Measured(
        Score("train_mae", "MAE"),
        (
            Score("mae", "MAE"), Score("rmse", "RMSE"), Score("r2", "R²"),
            Score("spearman", "Spearman"),
        ),
        "mean absolute error of clips (training) and of videos (test), in their units",
    ),
}  # fmt: skip
OF_TESTS = {f"test_{each.scores[0].name}": task for task, each in MEASURED.items()}
LOGGED = (
    *(each.training.name for each in MEASURED.values()),
    *(f"test_{score.name}" for each in MEASURED.values() for score in each.scores),
)


def is_test(line: Mapping[str, Any]) -> bool:
    """Whether a line of the log is about a test."""
    return any(key in line for key in OF_TESTS)


def task_of_test(line: Mapping[str, Any]) -> str:
    """The task of the classifier that a line about a test is of."""
    return next(task for key, task in OF_TESTS.items() if key in line)


def needed_of_test(line: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields that a line about a test always has: a score that is not defined is left out."""
    if "test_top1" in line:
        return ("test_top1", "test_top5")
    return tuple(key for key in OF_TESTS if key in line)


def score_words(found: Mapping[str, Any], task: str, prefix: str = "", digits: int = 3) -> str:
    """Such as "top-1 0.500, top-5 0.900"; scores that are not defined are left out.

    Args:
        found: of test.json, or a line of the log with the prefix `test_`.
    """
    named = [(score.words, found.get(prefix + score.name)) for score in MEASURED[task].scores]
    return ", ".join(
        f"{words} {form(value, digits)}" for words, value in named if value is not None
    )


def form(value: float, digits: int = 3) -> str:
    """A score in words: errors may have any size."""
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.{digits + 3}g}"
