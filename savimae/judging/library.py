"""Trained models in Python: the features and the classes of videos, in a line each.

Legend: D width of the encoder, K classes, N tokens, t_n time steps, V views of a video.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray

from savimae.data.lists import Video, is_list
from savimae.data.video import naming_video
from savimae.judging.features import encoder_features
from savimae.judging.load import (
    Machine,
    Trained,
    TrainedClassifier,
    load_trained,
    load_trained_classifier,
)
from savimae.judging.predict import predict_video
from savimae.model.classifier import VideoClassifier
from savimae.model.videomae import Encoder
from savimae.samples.clips import ClipConfig
from savimae.samples.multi_view import ViewReader, Views
from savimae.system.errors import UsageError, shown
from savimae.system.sizes import frame_size
from savimae.training.loaded_weights import ClipShape
from savimae.training.predictions import AnyPrediction

AnyPath = str | os.PathLike[str]
REMEDY = "mend it, or leave it out"


class VideoEncoder:
    """A trained encoder. `load_encoder` makes it.

    Attributes:
        model: the encoder itself, a torch module in evaluation mode: `model.whole(clips)` takes
            uint8 `[B, T, H, W, C]` and returns float32 `[B, N, D]`.
        clips: how clips are cut from a video.
    """

    def __init__(self, trained: Trained, machine: Machine):
        self._trained = trained
        self._machine = machine
        self.model: Encoder = trained.encoder
        self.clips: ClipConfig = trained.clips()

    def features(
        self,
        videos: AnyPath | Sequence[AnyPath],
        *,
        pool: Literal["mean", "time", "tokens"] = "mean",
        layer: int | None = None,
        clips: int = 1,
        crops: int = 0,
    ) -> NDArray[np.float32]:
        """Features of videos, averaged over their views; those of `savimae features`.

        Args:
            videos: a path of a video file or a frame folder, or several.
            pool: "mean" over all tokens, "time" for one mean a time step, "tokens" for all.
            layer: of which block, from 1; None: of the last, after its norm.
            clips: of each video, spread over its time.
            crops: parts in the shape of the input, along the side with room; 0: whole frames.

        Returns:
            float32 `[D]`, `[t_n, D]` or `[N, D]`; of several videos `[videos, …]`.

        Raises:
            ValueError: another pool, no such layer, fewer than one clip, no videos.
            SavimaeError: a video cannot be decoded; names it.
        """
        source = encoder_features(self.model, pool, self._machine, layer)
        reader = ViewReader(self.clips, Views(clips, crops or None))

        def of_video(path: str) -> NDArray[np.float32]:
            views = torch.from_numpy(_read(reader, path)).to(self._machine.device)
            with torch.no_grad():
                values = [source.extract(part) for part in views.split(self._machine.batch_size)]
            of_views: NDArray[np.float32] = torch.cat(values).float().mean(0).cpu().numpy()
            return of_views

        if isinstance(videos, str | os.PathLike):
            return of_video(os.fspath(videos))
        if not len(videos):
            raise ValueError("no videos")
        return np.stack([of_video(os.fspath(path)) for path in videos])


class TrainedVideoClassifier:
    """A fine-tuned classifier. `load_classifier` makes it.

    Attributes:
        model: the classifier itself, a torch module in evaluation mode: takes uint8
            `[B, T, H, W, C]` and returns logits `[B, K]`.
        classes: names of the K classes, labels or numbers.
        task: "classify", "multilabel" or "regress".
    """

    def __init__(self, trained: TrainedClassifier, machine: Machine):
        self._trained = trained
        self._machine = machine
        self.model: VideoClassifier = trained.model
        self.classes: list[str] = list(trained.classes)
        self.task: str = trained.outputs.task

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a sequence of str as well
        self, videos: AnyPath, *, clips: int | None = None, crops: int | None = None
    ) -> AnyPrediction: ...
    @overload
    def predict(
        self, videos: Sequence[AnyPath], *, clips: int | None = None, crops: int | None = None
    ) -> list[AnyPrediction]: ...
    def predict(
        self,
        videos: AnyPath | Sequence[AnyPath],
        *,
        clips: int | None = None,
        crops: int | None = None,
    ) -> AnyPrediction | list[AnyPrediction]:
        """What a video shows; probabilities or numbers are averaged over its views.

        Args:
            videos: a path of a video file or a frame folder, or several.
            clips, crops: views, as of `savimae predict`; None: as in the classifier's own test, 0
                crops: whole frames.

        Returns:
            For each video a `Prediction` with `label`, `probability`, `top(k)` and `probabilities`;
            of several labels a `LabelsPrediction` with `labels`, `top(k)` and `probabilities`; of
            numbers a `ValuesPrediction` with `values` float32 `[K]` and their `names`.

        Raises:
            ValueError: numbers of views that cannot be.
            SavimaeError: a video cannot be decoded; names it.
        """
        reader = ViewReader(self._trained.clips(), self._trained.views(clips, crops))

        def of_video(path: str) -> AnyPrediction:
            return predict_video(self._trained, path, _read(reader, path), self._machine)

        if isinstance(videos, str | os.PathLike):
            return of_video(os.fspath(videos))
        return [of_video(os.fspath(path)) for path in videos]


def _read(reader: ViewReader, path: str) -> np.ndarray:
    if is_list(path):  # FFmpeg would draw its text, and take that for a video
        raise UsageError(f"{shown(path)}: a list; name the videos that are in it")
    with naming_video(path, REMEDY):
        return reader.read(Video(path, path))


def load_encoder(
    path: AnyPath,
    device: str = "auto",
    precision: str = "auto",
    *,
    num_frames: int | None = None,
    input_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    fit: str | None = None,
) -> VideoEncoder:
    """The encoder of a pretrained model or of a classifier.

    Args:
        path: the folder of a run, a checkpoint, published weights, or a Hugging Face folder.
        device: "auto", "cpu" or "cuda".
        precision: "auto", "bf16" or "fp32"; auto is bf16 where the machine multiplies it.
        num_frames, input_size: of the clips it gets, in frames and pixels (the side of a square, or
            height and width); None: as it was trained.
        channels: 1: gray videos, for which RGB weights become gray ones; None: as it was trained.

    Raises:
        SavimaeError: not such a model, clips that do not fit it, or no GPU where one is asked for.
    """
    machine = Machine.here(device, precision)
    size = None if input_size is None else frame_size(input_size)
    clip_shape = ClipShape(num_frames, size, channels, fit)
    return VideoEncoder(load_trained(os.fspath(path), machine.device, clip_shape), machine)


def load_classifier(
    path: AnyPath,
    device: str = "auto",
    precision: str = "auto",
    *,
    num_frames: int | None = None,
    input_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    fit: str | None = None,
) -> TrainedVideoClassifier:
    """A classifier that `savimae finetune` made, or one of another layout; see `load_encoder`.

    Raises:
        SavimaeError: not a classifier, clips that do not fit it, or no GPU where one is asked for.
    """
    machine = Machine.here(device, precision)
    size = None if input_size is None else frame_size(input_size)
    clip_shape = ClipShape(num_frames, size, channels, fit)
    trained = load_trained_classifier(os.fspath(path), machine.device, clip_shape)
    return TrainedVideoClassifier(trained, machine)
