"""The log of a run: `RUN/log.jsonl`, one line every `--log-every` steps.

A line is a JSON object. Lines with `event` say when and how the run was started. All others
hold `step`, `epoch`, `loss`, `lr`, `grad_norm`, `clips_per_s`, `data_wait_share`, `memory_gib`,
`time` (seconds since 1970), and what the task adds.
"""

from __future__ import annotations

import json
import math
import os
import platform
from typing import Any

import numpy as np
import torch

from savimae import __version__
from savimae.system.errors import SavimaeError, UsageError, one_line, shown
from savimae.system.files import atomic_file, parse_json, read_json
from savimae.system.settings import CONFIG, named_as_now
from savimae.training.scores import LOGGED, is_test, needed_of_test

LOG = "log.jsonl"


class RunLog:
    """Appends to the log of a run that begins or resumes at `step`.

    Lines of steps that are done again are dropped, so that a resumed run's log is that of one that
    was never stopped.
    """

    def __init__(self, run: str, step: int, tensorboard: bool, is_main: bool):
        self.path = os.path.join(run, LOG)
        self.is_main = is_main
        self.writer: Any = None
        if not is_main:
            return
        kept = [line for line in read_lines(run) if "event" in line or line.get("step", 0) <= step]
        with atomic_file(self.path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
        if tensorboard:
            self.writer = _tensorboard_writer(os.path.join(run, "tensorboard"), step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def write(self, record: dict[str, Any]) -> None:
        """Append a line."""
        if not self.is_main:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.writer is not None and "step" in record:
            for name, value in record.items():
                if isinstance(value, int | float) and name not in ("step", "time"):
                    self.writer.add_scalar(name, value, record["step"])


def check_tensorboard() -> None:
    """Raises SavimaeError, with what to install, where TensorBoard is missing."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise SavimaeError(
            "--tensorboard needs TensorBoard; install it with `pip install 'savimae[tensorboard]'`"
        ) from None


def _tensorboard_writer(folder: str, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder, purge_step=step + 1)


def read_lines(run: str) -> list[dict[str, Any]]:
    """The lines of a log, none if there is no log; a last one that a kill cut short is left out.

    Raises:
        SavimaeError: not a log.
    """
    path = os.path.join(run, LOG)
    try:
        with open(path, encoding="utf-8") as file:
            texts = file.read().split("\n")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise SavimaeError(f"{shown(path)}: not a log of savimae ({one_line(error)})") from error
    lines = []
    for number, text in enumerate(texts[:-1], 1):  # whole lines end in a line break
        try:
            line = parse_json(text)
        except ValueError:
            line = None
        if not (isinstance(line, dict) and _is_line(line)):
            raise SavimaeError(
                f"{shown(path)}:{number}: not a line of a savimae log; mend or remove this line"
            )
        lines.append(line)
    return lines


# Numbers that lines hold where they hold anything; those of a step and of a test, always.
_NUMBERS = frozenset((
    "step", "epoch", "loss", "loss_salient", "loss_other", *LOGGED,
    "lr", "grad_norm", "visible_tokens", "clips_per_s", "data_wait_share", "gflop", "gflop_per_s",
    "memory_gib", "time", "total_steps", "processes",
))  # fmt: skip
_OF_STEP = ("step", "epoch", "loss", "lr")


def _is_line(line: dict[str, Any]) -> bool:
    """Whether the values of this line can be compared, drawn and added up."""
    of_test = ("step", *needed_of_test(line)) if is_test(line) else ()
    needed = [*(_OF_STEP if "loss" in line else ()), *of_test]
    return all(
        _is_number(line[key]) for key in line if key in _NUMBERS and line[key] is not None
    ) and (all(_is_number(line.get(key)) for key in needed))


def _is_number(value: Any) -> bool:
    """Whether this is a finite number that a float can hold."""
    try:
        return isinstance(value, int | float) and math.isfinite(float(value))
    except OverflowError:
        return False


def read_log(run: str) -> list[dict[str, Any]]:
    """The steps in the log of a run.

    Raises:
        UsageError: not the folder of a run.
        SavimaeError: a log that cannot be read, or that has no step yet.
    """
    path = os.path.join(run, LOG)
    if os.path.isfile(run):
        owner = os.path.normpath(os.path.join(run, os.pardir, os.pardir))  # RUN/checkpoints/FILE
        which = shown(owner) if os.path.isfile(os.path.join(owner, LOG)) else "its --out"
        raise UsageError(f"{shown(run)}: a file; name the folder of its run ({which})")
    if not os.path.isfile(path):
        raise UsageError(f"{shown(run)}: no {LOG} in it; name the folder of a run (its --out)")
    steps = [line for line in read_lines(run) if "loss" in line]
    if not steps:
        raise SavimaeError(f"{shown(path)}: no step has been logged yet")
    return steps


def read_settings(run: str) -> dict[str, Any]:
    """The settings of a run, from its config.json.

    Raises:
        SavimaeError: it cannot be read.
    """
    path = os.path.join(run, CONFIG)
    try:
        return named_as_now(read_json(path))
    except (OSError, ValueError) as error:
        raise SavimaeError(f"{shown(path)}: {one_line(error)}") from error


# ------------------------------------------------------------------------------- comparison


def versions() -> dict[str, str]:
    return {
        "savimae": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
