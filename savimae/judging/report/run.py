"""A run as its folder holds it: what a report knows before it looks at a video."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Iterator
from typing import Any

from savimae.model.config import LATER, VideoMAEConfig
from savimae.model.loss import means_alone
from savimae.system.errors import SavimaeError, UsageError, one_line, shown
from savimae.system.settings import CONFIG
from savimae.training.log import LOG, read_lines, read_settings
from savimae.training.outputs import CLASSIFY, TASKS
from savimae.training.scores import is_test

PRETRAINING, CLASSIFIER, STUDY = "pretraining", "classifier", "study"  # kinds of what is reported
DAMAGED = f"its {CONFIG} or {LOG} is not as savimae writes it; mend or remove it"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of pretraining or of fine-tuning, as its folder holds it."""

    folder: str
    settings: dict[str, Any]
    lines: list[dict[str, Any]]  # of the log

    @classmethod
    def read(cls, folder: str) -> Run:
        """Raises UsageError for what is no run, SavimaeError for files that cannot be read."""
        run = cls(folder, read_settings(folder), read_lines(folder))
        if run.kind not in (PRETRAINING, CLASSIFIER):
            raise UsageError(
                f"{shown(folder)}: holds neither a run nor a study; name the --out of `savimae "
                "train`, `finetune` or `study`"
            )
        if not run.steps:
            raise SavimaeError(f"{shown(folder)}/{LOG}: no step has been logged yet")
        return run

    @property
    def kind(self) -> Any:
        return self.settings.get("output")

    @property
    def name(self) -> str:
        return name_of(self.folder)

    @functools.cached_property
    def steps(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if "loss" in line]

    @functools.cached_property
    def tests(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if is_test(line)]

    @property
    def task(self) -> str:
        """Of a classifier. Raises ValueError for one that is not known."""
        task = self.settings.get("task", CLASSIFY)
        if task not in TASKS:
            raise ValueError(f"task is {task!r}")
        return str(task)

    @functools.cached_property
    def starts(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("event") == "start"]

    @property
    def total_steps(self) -> int:
        """Of the whole run; where the log does not say, those that are done."""
        known = [int(line["total_steps"]) for line in self.starts if line.get("total_steps")]
        return known[-1] if known else int(self.steps[-1]["step"])

    @functools.cached_property
    def shape(self) -> VideoMAEConfig:
        """Raises SavimaeError for settings that are no model."""
        names = {each.name for each in dataclasses.fields(VideoMAEConfig)}
        names.remove("checkpoint_activations")  # no part of it, and not recorded
        try:
            names -= {name for name in LATER if name not in self.settings}
            return VideoMAEConfig(**{name: self.settings[name] for name in names})
        except (KeyError, TypeError, ValueError) as error:
            raise SavimaeError(
                f"{shown(os.path.join(self.folder, CONFIG))}: {one_line(error)}"
            ) from error

    @property
    def seconds(self) -> float:
        """Time of training: between the lines of the log, without what lay between two starts."""
        total, before = 0.0, None
        for line in self.lines:
            if "time" in line:
                if "event" not in line and before is not None:
                    total += max(0.0, line["time"] - before)
                before = line["time"]
        return total

    def number_of_videos(self, name: str = "videos") -> str:
        """As config.json says it, which is followed by a hash of their names."""
        return count(str(self.settings.get(name, "")).split(" ")[0])

    def find(self, path: str) -> str | None:
        """Where a path lies that the run was told; None if it is gone.

        Relative paths started at the folder where the command was typed. Logs of older versions do
        not say which that was: then it may be that of now, or the one above the run.
        """
        last = self.starts[-1].get("folder") if self.starts else None
        above = os.path.dirname(os.path.abspath(self.folder))
        folders = [last] if isinstance(last, str) else [os.getcwd(), above]
        paths = [os.path.join(folder, path) for folder in folders]
        return next((each for each in paths if os.path.exists(each)), None)


@contextlib.contextmanager
def reading(path: str, remedy: str) -> Iterator[None]:
    """Content that is not what it should be becomes an error that names its file.

    Raises:
        SavimaeError: instead of what Python says of values of other kinds.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise SavimaeError(f"{shown(path)}: {remedy} ({one_line(error)})") from error


def loss_of_means(shape: VideoMAEConfig) -> float | None:
    """See `means_alone`; None where targets are not normalised."""
    n = shape.tubelet_size * shape.patch_size**2
    return means_alone(n) if shape.norm_target else None


def check_folder(folder: str) -> None:
    """Raises UsageError for what is not the folder of a run or of a study."""
    if not os.path.isfile(os.path.join(folder, CONFIG)):
        what = "no such folder" if not os.path.exists(folder) else f"no {CONFIG} in it"
        raise UsageError(
            f"{shown(folder)}: {what}; name the --out of `savimae train`, `finetune` or `study`"
        )


def name_of(path: str) -> str:
    """What a folder or a file is called, without those around it."""
    return shown(os.path.basename(os.path.abspath(path)) or path)


def count(number: Any) -> str:
    """12345 -> 12,345; other text stays."""
    text = str(number)
    return f"{int(text):,}" if text.isdecimal() else text


def clock(seconds: float) -> str:
    """Seconds since 1970 as a date and a time, UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
