"""Logs, their curves, and tables of runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from media import random_bytes, savimae

from savimae.judging.compare import compare_runs
from savimae.judging.pictures import plot_runs
from savimae.system.errors import SavimaeError, UsageError
from savimae.training.log import RunLog, read_log


def make_run(folder, final_loss: float, lr: float = 1e-3, salient: bool = True, n: int = 20):
    folder.mkdir()
    settings = {
        "mask_type": "savi" if salient else "tube", "lr": lr, "seed": 0,
        "norm_target": True, "tubelet_size": 2, "patch_size": 16,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    with RunLog(str(folder), 0, False, True) as log:
        log.write({"event": "start", "step": 0})
        for step in range(1, n + 1):
            log.write(
                {
                    "step": step, "epoch": step / 2, "lr": lr * (1 - step / n),
                    "loss": 1 + (final_loss - 1) * step / n, "grad_norm": None,
                    "loss_salient": 1.1 if salient else None, "loss_other": 0.9,
                    "clips_per_s": 12.5, "data_wait_share": 0.004,
                }
            )  # fmt: skip
    return str(folder)


def test_resuming_drops_the_lines_of_steps_that_are_done_again(tmp_path):
    run = make_run(tmp_path / "run", 0.5)
    with open(tmp_path / "run/log.jsonl", "a") as file:
        file.write('{"step": 21, "lo')  # a kill in the middle of a line
    assert len(read_log(run)) == 20
    with RunLog(run, 7, False, True) as log:
        log.write({"step": 8, "epoch": 4, "lr": 1e-3, "loss": 0.1})
    assert [line["step"] for line in read_log(run)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert '"event": "start"' in (tmp_path / "run/log.jsonl").read_text()


def test_other_ranks_write_nothing(tmp_path):
    with RunLog(str(tmp_path / "run"), 0, False, False) as log:
        log.write({"step": 1})
    assert not (tmp_path / "run").exists()


def test_compare_shows_where_runs_are_and_how_they_differ(tmp_path):
    runs = [
        make_run(tmp_path / "a", 0.5),
        make_run(tmp_path / "b", 0.75, lr=2e-3, salient=False, n=10),
    ]
    with open(tmp_path / "b/log.jsonl", "a") as file:
        for top1 in (0.25, 0.5):
            file.write(json.dumps({"step": 10, "test_top1": top1, "test_top5": 1.0}) + "\n")
    table = [line.split() for line in compare_runs(runs).splitlines()]
    assert table[0] == runs
    rows = {" ".join(line[:-2]): line[-2:] for line in table[1:]}
    assert rows["steps"] == ["20", "10"]
    assert rows["loss"] == ["0.5000", "0.7500"]
    assert rows["salient tokens"] == ["1.1000", "-"]
    assert rows["test top-1"] == ["-", "0.500"]
    assert "train top-1" not in rows
    assert rows["waiting for data"] == ["0.40%", "0.40%"]
    assert rows["lr"] == ["0.001", "0.002"]
    assert rows["mask_type"] == ["savi", "tube"]
    assert "seed" not in rows
    assert "gradient norm" not in rows  # nobody has one
    assert ["lowest", "loss", "0.5000", "at", "20", "0.7500", "at", "10"] in table


def test_the_commands(tmp_path):
    runs = [make_run(tmp_path / "a", 0.5), make_run(tmp_path / "b", 0.75)]
    done = savimae("plot", *runs, "--out", tmp_path / "x.png")
    assert (done.returncode, done.stdout) == (0, f"wrote {tmp_path / 'x.png'}\n")
    done = savimae("compare", *runs)
    assert done.returncode == 0
    assert "0.7500" in done.stdout


@pytest.mark.parametrize("command", ["plot", "compare"])
def test_what_is_not_a_run_is_one_line(tmp_path, command):
    (tmp_path / "empty").mkdir()
    run = make_run(tmp_path / "run", 0.5)
    random_bytes(tmp_path / "run/log.jsonl")
    for folder, code, message in (
        (tmp_path / "empty", 2, "no log.jsonl in it"),
        (tmp_path / "missing", 2, "no log.jsonl in it"),
        (run, 1, "log.jsonl"),
    ):
        done = savimae(command, folder, cwd=tmp_path)
        assert done.returncode == code
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "loss.png").exists()


@pytest.mark.parametrize("command", ["plot", "compare"])
def test_a_checkpoint_is_not_a_run_but_tells_which(tmp_path, command):
    run = Path(make_run(tmp_path / "run", 0.5))
    (run / "checkpoints").mkdir()
    (run / "checkpoints/last.pt").touch()
    done = savimae(command, "run/checkpoints/last.pt", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2, "savimae: run/checkpoints/last.pt: a file; name the folder of its run (run)\n"
    )  # fmt: skip
    (tmp_path / "x.pt").touch()
    done = savimae(command, "x.pt", cwd=tmp_path)
    assert done.stderr == "savimae: x.pt: a file; name the folder of its run (its --out)\n"


def test_a_log_without_steps_and_a_foreign_line(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.jsonl").write_text('{"event": "start"}\n')
    with pytest.raises(SavimaeError, match="no step has been logged yet"):
        read_log(str(run))
    (run / "log.jsonl").write_text("[1, 2]\n")
    with pytest.raises(SavimaeError, match=r"log\.jsonl:1: not a line of a savimae log"):
        read_log(str(run))
    with pytest.raises(UsageError, match="name the folder of a run"):
        read_log(str(tmp_path / "nowhere"))


def test_matplotlib_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SavimaeError, match=r"pip install 'savimae\[figures\]'"):
        plot_runs([make_run(tmp_path / "a", 0.5)], str(tmp_path / "x.png"))


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000, '{"step": ' + "9" * 5000 + "}", '{"loss": 1.0}', '{"step": [1]}',
        '{"step": 1, "epoch": 1, "lr": 1e-3, "loss": NaN}', '{"step": 1e999}',
        '{"step": 1, "epoch": 1, "lr": 1e-3, "loss": "1"}', '{"step": 1, "test_top1": 0.5}',
        '{"step": 1, "epoch": 1, "lr": ' + "9" * 400 + ', "loss": 1}',
    ],
)  # fmt: skip
def test_lines_that_cannot_be_compared_are_named(tmp_path, line):
    run = make_run(tmp_path / "run", 0.5, n=2)
    with open(tmp_path / "run/log.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(SavimaeError, match=r"log\.jsonl:4: not a line of a savimae log"):
        compare_runs([run])


def test_settings_of_any_text_are_shown_in_a_table(tmp_path):
    runs = [make_run(tmp_path / name, 0.5) for name in "ab"]
    (tmp_path / "b/config.json").write_text('{"mask_type": "\\ud800", "\\udcff\\n": 1}')
    table = compare_runs(runs)
    assert "\\ud800" in table
    assert table.encode()
