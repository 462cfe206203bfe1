"""What a classifier makes of videos, or of each part of a long one: classes, labels, numbers.

Legend: B videos, V views of a video, T frames of a clip, H, W sides of the input, K classes, labels
or numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from savimae.data.labels import Labelled, match_labels, match_values, plain_names
from savimae.data.lists import Video, VideoList, find_labelled_videos, labels_of, names_digest
from savimae.data.video import VideoError
from savimae.judging.features import fingerprint
from savimae.judging.load import Machine, TrainedClassifier
from savimae.samples.multi_view import ViewReader, Window
from savimae.system.errors import SavimaeError, UsageError, shown
from savimae.system.files import atomic_file, path_text, refuse_file
from savimae.system.lock import sole_writer
from savimae.system.progress import Progress
from savimae.system.settings import record_config
from savimae.system.signals import StopSignals
from savimae.training.classifier_test import (
    PARTIAL,
    ClassifierTest,
    result_of,
    tested_predictions,
    view_outputs,
    write_result,
)
from savimae.training.distributed import World
from savimae.training.outputs import KIND_OF_LISTS, MULTILABEL, REGRESS
from savimae.training.predictions import AnyPrediction, make_prediction, write_csv

EXTENSIONS = (".csv", ".jsonl")


class BrokenVideo(NamedTuple):
    """A video that cannot be decoded."""

    path: str
    reason: str


def predict_videos(
    classifier: TrainedClassifier, videos: Sequence[Video], reader: ViewReader, machine: Machine
) -> Iterator[AnyPrediction | BrokenVideo]:
    """What it says of every video, averaged over its views; or why it cannot be decoded.

    Yields: one for each video, in their order.
    """

    def load(index: int, _: int) -> tuple[str, np.ndarray] | BrokenVideo:
        path = videos[index].path
        try:
            return path, reader.read(videos[index])
        except VideoError as error:
            return BrokenVideo(path, str(error))

    for batch in machine.batches(len(videos), load, "predicting"):
        read = [each for each in batch if not isinstance(each, BrokenVideo)]
        found = iter(_outputs(classifier, [views for _, views in read], machine))
        for each in batch:
            if isinstance(each, BrokenVideo):
                yield each
            else:
                yield make_prediction(classifier.outputs, each[0], next(found))


def predict_video(
    classifier: TrainedClassifier, path: str, views: np.ndarray, machine: Machine
) -> AnyPrediction:
    """What it says of the video at `path`, from its views uint8 `[V, T, H, W, C]`."""
    return make_prediction(classifier.outputs, path, _outputs(classifier, [views], machine)[0])


def predict_windows(
    classifier: TrainedClassifier,
    videos: Sequence[Video],
    reader: ViewReader,
    machine: Machine,
    every_s: float,
) -> Iterator[AnyPrediction | BrokenVideo]:
    """What it says of every window of `every_s` seconds of every video; see `ViewReader`.

    Yields: one for each window; one for a video that is broken, after its whole windows.
    """
    with Progress("predicting", delay_s=1.0) as progress, ThreadPoolExecutor(1) as executor:
        n_windows = 0
        for number, video in enumerate(videos):
            windows = reader.read_windows(video, every_s)

            def load(
                windows: Iterator[Window] = windows, path: str = video.path
            ) -> list[Window | BrokenVideo]:
                """The windows of the next batch; fewer at the end, none after it."""
                batch: list[Window | BrokenVideo] = []
                try:
                    batch.extend(itertools.islice(windows, machine.batch_size))
                except VideoError as error:
                    batch.append(BrokenVideo(path, str(error)))
                return batch

            loading = executor.submit(load)
            while batch := loading.result():
                loading = executor.submit(load)  # while this one is looked at
                read = [each for each in batch if isinstance(each, Window)]
                if read and not n_windows and read[0].span_s > every_s:
                    progress.write(
                        f"note: a clip spans {read[0].span_s:.2f} s: neighbouring windows of "
                        f"{every_s:g} s share frames"
                    )
                found = _outputs(classifier, [each.views for each in read], machine)
                for window, row in zip(read, found, strict=True):
                    yield make_prediction(
                        classifier.outputs, video.path, row,
                        start_s=window.start_s, end_s=window.end_s,
                    )  # fmt: skip
                yield from (each for each in batch if isinstance(each, BrokenVideo))
                n_windows += len(read)
                rate = n_windows / max(progress.elapsed_s, 1e-9)
                share = None if len(videos) == 1 else number / len(videos)
                progress.show(share, f"{n_windows} windows, {rate:.2f} windows/s")


def _outputs(
    classifier: TrainedClassifier, of_videos: Sequence[np.ndarray], machine: Machine
) -> np.ndarray:
    """Views uint8 `[V, T, H, W, C]` of B videos -> float32 `[B, K]`.

    Raises:
        SavimaeError: they are no finite numbers.
    """
    if not of_videos:
        return np.empty((0, len(classifier.classes)), np.float32)
    views = torch.from_numpy(np.concatenate(of_videos))
    of_views = view_outputs(
        classifier.model, views, machine.batch_size, machine.device, machine.precision,
        classifier.outputs.finish,
    )  # fmt: skip
    # [B * V, K] -> [B, V, K] -> [B, K]
    found = of_views.unflatten(0, (len(of_videos), -1)).mean(1).cpu().numpy()
    if not np.isfinite(found).all():
        raise SavimaeError(
            f"{shown(classifier.path)}: its predictions are no finite numbers; look at its loss"
        )
    return found


def parse_every(text: str) -> float:
    """ "2s" or "0.5s" -> seconds.

    Raises:
        ValueError: anything else.
    """
    number = text.removesuffix("s")
    try:
        seconds = float(number) if number != text else 0.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"--every {text!r} is not like 2s or 0.5s, in seconds")
    return seconds


def check_out(path: str) -> None:
    """Raises UsageError unless predictions can be written to a file of this name."""
    if os.path.splitext(path)[1] not in EXTENSIONS:
        raise UsageError(f"{shown(path)}: name a file that ends in {' or '.join(EXTENSIONS)}")


def write_predictions(path: str, predictions: Sequence[AnyPrediction]) -> None:
    """Write predictions as CSV, or as a JSON object a line, as the name of the file says."""
    if path.endswith(".csv"):
        write_csv(path, predictions)
        return
    with atomic_file(path) as file:
        for each in predictions:
            file.write(json.dumps(_as_json(each), ensure_ascii=False).encode() + b"\n")


def _as_json(prediction: AnyPrediction) -> dict[str, object]:
    window = {}
    if prediction.start_s is not None and prediction.end_s is not None:
        window = {"start_s": round(prediction.start_s, 3), "end_s": round(prediction.end_s, 3)}
    return {"path": path_text(prediction.path), **window, **prediction.fields()}


def match_to_classifier(classifier: TrainedClassifier, test: VideoList, test_path: str) -> Labelled:
    """Test videos with the classifier's labels: by name, or by number where the list has no names.

    Raises:
        UsageError: a class that the classifier does not know, or other numbers than its.
        SavimaeError: the list gives two classes one name.
    """
    if classifier.outputs.task == REGRESS:
        return _match_values(classifier, test, test_path)
    if not test.classes and all(name.isdecimal() for name in classifier.classes):
        # Trained on a list without names, whose numbers are the names of the classes.
        n = 1 + max(max(labels_of(video), default=0) for video in test.videos)
        test = dataclasses.replace(test, classes=[str(number) for number in range(n)])
    is_one_of_several = classifier.outputs.task == MULTILABEL
    known = [
        Video(classifier.path, name, labels=(number,))
        if is_one_of_several
        else Video(classifier.path, name, number)
        for number, name in enumerate(classifier.classes)
    ]
    return match_labels(
        VideoList(known, "", list(classifier.classes)), test, classifier.path, test_path
    )


def _match_values(classifier: TrainedClassifier, test: VideoList, test_path: str) -> Labelled:
    """Test videos whose numbers are the classifier's. Raises UsageError where they are others."""
    names = list(classifier.classes)
    # Two videos that differ: nothing is the same for all.
    known = [Video(classifier.path, "", values=(float(n),) * len(names)) for n in range(2)]
    are_plain = names == plain_names(len(names))
    found = VideoList(known, "", [] if are_plain else names)
    return match_values(found, test, classifier.path, test_path)


