"""`savimae study` from its first cell to its report."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil

import pytest
from media import encode, moving_frames, savimae
from pages import Page
from runs import finish, hooked, log_of, same_weights

from savimae.model.config import step_flops
from savimae.study import cell as cell_module
from savimae.study.page import read_parts
from savimae.study.plan import Budget, Judges, Study, Way, options_that_count
from savimae.training.pretrain import TrainConfig, steps_of_flops, train

OF_TRAIN = (
    "--model", "tiny", "--decoder-depth", "1", "--input-size", "32", "--num-frames", "4",
    "--sampling-rate", "1", "--batch-size", "2", "--lr", "1e-3", "--threads", "1", "--device",
    "cpu", "--precision", "fp32", "--log-every", "2",
)  # fmt: skip
OF_FINETUNE = "--recipe small --steps 3 --batch-size 4 --test-clips 1"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight labelled videos and four to test on, two classes told apart by their brightness."""
    root = tmp_path_factory.mktemp("study")
    for side, count in (("train", 8), ("test", 4)):
        for index in range(count):
            frames = moving_frames(6 + index) // (2 if index % 2 else 1)
            encode(root / side / f"c{index % 2}/{side}{index}.avi", frames)
    return root


def words(data, out, *more, of_train=OF_TRAIN, finetune=OF_FINETUNE, budget=("--steps", "3")):
    return [
        "study", "--data", data / "train", "--train", data / "train", "--test", data / "test",
        "--out", out, "--vary", "mask-type=savi,tube", "--seeds", "2", *budget,
        "--finetune", finetune, *more, "--", *of_train,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """A study that was never stopped."""
    out = tmp_path_factory.mktemp("done") / "study"
    found = savimae(*words(data, out))
    assert found.returncode == 0, found.stderr
    return out, found.stdout


def scores(out, cell):
    found = json.loads((out / "cells" / cell / "result.json").read_text())["scores"]
    return {(each["encoder"], each["measure"]): each["top1"] for each in found}


def test_a_cell_is_an_ordinary_run(data, done, tmp_path):
    """Its weights are those of `savimae train`, its scores those of the commands on them."""
    out, _ = done
    run, cell = tmp_path / "run", "savi/seed-2"
    of_train = ("--data", data / "train", "--out", run, "--steps", "3", "--seed", "2", *OF_TRAIN)
    assert savimae("train", *of_train).returncode == 0
    assert same_weights(run, out / "cells" / cell / "pretrained")
    sides = ("--train", data / "train", "--test", data / "test")
    probed = savimae(
        "probe", run, *sides, "--out", tmp_path / "probe", "--pool", "time", "--seed", "2",
        "--threads", "1", "--batch-size", "2",
    )  # fmt: skip
    assert probed.returncode == 0, probed.stderr
    found = json.loads((tmp_path / "probe/probe.json").read_text())["scores"]
    assert len(found) == 6
    for each in found:
        key = (each["features"], each["classifier"])
        assert scores(out, cell)[key] == each["top1"], key
    tuned = savimae(
        "finetune", run, *sides, "--out", tmp_path / "tuned", *OF_FINETUNE.split(), "--seed", "2",
        "--threads", "1", "--device", "cpu", "--precision", "fp32",
    )  # fmt: skip
    assert tuned.returncode == 0, tuned.stderr
    assert same_weights(tmp_path / "tuned", out / "cells" / cell / "classifier")
    top1 = json.loads((tmp_path / "tuned/test.json").read_text())["top1"]
    assert scores(out, cell)["pretrained", "fine-tuned"] == top1
    assert ("untrained", "fine-tuned") in scores(out, cell)
    assert {encoder for encoder, _ in scores(out, "tube/seed-2")} == {"pretrained"}


def test_the_report_and_what_is_kept(done):
    out, printed = done
    report = ["study.json", "study.md", "study.png"]
    assert sorted(os.listdir(out)) == ["cells", "config.json", *report]
    assert sorted(os.listdir(out / "cells/tube/seed-1")) == [
        "classifier", "pretrained", "result.json",
    ]  # fmt: skip
    assert "cell 4 of 4: tube, seed 2\n" in printed
    result = json.loads((out / "cells/tube/seed-1/result.json").read_text())
    log = log_of(out / "cells/tube/seed-1/pretrained")
    assert [line["step"] for line in log] == [2, 3]
    assert result["flops"] == pytest.approx(1e9 * sum(line["gflop"] for line in log))
    assert (result["steps"], result["n_train"], result["n_test"]) == (3, 8, 4)
    assert result["chance"] == 0.5
    text = (out / "study.md").read_text()
    assert "Each of 2 ways, with 2 seeds, is pretrained for 3 steps" in text


def test_the_page_says_what_the_study_found(done, tmp_path):
    out, _ = done
    found = savimae("report", out, "--out", tmp_path / "page.html")
    assert found.returncode == 0, found.stderr
    page = Page((tmp_path / "page.html").read_text())
    scores = json.loads((out / "study.json").read_text())["scores"]
    rows = page.tables["Top-1 on the test videos"]
    assert [row[0] for row in rows[1:]] == [*dict.fromkeys(each["row"] for each in scores),
                                            "most common class"]  # fmt: skip
    for each in scores:
        row = next(row for row in rows if row[0] == each["row"])
        shown = row[rows[0].index(each["measure"])]
        assert shown == f"{each['mean']:.3f} ± {each['deviation']:.3f}"
    assert {"In words", "Differences", "What this does not say"} <= set(page.texts["h2"])
    assert "No way differs clearly from savi." in page.text
    # A chart for each way with a line for each seed, and the picture inside.
    titles = [text for text in page.texts["title"] if text.startswith("savi over step")]
    first, last = (log_of(out / "cells/savi/seed-1/pretrained")[n]["loss"] for n in (0, -1))
    assert f"seed 1 from {first:.4g} to {last:.4g}; seed 2 from" in titles[0]
    assert (tmp_path / "page.html").read_text().count("<img") == 1
    assert any("savimae train --data" in text for text in page.texts["pre"])


def test_markdown_of_ours_is_escaped(tmp_path):
    (tmp_path / "study.md").write_text(
        "# T\n\nA `<i>` **b & `c`**\n\n## H\n\n"
        "| x | y |\n|---|---|\n| <b> | a \\| b |\n\n- one\n- <u>\n"
    )
    title, parts = read_parts(str(tmp_path / "study.md"))
    assert title == "T"
    assert parts[""] == ["<p>A <code>&lt;i&gt;</code> <strong>b &amp; <code>c</code></strong></p>"]
    assert parts["H"][1] == "<ul><li>one</li><li>&lt;u&gt;</li></ul>"
    assert "<td>a | b</td>" in parts["H"][0]
    assert "&lt;b&gt;" in parts["H"][0]


STOP_IN_PRETRAINING = """
def at_call(n):
    if n == 5:
        os.kill(os.getpid(), signal.SIGTERM)
"""
DIE_IN_PROBES = """
at_call = lambda n: None
from savimae.study import cell
inner = cell.probe
def probe(*given, **options):
    found = inner(*given, **options)
    if "seed-2" in given[3]:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
cell.probe = probe
"""


def test_stopped_and_killed_it_goes_on_as_if_nothing_had_happened(data, done, tmp_path):
    out, expected = tmp_path / "study", done[0]
    given = [str(word) for word in words(data, out)]
    code, printed = finish(hooked(STOP_IN_PRETRAINING, given))
    assert code == 85, printed
    assert "tube, seed 1: pretraining" in printed
    assert not (out / "study.json").exists()
    code, printed = finish(hooked(DIE_IN_PROBES, given))
    assert code == -9, printed
    assert "cell 2 of 4: tube, seed 1\n" in printed
    found = savimae(*given)
    assert found.returncode == 0, found.stderr
    assert "cell 2 of 4: tube, seed 1: done before" in found.stdout
    for cell in ("savi/seed-1", "tube/seed-1", "savi/seed-2", "tube/seed-2"):
        ours, theirs = (each / "cells" / cell / "pretrained" for each in (out, expected))
        assert same_weights(ours, theirs)
        assert scores(out, cell) == scores(expected, cell)
    ours, theirs = (json.loads((each / "study.json").read_text()) for each in (out, expected))
    assert ours["scores"] == theirs["scores"]
    assert ours["differences"] == theirs["differences"]


def test_parts_and_then_the_report(data, done, tmp_path):
    out = tmp_path / "study"
    shutil.copytree(done[0], out)
    for name in ("study.json", "study.md", "study.png"):
        (out / name).unlink()
    shutil.rmtree(out / "cells/tube/seed-2")
    found = savimae(*words(data, out, "--collect"))
    assert found.returncode == 1
    assert found.stderr == "not done yet: tube, seed 2\n"
    assert "**Not done yet: tube, seed 2.**" in (out / "study.md").read_text()
    found = savimae(*words(data, out, "--shard", "1/2"))
    assert found.returncode == 0, found.stderr
    assert "cell 1 of 2: tube, seed 1: done before\ncell 2 of 2: tube, seed 2\n" in found.stdout
    assert savimae(*words(data, out, "--collect")).returncode == 0
    ours, theirs = (json.loads((each / "study.json").read_text()) for each in (out, done[0]))
    assert ours["scores"] == theirs["scores"]


def test_a_cell_that_fails_does_not_stop_the_others(data, tmp_path):
    out = tmp_path / "study"
    of_train = [word for word in OF_TRAIN if word not in ("--lr", "1e-3")]
    found = savimae(*words(
        data, out, "--vary", "lr=1e-3,1e30", finetune="none",
        of_train=[*of_train, "--warmup-epochs", "0"],
    ))  # fmt: skip
    assert found.returncode == 1
    assert "failed: savi, lr 1e30, seed 1: " in found.stderr
    assert "4 cells failed: " in found.stderr
    text = (out / "study.md").read_text()
    assert "**Not done yet: savi, lr 1e30, seed 1;" in text
    assert "| savi, lr 1e-3 | 2 |" in text


def test_cells_that_all_fail_leave_no_report(data, tmp_path):
    (data / "broken.mp4").write_bytes(bytes(range(256)) * 9)
    listed = tmp_path / "list.txt"
    listed.write_text(f"{data}/broken.mp4 0\n")
    given = words(data, tmp_path / "study", finetune="none")
    given[given.index("--data") + 1] = listed
    found = savimae(*given)
    assert found.returncode == 1
    assert "failed: savi, seed 1: " in found.stderr
    assert "broken.mp4: not decodable" in found.stderr
    assert found.stderr.splitlines()[-1].startswith("4 cells failed: savi, seed 1; tube, seed 1;")
    assert not (tmp_path / "study/study.md").exists()


# ------------------------------------------------------------------------------------ budgets


def of(data, **changes):
    given = {
        "model": "tiny", "decoder_depth": 1, "input_size": 32, "num_frames": 4,
        "sampling_rate": 1, "batch_size": 2, "threads": 1, "device": "cpu", "precision": "fp32",
    }  # fmt: skip
    return TrainConfig(str(data / "train"), "out", **{**given, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"mask_type": "tube", "mask_ratio": 0.5},
        {"mask_type": "savi", "salient_mask_ratio": 0.4, "nonsalient_mask_ratio": 0.9},
        {"mask_type": "savi", "equal_count": True, "saliency": "change", "decode": "salient"},
        {"mask_type": "random", "repeat": 2, "batch_size": 4},
    ],
)
def test_a_budget_of_operations_is_kept(data, tmp_path, changes):
    config = of(data, **changes)
    budget = 4e9
    steps = steps_of_flops(config, budget)
    run = tmp_path / "run"
    assert train(dataclasses.replace(config, out=str(run), steps=steps, log_every=5)) == 0
    log = log_of(run)
    spent = 1e9 * sum(line["gflop"] for line in log)
    assert spent == pytest.approx(budget, rel=0.15), steps
    # Twice the budget, twice the steps.
    assert steps_of_flops(config, 2 * budget) == pytest.approx(2 * steps, abs=2)
    assert steps_of_flops(config, 1.0) == 1


