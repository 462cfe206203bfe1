"""What changes in the course of a run: the learning rate by step, the length of clips by epoch."""

from __future__ import annotations

import dataclasses
import math

DEFAULT_WARMUP_SHARE = 0.1  # of the epochs


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate by step: from 0 to `peak_lr`, then down to `min_lr`.

    Linear warm-up, then a cosine (Loshchilov and Hutter, 2017).
    Step s of the W warm-up steps has peak_lr * s / (W - 1); step s of the other S - W steps,
    counted from 0, has min_lr + (peak_lr - min_lr) / 2 * (1 + cos(pi s / (S - W))).
    """

    peak_lr: float
    min_lr: float
    total_steps: int
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.peak_lr) and self.peak_lr > 0):
            raise ValueError(f"the learning rate must be above 0, not {self.peak_lr}")
        if not 0 <= self.min_lr <= self.peak_lr:
            raise ValueError(
                f"the smallest learning rate {self.min_lr:g} is not between 0 and the greatest, "
                f"{self.peak_lr:g}"
            )
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(
                f"a warm-up of {self.warmup_steps} steps leaves nothing of a run of "
                f"{self.total_steps}"
            )

    def at(self, step: int) -> float:
        """Learning rate of step `step`, from 0."""
        if step < self.warmup_steps:
            return self.peak_lr * step / max(self.warmup_steps - 1, 1)
        share = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.min_lr + (self.peak_lr - self.min_lr) * (1 + math.cos(math.pi * share)) / 2


def default_warmup_epochs(epochs: float, longest: float) -> float:
    """A tenth of the epochs, at most the `longest`, which published runs have."""
    return min(DEFAULT_WARMUP_SHARE * epochs, longest)


@dataclasses.dataclass(frozen=True)
class FrameSchedule:
    """Short clips first: the epochs of a run in equal parts, each with clips of its own length.

    Temporal progressive training (Li et al., 2025, "Efficient VideoMAE via Temporal Progressive
    Training", CVPR Workshops).
    """

    parts: tuple[int, ...]  # frames of a clip, ascending

    def __post_init__(self) -> None:
        if len(self.parts) < 2 or self.parts[0] < 1 or list(self.parts) != sorted(set(self.parts)):
            raise ValueError(
                f"--num-frames-schedule {self}: give two numbers or more, each greater than the "
                "one before, such as 4,8,16"
            )

    @classmethod
    def parse(cls, text: str) -> FrameSchedule:
        """Of "4,8,16". Raises ValueError for anything else."""
        words = [word.strip() for word in text.split(",")]
        if not all(word.isdecimal() for word in words):
            raise ValueError(f"--num-frames-schedule {text}: give numbers, such as 4,8,16")
        return cls(tuple(int(word) for word in words))

    def __str__(self) -> str:
        return ",".join(map(str, self.parts))

    def at(self, epoch: int, n_epochs: int) -> int:
        """Frames of the clips of `epoch`, from 0, in a run of `n_epochs`."""
        part = epoch * len(self.parts) // n_epochs
        return self.parts[min(part, len(self.parts) - 1)]

    def mean(self, first: int, n_epochs: int) -> float:
        """Frames of the clips of the epochs from `first` on, on average."""
        first = min(first, n_epochs - 1)
        lengths = [self.at(epoch, n_epochs) for epoch in range(first, n_epochs)]
        return sum(lengths) / len(lengths)
