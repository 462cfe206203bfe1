"""The test of a classifier: what it says is averaged over the views of every video.

That is the softmax of classes, the probabilities of several labels, or numbers.

A test may take hours. It stops when asked to, and goes on from there, on any number of processes.

Legend: K classes, labels or numbers, V views of a video, T frames of a clip, H, W sides of the
input.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from savimae.data.lists import Video, label_of, labels_of, values_of
from savimae.data.video import naming_video
from savimae.saliency.arrays import read_archive
from savimae.samples.multi_view import ViewReader
from savimae.system.errors import SavimaeError, one_line, shown
from savimae.system.files import atomic_file, parse_json, read_json, write_json
from savimae.system.progress import Progress
from savimae.system.signals import StopSignals
from savimae.training.distributed import World
from savimae.training.machine import autocast
from savimae.training.metrics import (
    THRESHOLD,
    average_precision,
    f1_scores,
    r_squared,
    spearman,
)
from savimae.training.outputs import MULTILABEL, REGRESS, Outputs
from savimae.training.predictions import AnyPrediction, make_prediction, write_csv

RESULT = "test.json"
PREDICTIONS = "predictions.csv"
PARTIAL = "test.partial.npz"
SAVE_EVERY_S = 60.0
RANKS = 5  # likeliest classes among which top-5 looks for the true one


def view_outputs(
    model: nn.Module, views: Tensor, batch_size: int, device: torch.device, precision: str,
    finish: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """What `finish` makes of the logits of views, some at a time.

    Uint8 `[V, T, H, W, C]` -> float32 `[V, K]`.
    """
    with torch.no_grad(), autocast(device, precision):
        logits = torch.cat([model(part.to(device)) for part in views.split(batch_size)])
    return finish(logits)


@dataclasses.dataclass(frozen=True)
class ClassifierTest:
    """A test, whose probabilities so far are kept in a file until it is done."""

    path: str  # where the probabilities so far are kept
    settings: dict[str, Any]  # what tells this test from others
    videos: Sequence[Video]
    n_classes: int
    reader: ViewReader
    batch_size: int  # views at a time
    device: torch.device
    precision: str
    world: World
    finish: Callable[[Tensor], Tensor] = Outputs(()).finish  # logits -> what is averaged

    def run(self, model: nn.Module, signals: StopSignals) -> np.ndarray | None:
        """What the model says of every video; leaves it in eval mode.

        Every process takes its share and gets the whole result.

        Returns:
            float32 `[videos, K]`; None if a process was asked to stop before the end.

        Raises:
            SavimaeError: a video cannot be decoded, or what was kept cannot be read.
        """
        model.eval()
        found: list[np.ndarray] = list(self.world.gather(self._read())[0])
        n, saved_at = len(self.videos), time.monotonic()
        quiet = not self.world.is_main
        with Progress("testing", start=len(found) / n, quiet=quiet, delay_s=1.0) as progress:
            while len(found) < n:
                progress.show(len(found) / n, f"{len(found)}/{n} videos")
                index = len(found) + self.world.rank
                mine = self._predict(model, self.videos[index]) if index < n else None
                everyone = self.world.gather((mine, signals.received is not None))
                found += [each for each, _ in everyone if each is not None]
                stops = len(found) < n and any(stop for _, stop in everyone)
                is_time = stops or time.monotonic() - saved_at > SAVE_EVERY_S
                if self.world.is_main and is_time and signals.may_save:
                    self._write(found)
                    saved_at = time.monotonic()
                if stops:
                    return None
        return np.stack(found)

    def forget(self) -> None:
        """Remove the file of probabilities."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def _write(self, found: Sequence[np.ndarray]) -> None:
        with atomic_file(self.path) as file:
            np.savez(
                file, probabilities=np.reshape(found, (-1, self.n_classes)).astype(np.float32),
                settings=np.array(json.dumps(self.settings)),
            )  # fmt: skip

    def _read(self) -> np.ndarray:
        """The probabilities so far, float32 `[n, K]`; none if the file's are of another test.

        Raises:
            SavimaeError: it holds something else.
        """
        nothing = np.empty((0, self.n_classes), np.float32)
        if not os.path.exists(self.path):
            return nothing
        try:
            probabilities, settings = read_archive(self.path, "probabilities", "settings")
            if parse_json(str(settings)) != self.settings:
                return nothing
            n = len(probabilities) if probabilities.ndim else 0
            if probabilities.shape != (n, self.n_classes) or n > len(self.videos):
                raise ValueError("not of these videos and classes")
            if probabilities.dtype != np.float32 or not np.isfinite(probabilities).all():
                raise ValueError("not probabilities")
            return probabilities
        except (OSError, ValueError) as error:
            raise SavimaeError(
                f"{shown(self.path)}: not what a test leaves when it is stopped; delete it"
            ) from error

    def _predict(self, model: nn.Module, video: Video) -> np.ndarray:
        with naming_video(video.path):
            views = torch.from_numpy(self.reader.read(video))
        of_views = view_outputs(
            model, views, self.batch_size, self.device, self.precision, self.finish
        )
        return of_views.mean(0).cpu().numpy()


