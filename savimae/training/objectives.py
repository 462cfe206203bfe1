"""What fine-tuning minimises: cross-entropy of classes, of several labels, or errors of numbers.

The loop divides the sum of a batch by its clips, so a loss in the log is a mean over clips.

Legend: B clips, K classes, labels or numbers, n training videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from savimae.data.lists import Video, label_of, labels_of, values_of
from savimae.samples.augment import soft_labels, soft_target
from savimae.training.metrics import THRESHOLD
from savimae.training.outputs import Scale

LOSSES = ("mse", "huber")  # of numbers
HUBER_DELTA = 1.0  # in standard deviations; beyond it an error counts linearly (Huber, 1964)


class Objective(Protocol):
    """A target for each clip, a loss, and what the log says of training clips."""

    @property
    def sum_names(self) -> Sequence[str]:
        """Names of the sums that `loss` makes beside the loss."""

    def target(self, video: Video, other: Video, share: float) -> np.ndarray:
        """What is wanted of a clip, `share` of it `video`, the rest `other`: float32 `[K]`."""

    def loss(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Sum over clips, and sums by name: logits, targets float32 `[B, K]`."""

    def log_fields(self, sums: dict[str, float]) -> dict[str, float]:
        """Fields of the log."""


class OfClasses:
    """Cross-entropy between predicted and wanted probabilities of K classes.

    Args:
        smoothing: see `soft_target`.
        weights: of the classes, see `class_weights`; None: 1.
    """

    sum_names = ("hits",)

    def __init__(self, n_classes: int, smoothing: float, weights: np.ndarray | None):
        self.n_classes, self.smoothing = n_classes, smoothing
        self.weights = None if weights is None else torch.from_numpy(weights).float()

    def target(self, video: Video, other: Video, share: float) -> np.ndarray:
        return soft_target(label_of(video), label_of(other), share, self.n_classes, self.smoothing)

    def loss(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Also how often the likeliest class is the most wanted one."""
        weight = None if self.weights is None else self.weights.to(logits.device)
        losses = F.cross_entropy(logits, targets, weight, reduction="sum")
        hits = (logits.argmax(1) == targets.argmax(1)).sum()
        return losses, {"hits": float(hits)}

    def log_fields(self, sums: dict[str, float]) -> dict[str, float]:
        return {"train_top1": sums["hits"] / sums["n_samples"]}


class OfLabels:
    """Binary cross-entropy of each label, summed over the K labels.

    Args:
        smoothing: see `soft_labels`.
        weights: float `[K, 2]`, of clips without and with each label, see `label_weights`; None: 1.
    """

    sum_names = ("true_positives", "positives")

    def __init__(self, n_labels: int, smoothing: float, weights: np.ndarray | None):
        self.n_labels, self.smoothing = n_labels, smoothing
        weights = np.ones((n_labels, 2)) if weights is None else weights
        self.weights = torch.from_numpy(weights).float()

    def target(self, video: Video, other: Video, share: float) -> np.ndarray:
        of_both = labels_of(video), labels_of(other)
        return soft_labels(*of_both, share, self.n_labels, self.smoothing)

    def loss(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        """- sum w1 t log p + w0 (1 - t) log(1 - p); also what makes F1 of labels wanted by half."""
        without, with_label = self.weights.to(logits.device).unbind(1)
        # -log(1 - p) = softplus(logit), -log p = softplus(-logit)
        losses = without * (1 - targets) * F.softplus(logits)
        losses = losses + with_label * targets * F.softplus(-logits)
        given, wanted = logits > 0, targets >= THRESHOLD  # p > 1/2
        positives = given.sum() + wanted.sum()
        hits = (given & wanted).sum()
        return losses.sum(), {"true_positives": float(hits), "positives": float(positives)}

    def log_fields(self, sums: dict[str, float]) -> dict[str, float]:
        return {"train_f1": 2 * sums["true_positives"] / max(sums["positives"], 1.0)}


class OfValues:
    """Errors of K standardised numbers, their mean. Predicting the mean of each gets 1 (MSE).

    Args:
        scale: of the training videos.
        kind: of LOSSES; "mse" is the squared error, "huber" half of it up to HUBER_DELTA and
            linear beyond.
    """

    sum_names = ("absolute_error",)

    def __init__(self, scale: Scale, kind: str):
        self.scale, self.kind = scale, kind

    def target(self, video: Video, other: Video, share: float) -> np.ndarray:
        mean, std = np.array(self.scale.mean), np.array(self.scale.std)
        mixed = share * np.array(values_of(video)) + (1 - share) * np.array(values_of(other))
        return ((mixed - mean) / std).astype(np.float32)

    def loss(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Also the mean absolute error of each clip in the user's units, summed over clips."""
        if self.kind == "huber":
            losses = F.huber_loss(logits, targets, reduction="none", delta=HUBER_DELTA)
        else:
            losses = F.mse_loss(logits, targets, reduction="none")
        errors = (logits.detach() - targets).abs().double().mean(0) * len(targets)  # [K]
        std = torch.tensor(self.scale.std, dtype=torch.float64, device=errors.device)
        return losses.mean(1).sum(), {"absolute_error": float((errors * std).mean())}

    def log_fields(self, sums: dict[str, float]) -> dict[str, float]:
        return {"train_mae": sums["absolute_error"] / sums["n_samples"]}


def class_weights(videos: Sequence[Video], n_classes: int) -> np.ndarray:
    """n / (K n_k) for the n_k videos of class k: float64 `[K]`.

    scikit-learn's "balanced", after King and Zeng (2001, "Logistic regression in rare events").
    Their mean over the training videos is 1, so losses and rates keep their size.
    """
    counts = np.bincount([label_of(video) for video in videos], minlength=n_classes)
    return len(videos) / (n_classes * counts)


def label_weights(videos: Sequence[Video], n_labels: int) -> np.ndarray:
    """The same for each label by itself, of videos without and with it: float64 `[K, 2]`.

    n / (2 n_without) and n / (2 n_with); 0 for a class without videos.
    """
    counts = np.zeros((n_labels, 2))
    for video in videos:
        for label in labels_of(video):
            counts[label, 1] += 1
    counts[:, 0] = len(videos) - counts[:, 1]
    return np.where(counts > 0, len(videos) / (2 * np.maximum(counts, 1)), 0.0)


def scale_of(videos: Sequence[Video]) -> Scale:
    """Mean and (population's) standard deviation of the numbers of videos; none is constant."""
    values = np.array([values_of(video) for video in videos], np.float64)
    return Scale(tuple(values.mean(0).tolist()), tuple(values.std(0).tolist()))
