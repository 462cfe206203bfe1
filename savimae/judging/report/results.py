"""What other commands found of a run: results, told by their files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from savimae.judging.report.run import CLASSIFIER, PRETRAINING, Run, reading
from savimae.system.errors import SavimaeError, UsageError, one_line, shown
from savimae.system.files import parse_json
from savimae.training.checkpoint import FOLDER
from savimae.training.classifier_test import RESULT
from savimae.training.log import LOG, read_settings

Made = TypeVar("Made")
DEPTH = 2  # folders below a run in which results are looked for
# Kinds of results are called as the commands that make them. These files tell them; a classifier is
# told by its config.json, and an evaluation by what is in it, wherever it was written.
PROBE, TEST, RECONSTRUCTIONS, NEIGHBORS, ATTENTION, EVALUATION, TUNED = KINDS = (
    "probe", "test", "reconstruct", "neighbors", "attention", "evaluate", "finetune",
)  # fmt: skip
FILES = {
    "probe.json": PROBE,
    RESULT: TEST,
    "reconstruction.json": RECONSTRUCTIONS,
    "neighbors.json": NEIGHBORS,
    "attention.json": ATTENTION,
}


class Result(NamedTuple):
    """What another command found."""

    kind: str  # of KINDS
    path: str  # its folder, or the file of `evaluate`
    content: Any  # of its JSON; of a classifier its run

    @property
    def model(self) -> str | None:
        """What the model is called that it is of, as far as the result says so."""
        recorded = None
        if self.kind == TUNED:
            recorded = self.content.settings.get("checkpoint")
        elif self.kind in (PROBE, NEIGHBORS) and isinstance(self.content, dict):
            recorded = self.content.get("checkpoint")
        if not isinstance(recorded, str):
            return None
        folder, name = os.path.split(os.path.abspath(recorded))
        if os.path.basename(folder) == FOLDER:  # RUN/checkpoints/last.pt
            return os.path.basename(os.path.dirname(folder))
        return name


def find_results(folder: str, given: Sequence[str]) -> list[Result]:
    """What lies inside the folder of a run, then what was named.

    Raises:
        UsageError: something was named that is no result.
        SavimaeError: a result that cannot be read.
    """
    found = _results_inside(folder)
    seen = {os.path.realpath(each.path) for each in found}
    for path in given:
        results = read_results(path)
        if not results:
            raise UsageError(
                f"{shown(path)}: no result in it; name the --out of `savimae probe`, `test`, "
                "`finetune`, `evaluate`, `reconstruct`, `neighbors` or `attention`"
            )
        found += [each for each in results if os.path.realpath(each.path) not in seen]
        seen |= {os.path.realpath(each.path) for each in results}
    return found


def _results_inside(folder: str) -> list[Result]:
    found = []
    top = os.path.normpath(folder)
    for where, folders, files in os.walk(top):
        depth = 0 if where == top else os.path.relpath(where, top).count(os.sep) + 1
        folders[:] = sorted(each for each in folders if each != FOLDER and depth < DEPTH)
        if where != top:
            if _kind_of_run(where) is not None:
                folders.clear()
            found += _results_in(where)
        names = sorted(each for each in files if each.endswith(".json") and each not in FILES)
        for name in names:
            found += _evaluation(os.path.join(where, name))
    return found


def read_results(path: str) -> list[Result]:
    """The results in a folder, or in the file of `evaluate`; none if there are none.

    Raises:
        UsageError: no such file or folder, or another run of pretraining.
        SavimaeError: a result that cannot be read.
    """
    if not os.path.exists(path):
        raise UsageError(f"{shown(path)}: no such file or folder")
    if not os.path.isdir(path):
        return _evaluation(path)
    if _kind_of_run(path) == PRETRAINING:
        raise UsageError(
            f"{shown(path)}: another run of pretraining; it has a report of its own, and `savimae "
            "compare` holds runs against each other"
        )
    return _results_in(path)


def _kind_of_run(folder: str) -> Any:
    """What the run in a folder trains; None if there is no run."""
    if not os.path.isfile(os.path.join(folder, LOG)):
        return None
    return read_settings(folder).get("output")


def _results_in(folder: str) -> list[Result]:
    if _kind_of_run(folder) == CLASSIFIER:
        return [Result(TUNED, folder, Run.read(folder))]
    return [
        Result(kind, folder, _read(os.path.join(folder, name)))
        for name, kind in FILES.items()
        if os.path.isfile(os.path.join(folder, name))
    ]


def _evaluation(path: str) -> list[Result]:
    """The file of `evaluate` as a result; none if it is something else."""
    try:
        with open(path, "rb") as file:
            content = parse_json(file.read())
    except (OSError, ValueError):
        return []
    if not isinstance(content, list) or not content:
        return []
    is_one = all(isinstance(each, dict) and "loss_of_mean" in each for each in content)
    return [Result(EVALUATION, path, content)] if is_one else []


def own_test(run: Run) -> Result | None:
    """The test at the end of fine-tuning, if it came to it.

    Raises:
        SavimaeError: it cannot be read.
    """
    path = os.path.join(run.folder, RESULT)
    if run.kind != CLASSIFIER or not os.path.isfile(path):
        return None
    return Result(TEST, run.folder, _read(path))


def _read(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            return parse_json(file.read())
    except (OSError, ValueError) as error:
        raise SavimaeError(
            f"{shown(path)}: damaged ({one_line(error)}); make it again, or leave it out"
        ) from error


def checked(result: Result, make: Callable[[Result], Made]) -> Made:
    """What `make` makes of a result.

    Raises:
        SavimaeError: it is not what its command writes.
    """
    with reading(
        result.path,
        f"not a result as `savimae {result.kind}` writes it; make it again, or leave it out",
    ):
        return make(result)
