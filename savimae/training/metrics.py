"""What tests of several labels, or of numbers, are summed up with, in NumPy.

Legend: n videos, K labels or numbers of each.
"""

from __future__ import annotations

import numpy as np

THRESHOLD = 0.5  # probability from which a label counts as given


def average_precision(scores: np.ndarray, is_true: np.ndarray) -> float | None:
    """The mean of the precision at each positive video: float `[n]`, bool `[n]` -> 0 to 1.

    AP = sum over thresholds t of (R_t - R_before) P_t, with precision P and recall R among the
    videos that score at least t; equal scores are one threshold. It is scikit-learn's
    `average_precision_score`, without interpolation. None if no video is positive.
    """
    n_true = int(is_true.sum())
    if not n_true:
        return None
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each threshold
    hits = np.cumsum(is_true[order])[last]
    precision, recall = hits / (last + 1), hits / n_true
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def f1_scores(
    given: np.ndarray, is_true: np.ndarray
) -> tuple[float | None, float | None, list[float | None]]:
    """F1 = 2 TP / (2 TP + FP + FN) of labels that are given: bool `[n, K]` each.

    Returns:
        Micro: over all labels of all videos. Macro: the mean over the labels, without those that no
        video has and none is given, whose F1 is not defined. F1 of each label. None: not defined.
    """
    both = (given & is_true).sum(0)
    counts = given.sum(0) + is_true.sum(0)  # 2 TP + FP + FN
    of_label = [
        2 * float(hits) / float(count) if count else None
        for hits, count in zip(both, counts, strict=True)
    ]
    known = [value for value in of_label if value is not None]
    micro = 2 * float(both.sum()) / float(counts.sum()) if counts.any() else None
    return micro, float(np.mean(known)) if known else None, of_label


def r_squared(predicted: np.ndarray, true: np.ndarray) -> float | None:
    """1 - sum (true - predicted)^2 / sum (true - its mean)^2: float64 `[n]` each.

    0: no better than the mean of these videos; below 0: worse. None if all are the same.
    """
    spread = float(np.sum((true - true.mean()) ** 2))
    return 1 - float(np.sum((true - predicted) ** 2)) / spread if spread else None


def spearman(predicted: np.ndarray, true: np.ndarray) -> float | None:
    """Pearson's correlation of ranks, equal values with the mean of theirs: float64 `[n]` each.

    None if all values of either are the same (Spearman, 1904).
    """
    of_both = [_ranks(values) for values in (predicted, true)]
    centred = [ranks - ranks.mean() for ranks in of_both]
    norm = float(np.sqrt(np.sum(centred[0] ** 2) * np.sum(centred[1] ** 2)))
    return float(np.sum(centred[0] * centred[1])) / norm if norm else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, float64 `[n]`; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]
