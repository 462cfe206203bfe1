"""Settings that outputs record and that later runs on the same outputs must repeat."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Collection
from typing import Any

from savimae.errors import SavimaeError, UsageError, shown
from savimae.files import create_json, read_json


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


CONFIG = "config.json"


def record_config(folder: str, settings: dict[str, Any]) -> None:
    """Write `settings` to `folder`/config.json, or refuse to go on if other ones are there.

    Raises:
        UsageError: the folder was made with other settings; both values are named.
        SavimaeError: config.json cannot be read.
    """
    if not create_json(os.path.join(folder, CONFIG), settings):
        check_config(folder, settings)


def check_config(folder: str, settings: dict[str, Any], unknown: Collection[str] = ()) -> None:
    """Refuse a folder that was made with other settings. Raises as `record_config`.

    Args:
        unknown: settings that are not compared.
    """
    path = os.path.join(folder, CONFIG)
    try:
        found = read_json(path)
    except FileNotFoundError:
        return
    except ValueError:
        raise SavimaeError(
            f"{shown(path)}: not a savimae config; choose another output folder, or delete this "
            "file if the folder holds nothing worth keeping"
        ) from None
    check_settings(folder, found, settings, unknown)


def check_settings(
    path: str, found: dict[str, Any], settings: dict[str, Any], unknown: Collection[str] = ()
) -> None:
    """Raises UsageError, which names what differs, if `path` was made with other settings."""
    keys = sorted((settings.keys() | found.keys()) - set(unknown))
    differing = [
        f"{shown(key)} is {found.get(key)!r} there and {settings.get(key)!r} here"
        for key in keys
        if found.get(key) != settings.get(key)
    ]
    if differing:
        raise UsageError(
            f"{shown(path)} was made with other settings: {'; '.join(differing)}. Choose another "
            "output, or repeat the settings it was made with"
        )
