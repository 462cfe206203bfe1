"""What a run leaves behind for people: `RUN/log.jsonl`, one line every so many steps.

A line is a JSON object. `event` lines say when a process of the run began, and on what; all others
hold `step`, `epoch`, `loss`, `lr`, `grad_norm`, `clips_per_s`, `data_wait_share`, `memory_gib`,
`time` (seconds since 1970), and what the task adds.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

from savimae.config import CONFIG
from savimae.errors import SavimaeError, UsageError, one_line, shown
from savimae.files import atomic_file, parse_json, read_json
from savimae.tables import table

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
    "step", "epoch", "loss", "loss_salient", "loss_other", "train_top1", "test_top1", "test_top5",
    "lr", "grad_norm", "visible_tokens", "clips_per_s", "data_wait_share", "gflop_per_s",
    "memory_gib", "time", "total_steps", "processes",
))  # fmt: skip
_OF_STEP = ("step", "epoch", "loss", "lr")
_OF_TEST = ("step", "test_top1", "test_top5")


def _is_line(line: dict[str, Any]) -> bool:
    """Whether what stands in this line can be compared, drawn and counted."""
    needed = [*(_OF_STEP if "loss" in line else ()), *(_OF_TEST if "test_top1" in line else ())]
    return all(
        _is_number(line[key]) for key in line if key in _NUMBERS and line[key] is not None
    ) and (all(_is_number(line.get(key)) for key in needed))


def _is_number(value: Any) -> bool:
    """A finite one that a float can hold."""
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
        return read_json(path)
    except (OSError, ValueError) as error:
        raise SavimaeError(f"{shown(path)}: {one_line(error)}") from error


# ------------------------------------------------------------------------------- comparison

# What is compared, the record it is taken from, and how it is written.
_ROWS = (
    ("steps", "step", "{:.0f}"),
    ("epochs", "epoch", "{:g}"),
    ("loss", "loss", "{:.4f}"),
    ("  salient tokens", "loss_salient", "{:.4f}"),
    ("  other tokens", "loss_other", "{:.4f}"),
    ("train top-1", "train_top1", "{:.3f}"),
    ("test top-1", "test_top1", "{:.3f}"),
    ("test top-5", "test_top5", "{:.3f}"),
    ("learning rate", "lr", "{:.3g}"),
    ("gradient norm", "grad_norm", "{:.3g}"),
    ("visible tokens", "visible_tokens", "{:.1f}"),
    ("clips/s", "clips_per_s", "{:.2f}"),
    ("waiting for data", "data_wait_share", "{:.2%}"),
    ("GFLOP/s", "gflop_per_s", "{:.1f}"),
    ("memory, GiB", "memory_gib", "{:.2f}"),
)


def compare_runs(runs: list[str]) -> str:
    """A table of runs: the last step and test of each, the lowest loss, the settings that differ.

    Raises:
        UsageError, SavimaeError: as `read_log` and `read_settings`.
    """
    logs = [read_log(run) for run in runs]
    settings = [read_settings(run) for run in runs]
    rows = [["", *(shown(os.path.normpath(run)) for run in runs)]]
    last = [
        {**next((line for line in reversed(read_lines(run)) if "test_top1" in line), {}), **log[-1]}
        for run, log in zip(runs, logs, strict=True)
    ]
    for title, key, form in _ROWS:
        values = [each.get(key) for each in last]
        if any(value is not None for value in values):
            cells = ["-" if value is None else form.format(value) for value in values]
            rows.append([title, *cells])
    lowest = [min(log, key=lambda line: line["loss"]) for log in logs]
    rows.append(["lowest loss", *(f"{line['loss']:.4f} at {line['step']}" for line in lowest)])
    keys = dict.fromkeys(key for each in settings for key in each)
    for key in keys:
        values = [each.get(key) for each in settings]
        if any(value != values[0] for value in values):
            cells = ["-" if value is None else shown(str(value)) for value in values]
            rows.append([shown(key), *cells])
    return table(rows)