def run_test(
    classifier: TrainedClassifier,
    test_list: str,
    out: str,
    reader: ViewReader,
    machine: Machine,
    root: str | None,
) -> dict[str, Any] | None:
    """Test a classifier on labelled videos; `out` gets `test.json` and `predictions.csv`.

    Args:
        test_list: a list with labels, or a folder of class folders.
        root: where the list's relative paths start.

    Returns:
        What `test.json` holds; None if this process was asked to stop before the end. The same call
        goes on then.

    Raises:
        UsageError: videos without labels, a class that the classifier does not know, or `out` is a
            file or of another test.
        SavimaeError: a video cannot be decoded, or another process writes into `out`.
    """
    refuse_file(out)
    kind = KIND_OF_LISTS[classifier.outputs.task]
    found_videos = find_labelled_videos(test_list, root, kind=kind)
    labelled = match_to_classifier(classifier, found_videos, test_list)
    settings = {
        "output": "test",
        "weights": fingerprint(classifier.model),
        "test_videos": names_digest(labelled.test),
        **reader.config.recorded(),
        **dataclasses.asdict(reader.views),
        "precision": machine.precision,
    }
    with StopSignals() as signals, sole_writer(out) as writer:
        record_config(out, settings)
        test = ClassifierTest(
            os.path.join(out, PARTIAL), settings, labelled.test, len(classifier.classes), reader,
            machine.batch_size, machine.device, machine.precision, World(),
            classifier.outputs.finish,
        )  # fmt: skip
        found = test.run(classifier.model, signals)
        if found is None:
            return None
        writer.check()
        result = {
            **result_of(found, labelled.test, classifier.outputs),
            "classifier": classifier.path,
            "views": dataclasses.asdict(reader.views),
            "notes": labelled.notes,
        }
        write_result(out, result, tested_predictions(found, labelled.test, classifier.outputs))
        test.forget()
    return result
