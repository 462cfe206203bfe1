"""The test of a classifier: the softmax is averaged over the views of every video.

A test may take hours. It stops when asked to, and goes on from there, on any number of processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from savimae.data.lists import Video, label_of
from savimae.data.video import naming_video
from savimae.samples.multi_view import ViewReader
from savimae.system.errors import SavimaeError, shown
from savimae.system.files import read_json, write_json
from savimae.system.progress import Progress
from savimae.system.signals import StopSignals
from savimae.training.distributed import World
from savimae.training.machine import autocast

SAVE_EVERY_S = 60.0
RANKS = 5  # likeliest classes that are kept of each video


@dataclasses.dataclass(frozen=True)
class ClassifierTest:
    """A test, whose predictions so far are kept in a file until it is done."""

    path: str  # where the predictions so far are kept
    settings: dict[str, Any]  # what tells this test from others
    videos: Sequence[Video]
    n_classes: int
    reader: ViewReader
    batch_size: int  # views at a time
    device: torch.device
    precision: str
    world: World

    def run(self, model: nn.Module, signals: StopSignals) -> list[list[int]] | None:
        """The likeliest classes of every video, likeliest first; leaves the model in eval mode.

        Every process takes its share and gets the whole result.

        Returns:
            At most five classes for each video; None if a process was asked to stop before the end.

        Raises:
            SavimaeError: a video cannot be decoded, or what was kept cannot be read.
        """
        model.eval()
        found: list[list[int]] = self.world.gather(self._read())[0]
        n, saved_at = len(self.videos), time.monotonic()
        quiet = not self.world.is_main
        with Progress("testing", start=len(found) / n, quiet=quiet, delay_s=1.0) as progress:
            while len(found) < n:
                progress.show(len(found) / n, f"{len(found)}/{n} videos")
                index = len(found) + self.world.rank
                mine = self._predict(model, self.videos[index]) if index < n else None
                everyone = self.world.gather((mine, signals.received is not None))
                found += [classes for classes, _ in everyone if classes is not None]
                stops = len(found) < n and any(stop for _, stop in everyone)
                is_time = stops or time.monotonic() - saved_at > SAVE_EVERY_S
                if self.world.is_main and is_time and signals.may_save:
                    write_json(self.path, {**self.settings, "predictions": found})
                    saved_at = time.monotonic()
                if stops:
                    return None
        return found

    def forget(self) -> None:
        """Remove the file of predictions."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def _read(self) -> list[list[int]]:
        """The predictions so far; none if those in the file are of another test."""
        try:
            kept = read_json(self.path)
            predictions = kept.pop("predictions")
            if kept != self.settings:
                return []
            self._check(predictions)
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError) as error:
            raise SavimaeError(
                f"{shown(self.path)}: not what a test leaves when it is stopped; delete it"
            ) from error
        return list(predictions)

    def _check(self, predictions: Any) -> None:
        """Raises ValueError unless these are classes of some of the videos."""
        if not isinstance(predictions, list) or len(predictions) > len(self.videos):
            raise ValueError("not a list of predictions for these videos")
        for classes in predictions:
            if not isinstance(classes, list) or not 1 <= len(classes) <= RANKS:
                raise ValueError("not a list of classes")
            if not all(type(each) is int and 0 <= each < self.n_classes for each in classes):
                raise ValueError("a class that there is not")

    def _predict(self, model: nn.Module, video: Video) -> list[int]:
        with naming_video(video.path):
            views = torch.from_numpy(self.reader.read(video)).to(self.device)
        with torch.no_grad(), autocast(self.device, self.precision):
            logits = torch.cat([model(part) for part in views.split(self.batch_size)])
        mean = logits.float().softmax(1).mean(0)
        return [int(each) for each in mean.argsort(descending=True)[:RANKS]]


def summarize(
    predictions: Sequence[Sequence[int]], videos: Sequence[Video], n_classes: int
) -> dict[str, Any]:
    """Top-1, top-5 and the confusion matrix [true class][predicted class] of predictions."""
    labels = [label_of(video) for video in videos]
    confusion = np.zeros((n_classes, n_classes), int)
    np.add.at(confusion, (labels, [classes[0] for classes in predictions]), 1)
    hits = [label in classes for label, classes in zip(labels, predictions, strict=True)]
    return {
        "top1": float(np.trace(confusion)) / len(videos),
        "top5": sum(hits) / len(videos),
        "videos": len(videos),
        "confusion": confusion.tolist(),
    }
