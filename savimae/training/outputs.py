"""What the outputs of a trained model mean: classes, labels or numbers.

Legend: B clips, K outputs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from savimae.data.list_lines import NUMBERS, ONE, SEVERAL

CLASSIFY, MULTILABEL, REGRESS = TASKS = ("classify", "multilabel", "regress")
KIND_OF_LISTS = {CLASSIFY: ONE, MULTILABEL: SEVERAL, REGRESS: NUMBERS}


@dataclasses.dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each number over the training videos, in the user's units.

    The model predicts (number - mean) / deviation.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        is_one = len(self.mean) == len(self.std) and all(map(math.isfinite, self.mean + self.std))
        if not is_one or not all(value > 0 for value in self.std):
            raise ValueError("mean and std are no finite numbers, as many of both, std above 0")

    def restore(self, outputs: Tensor) -> Tensor:
        """Outputs of the model float `[B, K]` -> numbers in the user's units."""
        mean, std = (outputs.new_tensor(values) for values in (self.mean, self.std))
        return outputs * std + mean

    def fold(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters of a classifier whose outputs are in the user's units."""
        weight, bias = state["head.weight"].double(), state["head.bias"].double()
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        return {
            **state,
            "head.weight": (weight * std[:, None]).float(),
            "head.bias": (bias * std + mean).float(),
        }


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What the K outputs of a classifier are."""

    names: Sequence[str]  # of the classes, labels or numbers
    task: str = CLASSIFY  # of TASKS
    scale: Scale | None = None  # of numbers; None: outputs are in the user's units

    def finish(self, logits: Tensor) -> Tensor:
        """What views are averaged over: float `[B, K]` -> float32 `[B, K]`.

        Probabilities that add up to 1, a probability of each label (the logistic function), or
        numbers in the user's units.
        """
        logits = logits.float()
        if self.task == MULTILABEL:
            return logits.sigmoid()
        if self.task == REGRESS:
            return logits if self.scale is None else self.scale.restore(logits)
        return logits.softmax(1)

    def in_config(self) -> dict[str, Any]:
        """What a checkpoint's config says of it; nothing of classes."""
        scale = {} if self.scale is None else {
            "mean": list(self.scale.mean), "std": list(self.scale.std),
        }  # fmt: skip
        return {} if self.task == CLASSIFY else {"task": self.task, **scale}


def take_outputs(fields: dict[str, Any]) -> tuple[str, Scale | None]:
    """Take what `Outputs.in_config` wrote out of a checkpoint's config: task and scale.

    Raises:
        ValueError, TypeError, OverflowError: an unknown task, or numbers that cannot be.
    """
    task = fields.pop("task", CLASSIFY)
    of_scale = [fields.pop(name, None) for name in ("mean", "std")]
    if task not in TASKS:
        raise ValueError(f"task {task!r} is not one of {', '.join(TASKS)}")
    if of_scale == [None, None]:
        return task, None
    if not all(isinstance(each, list | tuple) for each in of_scale) or task != REGRESS:
        raise ValueError("mean and std are lists of numbers of --task regress")
    return task, Scale(*(tuple(map(float, each)) for each in of_scale))