def test_operations_of_tube_masks_are_known(data):
    """Every clip shows 2 of 4 patches at both time steps, and reconstructs the others."""
    config = of(data, mask_type="tube", mask_ratio=0.5)
    a_step = step_flops(config.model_shape(), [4, 4], [4, 4])
    assert steps_of_flops(config, 10.4 * a_step) == 10


def test_a_budget_of_time_is_measured(data, tmp_path, monkeypatch):
    out = tmp_path / "study"
    (out / "cell").mkdir(parents=True)
    trials = []

    def trial(config):
        trials.append(config)
        os.makedirs(config.out)
        with open(os.path.join(config.out, "log.jsonl"), "w") as file:
            for step, rate in ((20, 3.0), (40, 8.0), (60, 10.0)):
                line = {"step": step, "loss": 1.0, "epoch": 1.0, "lr": 1e-3, "clips_per_s": rate}
                file.write(json.dumps(line) + "\n")
        return 0

    monkeypatch.setattr(cell_module, "train", trial)

    class Cell:
        folder, name = str(out / "cell"), "savi, seed 1"

    config = of(data, epochs=7, warmup_epochs=1.0)
    budget = Budget("minutes", 3)
    # 180 s at the rate of the last third, 10 clips/s, in steps of 2 clips.
    assert cell_module._steps(budget, config, Cell) == 900
    assert (trials[0].steps, trials[0].epochs) == (60, None)
    assert os.listdir(out / "cell") == ["steps.json"]
    assert cell_module._steps(budget, config, Cell) == 900
    assert len(trials) == 1


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--vary", "mask-typ=a,b"), "`savimae train` has no option --mask-typ"),
        (("--vary", "saliency"), "--vary saliency is not like mask-type=savi,tube"),
        (("--vary", "saliency=change,change"), "a value is given twice"),
        (("--vary", "saliency=motion"), "'motion' is not one of 'frame-mean', 'change'"),
        (("--vary", "mask-type=savi"), "this option is varied twice"),
        (("--vary", "lr=1e-3,2e-3"), "it is given after the -- as well"),
        (("--vary", "hflip=on,off"), "this option is a switch; vary it by yes,no"),
        (("--vary", "seed=1,2"), "--seed is what `savimae study` sets itself"),
        (("--vary", "salient-mask-ratio=0.5,7"), "is not between 0 and 1"),
        (("--flops", "1e12"), "give one of --steps, --flops and --minutes"),
        (("--labels", "7"), "no class of .* has more than 4 videos; say all"),
        (("--shard", "4/4", "--collect"), "give one of them"),
        (("--shard", "0/9"), "a study of 4 cells has no 9 parts"),
        (("--shard", "9"), "is not I/N"),
        (("--layer", "99"), "--layer 99 is not one of the 12 blocks of savi"),
        (("--mask-ratio", "0.8"), "Options of `savimae train` go after a --"),
    ],
)
def test_what_cannot_be_a_study(data, tmp_path, more, message):
    found = savimae(*words(data, tmp_path / "study", *more))
    assert found.returncode == 2, found.stderr
    assert found.stderr.count("\n") == 1
    assert re.search(message, found.stderr), found.stderr
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune": "--epochs 3 --steps 4"}, "--finetune: give --epochs or --steps, not both"),
        ({"finetune": "--seed 3"}, "--finetune: --seed is what `savimae study` sets itself"),
        ({"finetune": "--task regress"}, "--finetune: a study compares top-1 of one class a video"),
        ({"finetune": "--epoch 'x"}, "--finetune --epoch 'x: No closing quotation"),
        ({"finetune": "--bogus"}, "--finetune: No such option '--bogus'"),
        ({"of_train": (*OF_TRAIN, "--epochs", "4")}, "say what a cell may cost with --steps"),
        ({"of_train": (*OF_TRAIN, "--out", "x")}, "--out after the -- is what `savimae study`"),
        (
            {"of_train": (*OF_TRAIN, "--mask-ratio", "7")},
            "tube: mask_ratio 7.0 is not between 0",
        ),
        ({"of_train": (*OF_TRAIN, "--salient-share", "0.2")}, "--salient-share counts in none"),
        ({"of_train": (*OF_TRAIN, "--warmup-epochs", "2")}, "savi: a warm-up of 2 epochs leaves"),
        ({"budget": ()}, "give one of --steps, --flops and --minutes"),
        ({"budget": ("--minutes", "-1")}, "--minutes must be above 0"),
    ],
)
def test_what_its_options_cannot_be(data, tmp_path, changes, message):
    found = savimae(*words(data, tmp_path / "study", **changes))
    assert found.returncode == 2, found.stderr
    assert found.stderr.count("\n") == 1
    assert message in found.stderr
    assert not (tmp_path / "study").exists()


