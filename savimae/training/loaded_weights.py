"""The weights of a model as they come out of a file of any layout, and the models they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from savimae.model.channels import gray_config, gray_weights
from savimae.model.classifier import HeadConfig, VideoClassifier
from savimae.model.config import GRAY, VideoMAEConfig
from savimae.model.layouts import ENCODER, State, head_of
from savimae.model.videomae import Encoder
from savimae.samples.multi_view import Views
from savimae.system.errors import SavimaeError, UsageError, shown
from savimae.system.sizes import FrameSize
from savimae.training.outputs import CLASSIFY, Outputs, Scale


@dataclasses.dataclass(frozen=True)
class Weights:
    """The parameters of a model under our names, and its shape.

    Of a classifier, what `config` says of a decoder plays no role.
    """

    layout: str
    config: VideoMAEConfig
    state: State
    settings: Mapping[str, Any]  # of the run that trained them; empty where nothing is known
    classes: Sequence[str] = ()  # names of a classifier's labels, as far as they are known
    views: Views | None = None  # of a video in the classifier's test, as far as they are known
    task: str = CLASSIFY  # of a classifier, one of `outputs.TASKS`
    scale: Scale | None = None  # of its numbers, if its outputs are not in the user's units

    @property
    def n_classes(self) -> int | None:
        """K of a classifier; None of a pretraining model."""
        return len(self.state["head.weight"]) if "head.weight" in self.state else None

    @property
    def outputs(self) -> Outputs:
        """What the outputs of a classifier mean."""
        return Outputs(class_names(self.classes, self.n_classes or 0), self.task, self.scale)


def class_names(classes: Sequence[str], k: int) -> list[str]:
    """Names of all `k` classes: the numbers of those that have none."""
    return [*classes, *map(str, range(len(classes), k))]


@dataclasses.dataclass(frozen=True)
class ClipShape:
    """Of the clips that a model gets; None: as it was trained."""

    num_frames: int | None = None
    input_size: FrameSize | None = None
    channels: int | None = None
    fit: str | None = None


AS_TRAINED = ClipShape()


def adapted(path: str, weights: Weights, clips: ClipShape) -> Weights:
    """The same weights for clips of another shape. No parameter depends on their sizes.

    Positions are computed anew: those of the first time steps stay what they were if the number of
    frames changes; with another size of the frames a token has another number.

    Args:
        path: where the weights come from, for the error.

    Raises:
        UsageError: sizes that are no multiples of the patch or tubelet size, or gray weights for
            RGB.
    """
    weights = in_channels(path, weights, clips.channels)
    sizes = {"num_frames": clips.num_frames, "input_size": clips.input_size}
    given: dict[str, Any] = {name: n for name, n in sizes.items() if n is not None}
    try:
        config = dataclasses.replace(weights.config, **given)
    except ValueError as error:
        raise UsageError(f"{shown(path)}: {error}") from None
    if clips.fit is not None:
        weights = dataclasses.replace(weights, settings={**weights.settings, "fit": clips.fit})
    return dataclasses.replace(weights, config=config)


def check_time_means(path: str, weights: Weights, clips: ClipShape) -> None:
    """Raises UsageError for a classifier of one mean for each time step, if their number changes.

    Args:
        weights: as they were trained.
    """
    shape = weights.config
    is_by_time = weights.n_classes and head_of(weights.state, shape).pool != HeadConfig.pool
    if is_by_time and clips.num_frames not in (None, shape.num_frames):
        raise UsageError(
            f"{shown(path)}: its last layer sees a mean for each of {shape.time_steps} time steps, "
            f"so that clips have {shape.num_frames} frames; leave --num-frames out, or fine-tune "
            "with it"
        )


def in_channels(path: str, weights: Weights, channels: int | None) -> Weights:
    """The same weights for videos of this many channels: RGB ones as `gray_weights`.

    Args:
        path: where they come from, for the error.
        channels: 1 or 3; None: as they are.

    Raises:
        UsageError: gray weights for RGB.
    """
    config = weights.config
    if channels in (None, config.channels):
        return weights
    if channels != GRAY:
        raise UsageError(
            f"--channels {channels}: {shown(path)} is of gray videos; leave it out, and the videos "
            "are made gray"
        )
    return dataclasses.replace(
        weights, config=gray_config(config), state=gray_weights(weights.state, config)
    )


def encoder_of(weights: Weights) -> Encoder:
    """The encoder of a pretraining model; or that of a classifier, which has no last norm."""
    encoder = Encoder(weights.config, has_norm=weights.n_classes is None)
    encoder.load_state_dict(
        {
            name.removeprefix(ENCODER): value
            for name, value in weights.state.items()
            if name.startswith(ENCODER)
        }
    )
    return encoder


def classifier_of(path: str, weights: Weights) -> VideoClassifier:
    """The classifier with these weights.

    Args:
        path: where they come from, for the error.

    Raises:
        SavimaeError: they are those of a pretraining model.
    """
    if weights.n_classes is None:
        raise SavimaeError(
            f"{shown(path)}: a pretraining model, not a classifier; `savimae finetune` makes one"
        )
    head = head_of(weights.state, weights.config)
    model = VideoClassifier(weights.config, weights.n_classes, head=head)
    model.load_state_dict(weights.state)
    return model
