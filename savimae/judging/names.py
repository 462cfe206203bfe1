"""What pictures call runs and checkpoints: the parts in which their paths differ."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from savimae.system.errors import UsageError, shown

_SAVED = re.compile(r"(epoch|step)-0*(\d+)\.pt")  # a checkpoint of a run


def short_names(paths: Sequence[str]) -> list[str]:
    """A name for each path, all different, without what all paths begin or end with.

    `a/run/checkpoints/step-00000100.pt` and `a/run/checkpoints/last.pt` are "step 100" and "last",
    `a/run` and `b/run` are "a" and "b", and a path alone has its last part.

    Raises:
        UsageError: a path comes twice.
    """
    places = [os.path.abspath(path) for path in paths]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise UsageError(f"{shown(paths[index])}: is named twice; name it once")
    parts = [_parts(place) for place in places]
    if len(parts) == 1:
        return [shown(parts[0][-1])]
    for end in (0, -1):
        while all(len(each) > 1 for each in parts) and len({each[end] for each in parts}) == 1:
            for each in parts:
                del each[end]
    names = [shown("/".join(each)) for each in parts]
    return names if len(set(names)) == len(names) else [shown(place) for place in places]


def _parts(place: str) -> list[str]:
    """Folders and file of a path; a checkpoint of a run is called by its epoch or step."""
    parts = place.split(os.sep)
    is_of_run = parts[-2:-1] == ["checkpoints"]
    saved = _SAVED.fullmatch(parts[-1])
    if saved:
        parts[-1] = f"{saved[1]} {saved[2]}"
    elif is_of_run and parts[-1] == "last.pt":
        parts[-1] = "last"
    if is_of_run:
        del parts[-2]
    return parts