def test_ways_of_fitting_have_baselines_of_their_own(data):
    ways = tuple(
        Way(name, of(data, input_size=(32, 64), **changes))
        for name, changes in (
            ("press", {}), ("pad", {"fit": "pad"}), ("tube", {"fit": "pad", "mask_type": "tube"}),
        )
    )  # fmt: skip
    study = Study("", "", "", "out", ways, 1, Budget("steps", 3), Judges(), None)
    assert [cell.with_baselines for cell in study.cells()] == [True, True, False]
    assert study.settings()["ways"]["pad"].count("--input-size 32x64") == 1


def test_masks_that_read_no_arrays_see_frames_as_the_others_do(tmp_path):
    (tmp_path / "config.json").write_text('{"output": "patches", "fit": "pad"}')
    given = {"saliency_root": str(tmp_path), "mask_type": "tube"}
    assert options_that_count(given) == {"mask_type": "tube", "fit": "pad"}
    assert options_that_count({**given, "mask_type": "savi"}) == {**given, "mask_type": "savi"}
    cropped = {**given, "augment": "multiscale"}
    assert options_that_count(cropped) == {"mask_type": "tube", "augment": "multiscale"}


def test_crops_of_padded_frames_are_refused_before_the_first_cell(data, tmp_path):
    found = savimae(*words(data, tmp_path / "study", of_train=(*OF_TRAIN, "--fit", "pad"),
                           finetune="--epochs 1"))  # fmt: skip
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert "padded frames (--fit pad) are tested whole; say --test-crops 0" in found.stderr
    assert not (tmp_path / "study").exists()


def test_what_probes_would_refuse_is_said_before_hours_of_training(data, tmp_path, monkeypatch):
    monkeypatch.setattr("savimae.judging.probe.MEMORY_SHARE", 1e-9)
    found = savimae(*words(data, tmp_path / "study", "--attentive"))
    assert found.returncode == 2
    assert "--attentive keeps all tokens of 12 videos" in found.stderr
    given = words(data, tmp_path / "study")
    given[given.index("--train") + 1] = data / "train/c0"
    found = savimae(*given)
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "study").exists()


def test_another_study_is_not_overwritten(data, done):
    found = savimae(*words(data, done[0], budget=("--steps", "4")))
    assert found.returncode == 2
    assert "budget is '3 steps' there and '4 steps' here" in found.stderr
    found = savimae(*words(data, done[0], "--collect", budget=("--steps", "4")))
    assert found.returncode == 2
