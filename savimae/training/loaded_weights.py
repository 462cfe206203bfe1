"""The weights of a model as they come out of a file of any layout, and the models they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from savimae.model.channels import gray_config, gray_weights
from savimae.model.classifier import VideoClassifier
from savimae.model.config import GRAY, VideoMAEConfig
from savimae.model.layouts import ENCODER, State, head_of
from savimae.model.videomae import Encoder
from savimae.samples.multi_view import Views
from savimae.system.errors import SavimaeError, UsageError, shown


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

    @property
    def n_classes(self) -> int | None:
        """K of a classifier; None of a pretraining model."""
        return len(self.state["head.weight"]) if "head.weight" in self.state else None


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