def summarize(
    probabilities: np.ndarray, videos: Sequence[Video], classes: Sequence[str]
) -> dict[str, Any]:
    """Top-1, top-5, top-1 by class, and the confusion matrix [true class][predicted class].

    Args:
        probabilities: float `[videos, K]`.

    Raises:
        SavimaeError: they are no finite numbers.
    """
    _check_finite(probabilities)
    labels = np.array([label_of(video) for video in videos])
    ranked = np.argsort(-probabilities, axis=1, kind="stable")[:, :RANKS]
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (labels, ranked[:, 0]), 1)
    of_class = confusion.sum(1)
    return {
        "top1": float(np.trace(confusion)) / len(videos),
        "top5": float((ranked == labels[:, None]).any(1).mean()),
        "videos": len(videos),
        "top1_of_class": {
            name: float(confusion[k, k] / of_class[k])
            for k, name in enumerate(classes)
            if of_class[k]
        },
        "confusion": confusion.tolist(),
        "classes": list(classes),
    }


def summarize_labels(
    probabilities: np.ndarray, videos: Sequence[Video], labels: Sequence[str]
) -> dict[str, Any]:
    """mAP and F1 of several labels, and average precision and F1 of each.

    mAP is the mean over the labels that a test video has; F1 is of the labels that are given a
    probability of at least 1/2. See `metrics`.

    Args:
        probabilities: float `[videos, K]`.

    Raises:
        SavimaeError: they are no finite numbers.
    """
    _check_finite(probabilities)
    is_true = np.zeros(probabilities.shape, bool)
    for row, video in zip(is_true, videos, strict=True):
        row[list(labels_of(video))] = True
    precisions = [average_precision(probabilities[:, k], is_true[:, k]) for k in range(len(labels))]
    known = [value for value in precisions if value is not None]
    micro, macro, f1 = f1_scores(probabilities >= THRESHOLD, is_true)
    return {
        "task": MULTILABEL,
        "map": float(np.mean(known)) if known else None,
        "f1_micro": micro,
        "f1_macro": macro,
        "videos": len(videos),
        "of_label": {
            name: {"videos": int(is_true[:, k].sum()), "ap": precisions[k], "f1": f1[k]}
            for k, name in enumerate(labels)
        },
        "classes": list(labels),
    }


def summarize_values(
    predicted: np.ndarray, videos: Sequence[Video], names: Sequence[str]
) -> dict[str, Any]:
    """Errors and correlations of numbers, each by itself, and the means of all.

    Args:
        predicted: float `[videos, K]`, in the units of the videos' own numbers.

    Returns:
        mae and rmse in these units, r2 and spearman (see `metrics`; None where not defined), and
        beside the true numbers what was predicted, for pictures.

    Raises:
        SavimaeError: they are no finite numbers.
    """
    _check_finite(predicted)
    true = np.array([values_of(video) for video in videos], np.float64)
    predicted = predicted.astype(np.float64)
    of_value: dict[str, dict[str, float | None]] = {}
    for k, name in enumerate(names):
        errors = predicted[:, k] - true[:, k]
        of_value[name] = {
            "mae": float(np.abs(errors).mean()),
            "rmse": float(np.sqrt(np.square(errors).mean())),
            "r2": r_squared(predicted[:, k], true[:, k]),
            "spearman": spearman(predicted[:, k], true[:, k]),
        }
    means = {}
    for score in ("mae", "rmse", "r2", "spearman"):
        known = [each[score] for each in of_value.values()]
        means[score] = None if None in known else float(np.mean(np.array(known, np.float64)))
    return {
        "task": REGRESS, **means, "videos": len(videos), "of_value": of_value,
        "true": true.tolist(), "predicted": predicted.tolist(), "classes": list(names),
    }  # fmt: skip


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise SavimaeError("the classifier's predictions are no finite numbers; look at its loss")


def result_of(found: np.ndarray, videos: Sequence[Video], outputs: Outputs) -> dict[str, Any]:
    """The summary of a test, float `[videos, K]`, of whatever task; what `test.json` holds.

    Raises:
        SavimaeError: what was found is no finite numbers.
    """
    summaries = {MULTILABEL: summarize_labels, REGRESS: summarize_values}
    return summaries.get(outputs.task, summarize)(found, videos, outputs.names)


def tested_predictions(
    found: np.ndarray, videos: Sequence[Video], outputs: Outputs
) -> list[AnyPrediction]:
    """Of every test video, beside what its list says."""
    return [
        make_prediction(outputs, video.path, row, video)
        for video, row in zip(videos, found, strict=True)
    ]


def write_result(folder: str, result: dict[str, Any], predictions: Sequence[AnyPrediction]) -> None:
    """Write `test.json` and `predictions.csv`: a test is done where the first of them is."""
    write_csv(os.path.join(folder, PREDICTIONS), predictions)
    write_json(os.path.join(folder, RESULT), result)


def read_result(folder: str) -> dict[str, Any] | None:
    """What `write_result` wrote; None if there is none.

    Raises:
        SavimaeError: it cannot be read.
    """
    path = os.path.join(folder, RESULT)
    if not os.path.isfile(path):
        return None
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise SavimaeError(f"{shown(path)}: {one_line(error)}") from error
