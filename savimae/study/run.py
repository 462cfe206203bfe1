"""A study from its first cell to its report; interrupted at any point, it goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from savimae.data.shards import Shard
from savimae.judging.pictures import check_matplotlib
from savimae.judging.probe import check_sklearn, check_token_memory, labelled_sides
from savimae.study.cell import run_cell
from savimae.study.plan import CELLS, Cell, Study
from savimae.study.report import summary_table, write_report
from savimae.system.errors import EXIT_FAILURE, SavimaeError, UsageError, shown
from savimae.system.files import refuse_file
from savimae.system.settings import check_config, record_config
from savimae.training.distributed import World
from savimae.training.pretrain import check_training


def check_study(study: Study) -> None:
    """Raise what would stop a study before its first step. Nothing is written.

    Raises:
        UsageError, SavimaeError: data or options that do not fit, a folder of another study, or
            scikit-learn or matplotlib is not installed.
    """
    check_sklearn()
    check_matplotlib()
    refuse_file(study.out)
    check_config(study.out, study.settings())
    judges = study.judges
    labelled, _ = labelled_sides(
        study.train, study.test, study.root, judges.label_counts, judges.allow_overlap
    )
    n_videos = len(labelled.train) + len(labelled.test)
    # The folder of all cells is that of no run.
    nowhere = os.path.join(study.out, CELLS)
    for way in study.ways:
        shape = way.config.model_shape()
        if judges.layer is not None and judges.layer > shape.encoder_depth:
            raise UsageError(
                f"--layer {judges.layer} is not one of the {shape.encoder_depth} blocks of "
                f"{way.name}"
            )
        if judges.attentive:
            check_token_memory(shape, 1, n_videos)
        try:
            config = replace(way.config, out=nowhere, steps=study.budget.steps)
            check_training(config, World())
        except SavimaeError as error:
            raise type(error)(f"{way.name}: {error}") from error


def run_study(study: Study, shard: Shard | None = None) -> int:
    """Do the cells that are left, one after the other, then write the report.

    Args:
        shard: only every `count`-th cell from the `index`-th, and no report.

    Returns:
        The exit code: 0, 1 if a cell failed, or `errors.EXIT_STOPPED`.

    Raises:
        UsageError, SavimaeError: as `check_study`.
    """
    cells = study.cells()
    if shard is not None:
        if shard.count > len(cells):
            raise UsageError(f"a study of {len(cells)} cells has no {shard.count} parts")
        cells = cells[shard.index :: shard.count]
    check_study(study)
    os.makedirs(study.out, exist_ok=True)
    record_config(study.out, study.settings())
    failed = []
    for number, cell in enumerate(cells, 1):
        if os.path.exists(cell.result):
            print(f"cell {number} of {len(cells)}: {cell.name}: done before", flush=True)
            continue
        print(f"cell {number} of {len(cells)}: {cell.name}", flush=True)
        try:
            if code := run_cell(study, cell):
                return code
        except UsageError as error:
            raise UsageError(f"{cell.name}: {error}") from error
        except SavimaeError as error:  # the other cells may do better
            print(f"failed: {cell.name}: {error}", file=sys.stderr, flush=True)
            failed.append(cell)
    if shard is None and len(failed) < len(cells):
        print_report(study)
    return _end(failed)


def _end(failed: Sequence[Cell]) -> int:
    if failed:
        names = "; ".join(cell.name for cell in failed)
        print(f"{len(failed)} cells failed: {names}", file=sys.stderr, flush=True)
    return EXIT_FAILURE if failed else 0


def print_report(study: Study) -> int:
    """Write the report of what is done, print its table; returns 0, or 1 if cells are missing.

    Raises:
        UsageError: the folder is of another study.
        SavimaeError: as `write_report`.
    """
    check_config(study.out, study.settings())
    summary, paths = write_report(study)
    print(summary_table(summary))
    for path in paths:
        print(f"wrote {shown(path)}")
    if summary.missing:
        print(f"not done yet: {'; '.join(summary.missing)}", file=sys.stderr)
    return EXIT_FAILURE if summary.missing else 0
