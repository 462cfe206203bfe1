"""Settings that outputs record and that later runs on the same outputs must repeat."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from savimae.system.errors import SavimaeError, UsageError, shown
from savimae.system.files import create_json, read_json

CONFIG = "config.json"
# What the first runs of version 0.1.0 call some of their settings.
FORMER_NAMES = {
    "image_size": "input_size",
    "mask_salient_ratio": "salient_mask_ratio",
    "mask_nonsalient_ratio": "nonsalient_mask_ratio",
}


def named_as_now(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that were recorded, under the names that they have now."""
    return {FORMER_NAMES.get(name, name): value for name, value in settings.items()}


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
    check_settings(folder, named_as_now(found), settings, unknown)


def check_settings(
    path: str, found: dict[str, Any], settings: dict[str, Any], unknown: Collection[str] = ()
) -> None:
    """Raises UsageError, which names what differs, if `path` was made with other settings."""
    differing = settings_that_differ(found, settings, unknown)
    if differing:
        raise UsageError(
            f"{shown(path)} was made with other settings: {'; '.join(differing)}. Choose another "
            "output, or repeat the settings it was made with"
        )


def settings_that_differ(
    found: dict[str, Any], settings: dict[str, Any], unknown: Collection[str] = ()
) -> list[str]:
    """What differs between settings that were found and those of now, each in words.

    Args:
        unknown: settings that are not compared.
    """
    return [
        f"{shown(key)} is {found.get(key)!r} there and {settings.get(key)!r} here"
        for key in sorted((settings.keys() | found.keys()) - set(unknown))
        if found.get(key) != settings.get(key)
    ]
