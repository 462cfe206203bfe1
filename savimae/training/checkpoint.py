"""Checkpoints of a run: `checkpoints/epoch-0010.pt` or `step-00000420.pt`, and `last.pt`.

A checkpoint holds tensors and plain data only, and loads with `weights_only=True`:

| key         | what it is                                                              |
|-------------|-------------------------------------------------------------------------|
| `model`     | parameters under the names of published checkpoints                     |
| `config`    | shape of the model                                                      |
| `optimizer` | state of AdamW                                                          |
| `step`      | steps done                                                              |
| `settings`  | of the run; a run with others does not resume from it                   |
| `interval`  | sums since the last line of the log                                     |
| `versions`  | of savimae, Python, torch and NumPy                                     |
| `extra`     | state of the task itself, such as the averaged weights of fine-tuning   |
| `is_tested` | true if the test after these steps is done; else it is not there        |

`last.pt` is another name (a hard link) of the newest one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pickletools
import re
import shutil
import warnings
import zipfile
from typing import Any

import torch

from savimae.system.errors import SavimaeError, one_line, shown
from savimae.system.files import atomic_file, remove_leftovers, temporary_name

FOLDER = "checkpoints"
LAST = "last.pt"
PICKLES = 4  # of torch's old format, before its storages: magic, version, system, content
NAME = re.compile(r"(?:epoch-\d{4,}|step-\d{8,})\.pt")
TRAINING_KEYS = ("model", "config", "optimizer", "step", "settings", "interval", "versions")


def checkpoint_name(step: int, steps_per_epoch: int) -> str:
    """`epoch-0010.pt` at the end of an epoch, else `step-00000420.pt`."""
    epoch, rest = divmod(step, steps_per_epoch)
    return f"step-{step:08}.pt" if rest else f"epoch-{epoch:04}.pt"


def write_checkpoint(run: str, name: str, content: dict[str, Any], keep: int) -> str:
    """Write a checkpoint of `run`, make it the last, prune all but the `keep` newest.

    Returns:
        Its path.

    Raises:
        SavimaeError: it cannot be written; what was there stays.
    """
    folder = os.path.join(run, FOLDER)
    path = os.path.join(folder, name)
    try:
        with atomic_file(path, durable=True) as file:
            torch.save(content, file)
        _link(path, os.path.join(folder, LAST))
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise SavimaeError(
            f"{shown(path)}: cannot be written ({one_line(cause)}); earlier checkpoints are whole: "
            "make room and run the same command again"
        ) from error
    for old in _numbered(folder)[keep:]:
        if old != path:
            os.unlink(old)
    return path


def _link(path: str, target: str) -> None:
    temporary = temporary_name(target)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
    os.replace(temporary, target)


def _numbered(folder: str) -> list[str]:
    """Checkpoints but for `last.pt`, those written last first."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    paths = [os.path.join(folder, name) for name in names if NAME.fullmatch(name)]
    return sorted(paths, key=lambda path: (os.stat(path).st_mtime_ns, path), reverse=True)


def remove_temporary(run: str) -> None:
    """Remove what killed processes left half-written."""
    folder = os.path.join(run, FOLDER)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    # .epoch-0010.pt.<hash>.<writer>: the target is in the name.
    targets = {match[1] for name in names if (match := re.match(r"\.(.+\.pt)\.", name))}
    remove_leftovers(os.path.join(folder, target) for target in targets)


def last_checkpoint(run: str) -> str | None:
    """The path of the checkpoint to resume from; None for a run without one."""
    folder = os.path.join(run, FOLDER)
    last = os.path.join(folder, LAST)
    if os.path.isfile(last):
        return last
    return next(iter(_numbered(folder)), None)


