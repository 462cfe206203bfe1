"""How a frame becomes salient patches: the settings."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class SaliencyConfig:
    """How a frame becomes salient patches."""

    input_size: int = 224  # side of the resized frame, in pixels
    patch_size: int = 16  # side of a patch, in pixels
    threshold: float = 0.5  # a pixel is salient from this share of the frame's greatest deviation

    def __post_init__(self) -> None:
        if self.input_size < 1 or self.patch_size < 1:
            raise ValueError("--input-size and --patch-size must be at least 1")
        if self.input_size % self.patch_size:
            below = max(self.input_size // self.patch_size, 1) * self.patch_size
            raise ValueError(
                f"--input-size {self.input_size} is not a multiple of --patch-size "
                f"{self.patch_size}; the nearest are {below} and {below + self.patch_size}"
            )
        if not (math.isfinite(self.threshold) and 0 <= self.threshold <= 1):
            raise ValueError(f"--threshold {self.threshold} is not between 0 and 1")

    @property
    def grid_size(self) -> int:
        """Patches a side: H_p = W_p."""
        return self.input_size // self.patch_size
