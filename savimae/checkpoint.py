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
| `extra`     | what the task keeps beside: averaged weights of fine-tuning             |
| `is_tested` | there if the test that is due after these steps is done                 |

`last.pt` is another name (a hard link) of the newest one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from typing import Any

import torch

from savimae.errors import SavimaeError, one_line, shown
from savimae.files import atomic_file, remove_leftovers, temporary_name

FOLDER = "checkpoints"
LAST = "last.pt"
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


def read_file(path: str) -> dict[str, Any]:
    """The dictionary in a file that torch.save wrote, loaded safely, on the CPU.

    Raises:
        SavimaeError: no such file, truncated, not a dictionary, or not plain data.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except FileNotFoundError:
        raise SavimaeError(f"{shown(path)}: no such file") from None
    except Exception as error:  # unpickling bad bytes raises many types
        raise SavimaeError(
            f"{shown(path)}: not a checkpoint that can be loaded safely, or a truncated one"
        ) from error
    if not isinstance(content, dict):
        raise SavimaeError(f"{shown(path)}: holds no dictionary of weights")
    return content


def read_training_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint to resume from.

    Raises:
        SavimaeError: not one; an older checkpoint of the same folder that is whole is named.
    """
    try:
        content = read_file(path)
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