def read_file(path: str, mapped: bool = False) -> dict[str, Any]:
    """The dictionary in a file that torch.save wrote, loaded safely, on the CPU.

    With `mapped` tensors are read when they are used, for a look at the rest of a large file.

    Raises:
        SavimaeError: no such file, truncated, not a dictionary, or not plain data.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's: what matters raises
            content = _load(path, mapped)
    except FileNotFoundError:
        raise SavimaeError(f"{shown(path)}: no such file") from None
    except Exception as error:  # unpickling bad bytes raises many types
        raise SavimaeError(
            f"{shown(path)}: not a checkpoint that can be loaded safely, or a truncated one"
        ) from error
    if not isinstance(content, dict):
        raise SavimaeError(f"{shown(path)}: holds no dictionary of weights")
    return content


def _load(path: str, mapped: bool) -> Any:
    """What torch.save wrote in either of its formats. Raises whatever bad bytes make it raise.

    Nothing is allocated for what the file claims to hold and, by its size, cannot.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > size:  # torch.save does not compress
            raise ValueError(f"{size} bytes claim to hold {claimed}")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    with _Whole(path) as file:  # torch.save of before 1.6: pickles, then the storages
        for _ in range(PICKLES):
            claimed = _claimed_values(file)
        if claimed > size:
            raise ValueError(f"{size} bytes claim to hold {claimed} values")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=False)


class _Whole(io.FileIO):
    """A file to read, of which nothing is asked that is not there: Python allocates first."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left)) or b""

    def readinto(self, buffer: Any, /) -> int:
        return super().readinto(buffer) or 0


def _claimed_values(file: io.FileIO) -> int:
    """Values of all storages that the pickle at the file's position refers to."""
    claimed, number = 0, 0
    for operation, argument, _ in pickletools.genops(file):
        if operation.name == "BINPERSID":  # ("storage", type, key, place, values, None)
            claimed += number
        elif type(argument) is int and "PUT" not in operation.name and "GET" not in operation.name:
            number = argument
    return claimed


def is_plain_data(value: Any) -> bool:
    """Whether this is text, numbers, and lists and dictionaries with text as keys of such."""
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(
            map(is_plain_data, value.values())
        )
    if isinstance(value, list | tuple):
        return all(map(is_plain_data, value))
    return value is None or isinstance(value, str | int | float)


def read_training_checkpoint(path: str, mapped: bool = False) -> dict[str, Any]:
    """A checkpoint to resume from; for `mapped` see `read_file`.

    Raises:
        SavimaeError: not one; an older checkpoint of the same folder that is whole is named.
    """
    try:
        content = read_file(path, mapped)
        missing = [key for key in TRAINING_KEYS if key not in content]
        if missing:
            raise SavimaeError(
                f"{shown(path)}: no {', '.join(missing)} in it: weights to start from (--init) "
                "rather than a run to resume"
            )
    except SavimaeError as error:
        other = _whole_one(os.path.dirname(path), path)
        if other is None:
            raise
        raise SavimaeError(
            f"{error}. {shown(other)} is whole: go on from it with --resume {shown(other)}"
        ) from error
    return content


def _whole_one(folder: str, broken: str) -> str | None:
    """The newest checkpoint in `folder` that can be resumed from."""
    for path in _numbered(folder):
        if path != broken:
            with contextlib.suppress(SavimaeError):
                if not [key for key in TRAINING_KEYS if key not in read_file(path)]:
                    return path
    return None


@dataclasses.dataclass(frozen=True)
class SaveEvery:
    """When to save: every so many epochs, steps or minutes."""

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None

    def __str__(self) -> str:
        """As `parse` reads it."""
        if self.epochs is not None:
            return f"{self.epochs}ep"
        return f"{self.minutes:g}min" if self.steps is None else f"{self.steps}steps"

    @classmethod
    def parse(cls, text: str) -> SaveEvery:
        """ "10ep", "200steps" or "15min".

        Raises:
            ValueError: anything else.
        """
        for suffix, field in (("ep", "epochs"), ("steps", "steps"), ("min", "minutes")):
            number = text.removesuffix(suffix)
            if number != text and number.isdecimal() and int(number) > 0:
                return cls(**{field: int(number)})
        raise ValueError(f"{text!r} is not like 10ep, 200steps or 15min")
