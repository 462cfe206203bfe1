"""The weights of a model as they come out of a file of any layout, and the models they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from savimae.model.classifier import VideoClassifier
from savimae.model.config import VideoMAEConfig
from savimae.model.layouts import ENCODER, State, head_of
from savimae.model.videomae import Encoder
from savimae.samples.multi_view import Views
from savimae.system.errors import SavimaeError, shown
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
