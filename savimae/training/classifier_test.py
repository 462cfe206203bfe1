"""The test of a classifier: the softmax is averaged over the views of every video.

A test may take hours. It stops when asked to, and goes on from there, on any number of processes.

Legend: K classes, V views of a video, T frames of a clip, S input size.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from savimae.data.lists import Video, label_of
from savimae.data.video import naming_video
from savimae.saliency.arrays import read_archive
from savimae.samples.multi_view import ViewReader
from savimae.system.errors import SavimaeError, one_line, shown
from savimae.system.files import atomic_file, parse_json, path_text, read_json, write_json
from savimae.system.progress import Progress
from savimae.system.signals import StopSignals
from savimae.training.distributed import World
from savimae.training.machine import autocast

RESULT = "test.json"
PREDICTIONS = "predictions.csv"
PARTIAL = "test.partial.npz"
SAVE_EVERY_S = 60.0
RANKS = 5  # likeliest classes among which top-5 looks for the true one


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
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.classes[index], float(self.probabilities[index])) for index in order]


def view_probabilities(
    model: nn.Module, views: Tensor, batch_size: int, device: torch.device, precision: str
) -> Tensor:
    """Softmax of views, some at a time: uint8 `[V, T, S, S, C]` -> float32 `[V, K]`."""
    with torch.no_grad(), autocast(device, precision):
        logits = torch.cat([model(part.to(device)) for part in views.split(batch_size)])
    return logits.float().softmax(1)


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

    def run(self, model: nn.Module, signals: StopSignals) -> np.ndarray | None:
        """The probabilities of all classes, of every video; leaves the model in eval mode.

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
        of_views = view_probabilities(model, views, self.batch_size, self.device, self.precision)
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
    if not np.isfinite(probabilities).all():
        raise SavimaeError("the classifier's probabilities are no finite numbers; look at its loss")
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


def tested_predictions(
    probabilities: np.ndarray, videos: Sequence[Video], classes: Sequence[str]
) -> list[Prediction]:
    """Of every test video, with its true class."""
    return [
        Prediction(video.path, classes, row, classes[label_of(video)])
        for video, row in zip(videos, probabilities, strict=True)
    ]


def write_result(folder: str, result: dict[str, Any], predictions: Sequence[Prediction]) -> None:
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


def write_csv(path: str, predictions: Sequence[Prediction]) -> None:
    """Write a line for each prediction: where, which class, and `p_CLASS` for every class."""
    first = predictions[0]
    where = ["path", *(["start_s", "end_s"] if first.start_s is not None else [])]
    true = ["true"] if first.true is not None else []
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*where, *true, "label", "probability", *(f"p_{name}" for name in first.classes)])
    for each in predictions:
        numbers = [f"{value:.6g}" for value in each.probabilities]
        cells = [
            path_text(each.path),
            *([f"{each.start_s:.3f}", f"{each.end_s:.3f}"] if each.start_s is not None else []),
            *([each.true] if each.true is not None else []),
        ]
        rows.writerow([*cells, each.label, f"{each.probability:.6g}", *numbers])
    with atomic_file(path) as file:
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))
