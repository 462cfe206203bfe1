"""What is salient in a video: the settings."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

from savimae.system.errors import shown
from savimae.system.files import read_json
from savimae.system.settings import CONFIG

FRAME_MEAN = "frame-mean"  # what differs from the frame's mean: patches are salient or not
CHANGE = "change"  # what differs from the frame before: patches have scores
KINDS = (FRAME_MEAN, CHANGE)
MOST = 0.75  # of the patches: where more are salient, savi masks are little else than random ones


@dataclasses.dataclass(frozen=True)
class SaliencyConfig:
    """How the patches of frames, and then the tokens of a clip, become salient."""

    input_size: int = 224  # side of the resized frame, in pixels
    patch_size: int = 16  # side of a patch, in pixels
    threshold: float = 0.5  # a pixel is salient from this share of the frame's greatest deviation
    kind: str = FRAME_MEAN
    share: float = 0.25  # of a clip's tokens, those that change most; of kind CHANGE

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
        if self.kind not in KINDS:
            raise ValueError(f"saliency {self.kind!r} is not one of {', '.join(KINDS)}")
        if not (math.isfinite(self.share) and 0 <= self.share <= 1):
            raise ValueError(f"--salient-share {self.share} is not between 0 and 1")

    @property
    def grid_size(self) -> int:
        """Patches a side: H_p = W_p."""
        return self.input_size // self.patch_size

    @property
    def of_arrays(self) -> dict[str, Any]:
        """The settings that arrays are made with, as their config.json holds them."""
        sizes = {"input_size": self.input_size, "patch_size": self.patch_size}
        if self.kind == CHANGE:
            return {**sizes, "saliency": CHANGE}
        return {**sizes, "threshold": self.threshold}

    @classmethod
    def from_arrays(cls, recorded: dict[str, Any]) -> SaliencyConfig:
        """The settings in the config.json of arrays. Raises KeyError for another one's."""
        sizes = recorded["input_size"], recorded["patch_size"]
        if recorded.get("saliency") == CHANGE:
            return cls(*sizes, kind=CHANGE)
        return cls(*sizes, recorded["threshold"])


def choose_saliency(
    input_size: int,
    patch_size: int,
    kind: str | None,
    root: str | None,
    threshold: float | None,
    share: float | None,
) -> SaliencyConfig:
    """The settings of clips, from what was typed; None: not given.

    Args:
        root: the folder of arrays, which have a kind of their own.

    Raises:
        ValueError: a value out of range or without effect, or arrays of another kind.
    """
    of_arrays = None if root is None else kind_of_arrays(root)
    if kind is not None and of_arrays not in (None, kind):
        raise ValueError(
            f"{shown(str(root))} holds arrays of saliency {of_arrays}, not {kind}; leave "
            "--saliency out, or preprocess with it into another folder"
        )
    kind = kind or of_arrays or FRAME_MEAN
    if kind == CHANGE and threshold is not None:
        raise ValueError("--saliency-threshold has no effect on change; give --salient-share")
    if kind != CHANGE and share is not None:
        raise ValueError("--salient-share has no effect on frame-mean; give --saliency change")
    given = {"threshold": threshold, "share": share}
    return SaliencyConfig(
        input_size, patch_size, kind=kind,
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip


def kind_of_arrays(root: str) -> str | None:
    """The kind of saliency that the arrays below `root` hold; None where there is no config.json.

    Arrays of other tools have none, and one that is broken is reported where sizes are compared.
    """
    try:
        recorded = read_json(os.path.join(root, CONFIG))
    except (OSError, ValueError):
        return None
    return str(recorded.get("saliency", FRAME_MEAN))


def mostly_salient(share: float, what: str) -> str | None:
    """A warning for people where most of `what` (such as "patches") is salient; None elsewhere.

    Args:
        share: of what is salient by distance from the frame's mean; of change it is chosen.
    """
    if share <= MOST:
        return None
    return (
        f"warning: {share:.1%} of the {what} are salient, so that savi masks differ little from "
        "random ones; a higher threshold, or --saliency change, leaves fewer"
    )
