"""What is salient in a video: the settings."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

from savimae.data.fitting import FITS, PAD, PRESS
from savimae.system.errors import shown
from savimae.system.files import read_json
from savimae.system.settings import CONFIG
from savimae.system.sizes import FrameSize, Sides, frame_size, recorded_size, sides

FRAME_MEAN = "frame-mean"  # what differs from the frame's mean: patches are salient or not
CHANGE = "change"  # what differs from the frame before: patches have scores
KINDS = (FRAME_MEAN, CHANGE)
MOST = 0.75  # of the patches: where more are salient, savi masks are little else than random ones


@dataclasses.dataclass(frozen=True)
class SaliencyConfig:
    """How the patches of frames, and then the tokens of a clip, become salient."""

    input_size: FrameSize = 224  # of the resized frame, in pixels
    patch_size: int = 16  # side of a patch, in pixels
    threshold: float = 0.5  # a pixel is salient from this share of the frame's greatest deviation
    kind: str = FRAME_MEAN
    share: float = 0.25  # of a clip's tokens, those that change most; of kind CHANGE
    fit: str = PRESS  # how frames of another shape become such ones

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_size", frame_size(self.input_size))
        if self.patch_size < 1:
            raise ValueError(f"--patch-size must be at least 1, not {self.patch_size}")
        for side in self.sides:
            if side % self.patch_size:
                below = max(side // self.patch_size, 1) * self.patch_size
                of_side = "" if side == self.input_size else f": {side}"
                raise ValueError(
                    f"--input-size {self.input_size}{of_side} is not a multiple of --patch-size "
                    f"{self.patch_size}; the nearest are {below} and {below + self.patch_size}"
                )
        if self.fit not in FITS:
            raise ValueError(f"--fit {self.fit!r} is not one of {', '.join(FITS)}")
        if not (math.isfinite(self.threshold) and 0 <= self.threshold <= 1):
            raise ValueError(f"--threshold {self.threshold} is not between 0 and 1")
        if self.kind not in KINDS:
            raise ValueError(f"saliency {self.kind!r} is not one of {', '.join(KINDS)}")
        if not (math.isfinite(self.share) and 0 <= self.share <= 1):
            raise ValueError(f"--salient-share {self.share} is not between 0 and 1")

    @property
    def sides(self) -> Sides:
        """Of the resized frame: H, W in pixels."""
        return sides(self.input_size)

    @property
    def grid(self) -> Sides:
        """H_p, W_p, in patches."""
        return Sides(*(side // self.patch_size for side in self.sides))

    @property
    def of_arrays(self) -> dict[str, Any]:
        """The settings that arrays are made with, as their config.json holds them."""
        sizes: dict[str, Any] = {
            "input_size": recorded_size(self.input_size),
            "patch_size": self.patch_size,
        }
        if self.fit != PRESS:
            sizes["fit"] = self.fit
        if self.kind == CHANGE:
            return {**sizes, "saliency": CHANGE}
        return {**sizes, "threshold": self.threshold}

    @classmethod
    def from_arrays(cls, recorded: dict[str, Any]) -> SaliencyConfig:
        """The settings in the config.json of arrays. Raises KeyError for another one's."""
        sizes = frame_size(recorded["input_size"]), recorded["patch_size"]
        fit = recorded.get("fit", PRESS)
        if recorded.get("saliency") == CHANGE:
            return cls(*sizes, kind=CHANGE, fit=fit)
        return cls(*sizes, recorded["threshold"], fit=fit)


def choose_saliency(
    input_size: FrameSize,
    patch_size: int,
    kind: str | None,
    root: str | None,
    threshold: float | None,
    share: float | None,
    fit: str | None = None,
    is_cropped: bool = False,
) -> SaliencyConfig:
    """The settings of clips, from what was typed; None: not given.

    Args:
        root: the folder of arrays, which have a kind and a fit of their own.
        is_cropped: crops are seen, which are fitted in no way; then only the kind is that of the
            arrays.

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
    if root is not None and not is_cropped:
        fit = _agreed_fit(root, fit)
    given: dict[str, Any] = {"threshold": threshold, "share": share, "fit": fit}
    return SaliencyConfig(
        input_size, patch_size, kind=kind,
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip


def kind_of_arrays(root: str) -> str | None:
    """The kind of saliency that the arrays below `root` hold; None where there is no config.json.

    Arrays of other tools have none, and one that is broken is reported where sizes are compared.
    """
    recorded = _of_arrays(root)
    return None if recorded is None else str(recorded.get("saliency", FRAME_MEAN))


def fit_of_arrays(root: str) -> str | None:
    """The fit that the arrays below `root` were made with; None where there is no config.json.

    Raises:
        ValueError: it names another one than there is.
    """
    recorded = _of_arrays(root)
    if recorded is None:
        return None
    found = str(recorded.get("fit", PRESS))
    if found not in FITS:
        path = shown(os.path.join(root, CONFIG))
        raise ValueError(f"{path}: fit {found!r} is not one of {', '.join(FITS)}")
    return found


def check_maps(root: str, config: SaliencyConfig) -> None:
    """Raises ValueError if maps of `savimae saliency` below `root` were fitted in another way.

    Those of other tools say nothing, and are fitted as frames are.
    """
    recorded = _of_arrays(root)
    if recorded is None or recorded.get("output") != "maps":
        return
    found = recorded.get("fit", PRESS)
    wanted: dict[str, Any] = {"fit": config.fit}
    if found != PRESS:  # pressed maps may be resized
        wanted["input_size"] = recorded_size(config.input_size)
    if found == PAD:
        wanted["patch_size"] = config.patch_size
    for name, value in wanted.items():
        there = found if name == "fit" else recorded.get(name, value)
        if there != value:
            option = name.replace("_", "-")
            said = "x".join(map(str, there)) if isinstance(there, list) else there
            raise ValueError(f"{shown(root)} holds maps of --{option} {said}; give the same here")


def _agreed_fit(root: str, fit: str | None) -> str | None:
    """That of the arrays below `root`, which `fit` must be if it is given."""
    found = fit_of_arrays(root)
    if found is None:
        return fit
    if fit not in (None, found):
        raise ValueError(
            f"{shown(root)} holds arrays of --fit {found}, the clips are fitted by {fit}; "
            f"preprocess with --fit {fit} into another folder, or train with that of the arrays"
        )
    return found


def _of_arrays(root: str) -> dict[str, Any] | None:
    """The config.json of arrays; None where there is none, or a broken one."""
    try:
        return read_json(os.path.join(root, CONFIG))
    except (OSError, ValueError):
        return None


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
