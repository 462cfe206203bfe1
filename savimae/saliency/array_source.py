"""Where the arrays of videos are, a folder of them or a pack, and how they are called there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from savimae.saliency.arrays import array_path, load_array
from savimae.saliency.pack import Pack, is_pack
from savimae.system.errors import SavimaeError, UsageError, shown


class ArraySource(Protocol):
    """Arrays, each under the end of its video's name that is left of a cut; see `find_cut`."""

    def __contains__(self, name: str) -> bool: ...

    def where(self, name: str) -> str:
        """Where the array of this name is or would be, for messages."""

    def load(self, name: str) -> np.ndarray:
        """The array of this name. Raises SavimaeError if it is missing or damaged."""


class ArrayFolder:
    """The arrays that `savimae preprocess` wrote: `Class/video.npy` for the name `Class/video`."""

    def __init__(self, root: str):
        self.root = root
        self._listings: dict[str, set[str]] = {}  # by folder; those that were asked for

    def __contains__(self, name: str) -> bool:
        folder, file = os.path.split(array_path(self.root, name))
        if folder not in self._listings:
            there = os.path.isdir(folder)
            self._listings[folder] = set(os.listdir(folder)) if there else set()
        return file in self._listings[folder]

    def where(self, name: str) -> str:
        return shown(array_path(self.root, name))

    def load(self, name: str) -> np.ndarray:
        return load_array(array_path(self.root, name))


def open_arrays(root: str) -> ArraySource:
    """The arrays in the folder `root`.

    Raises:
        UsageError: no such folder.
        SavimaeError: a pack of which parts are missing or damaged.
    """
    if not os.path.isdir(root):
        raise UsageError(
            f"{shown(root)}: no such folder of arrays; make it with `savimae preprocess`"
        )
    return Pack(root) if is_pack(root) else ArrayFolder(root)


def cut_name(name: str, cut: int) -> str:
    """What is left of a video's name without its first `cut` folders."""
    return name.split("/", cut)[-1]


def find_cut(root: str, names: Sequence[str]) -> int:
    """How many folders at the start of the videos' names the arrays in `root` lack.

    Arrays are called as the videos of the data set that was preprocessed, while a list may reach
    the same videos from another folder: `datasets/UCF-101/Class/video` for `Class/video.npy`. The
    number is the same for all videos, and the least with which all have arrays of their own. Looks
    at names only, not into arrays.

    Raises:
        UsageError: no such folder.
        SavimaeError: with no number all have arrays; or two would have the same one; or as
            `open_arrays`.
    """
    arrays = open_arrays(root)
    fewest: list[str] | None = None  # the missing arrays with the number that fits best
    shared = ""
    last = 0
    for cut in range(min(name.count("/") for name in names) + 1):
        of_end: dict[str, str] = {}
        for name in names:
            other = of_end.setdefault(cut_name(name, cut), name)
            if other != name:
                shared = (
                    f"; without {_folders(cut)} {shown(other)} and {shown(name)} would share "
                    f"{arrays.where(cut_name(name, cut))}"
                )
        if shared:
            break
        missing = [end for end in of_end if end not in arrays]
        if not missing:
            return cut
        last = cut
        if fewest is None or len(missing) < len(fewest):
            fewest = missing
    if fewest is None:
        raise AssertionError("the names of videos differ")
    tried = f"; tried the list's names, and these without up to {_folders(last)}" if last else ""
    raise SavimaeError(
        f"{arrays.where(fewest[0])}: no such array ({len(fewest)} of {len(names)} are missing)"
        f"{tried}{shared}; run `savimae preprocess` on the data again"
        + (", and `savimae pack`" if isinstance(arrays, Pack) else "")
        + ", or use the list that its --list writes"
    )


def cut_words(root: str, name: str, cut: int) -> str:
    """How the arrays of videos are found with such a cut, by the example of one."""
    return (
        f"arrays are called like the videos without {_folders(cut)}: "
        f"{open_arrays(root).where(cut_name(name, cut))} is that of {shown(name)}"
    )


def _folders(cut: int) -> str:
    return "their first folder" if cut == 1 else f"their first {cut} folders"
