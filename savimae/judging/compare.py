"""A table of runs."""

from __future__ import annotations

import os

from savimae.system.errors import shown
from savimae.system.tables import table
from savimae.training.log import read_lines, read_log, read_settings
from savimae.training.scores import MEASURED, is_test

# What is compared, the record it is taken from, and how it is written.
_ROWS = (
    ("steps", "step", "{:.0f}"),
    ("epochs", "epoch", "{:g}"),
    ("loss", "loss", "{:.4f}"),
    ("  salient tokens", "loss_salient", "{:.4f}"),
    ("  other tokens", "loss_other", "{:.4f}"),
    *(
        (f"{prefix}{score.words}", key, "{:.3f}")
        for measured in MEASURED.values()
        for prefix, score, key in (
            ("train ", measured.training, measured.training.name),
            *(("test ", score, f"test_{score.name}") for score in measured.scores),
        )
    ),
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
        {**next((line for line in reversed(read_lines(run)) if is_test(line)), {}), **log[-1]}
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
