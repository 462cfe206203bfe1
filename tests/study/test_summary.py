"""What the cells of a study say together."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image

from savimae.study.plan import Budget, Judges, Study, make_ways
from savimae.study.report import as_text, differences, reading, summary_table, write_report
from savimae.study.summary import Column, Spread, collect, interval
from savimae.system.errors import SavimaeError
from savimae.training.pretrain import TrainConfig

LINEAR, FEW = Column("linear", None), Column("linear", 5)
# Top-1 of savi, tube, an untrained encoder and raw pixels, with three seeds.
SAVI, TUBE = [0.50, 0.54, 0.55], [0.40, 0.45, 0.44]
UNTRAINED, PIXELS = [0.48, 0.56, 0.54], [0.80, 0.80, 0.80]


@pytest.fixture
def study(tmp_path):
    def make(options):
        return TrainConfig("data", "out", model="tiny", input_size=32, num_frames=4, **options)

    varied = {"mask_type": [("savi", "savi"), ("tube", "tube")]}
    ways = make_ways({"batch_size": 4}, varied, make)
    return Study(
        "videos", "train.txt", "test.txt", str(tmp_path / "study"), ways, 3, Budget("flops", 1e12),
        Judges(label_counts=(5, None)), None,
    )  # fmt: skip


def write(cell, **changes):
    number = cell.seed - 1
    own = (SAVI if cell.way.name == "savi" else TUBE)[number]
    scores = {"pretrained": own}
    if cell.with_baselines:
        scores |= {"untrained": UNTRAINED[number], "raw pixels": PIXELS[number]}
    result = {
        "way": cell.way.name, "seed": cell.seed, "steps": 10 * cell.seed, "epochs": 2.5,
        "flops": 2e12, "seconds": 90.0, "loss": 0.5, "loss_salient": None, "visible_tokens": 3.0,
        "n_train": 20, "n_test": 100, "classes": 4, "chance": 0.25,
        "scores": [
            {"encoder": name, "measure": "linear", "labels": labels, "top1": top1 - off}
            for name, top1 in scores.items()
            for labels, off in ((None, 0.0), (5, 0.1))
        ],
        **changes,
    }  # fmt: skip
    os.makedirs(cell.folder, exist_ok=True)
    with open(cell.result, "w") as file:
        json.dump(result, file)


@pytest.fixture
def summary(study):
    for cell in study.cells():
        write(cell)
    return collect(study)


def test_means_and_deviations(summary):
    assert summary.rows == ["savi", "tube", "untrained", "raw pixels"]
    assert summary.columns == [FEW, LINEAR]  # few labels first
    spread = summary.spread("savi", LINEAR)
    assert spread.mean == pytest.approx(0.53)
    assert spread.deviation == pytest.approx(0.0264575, abs=1e-6)  # of n - 1
    assert spread.n == 3
    assert summary.spread("tube", FEW).mean == pytest.approx(0.33)
    assert Spread.of([0.3]).words == "0.300"


def test_differences_are_paired_by_seed(summary):
    # 0.10, 0.09, 0.11: mean 0.1, deviation 0.01; t of 2 degrees of freedom is 4.302653.
    found = summary.difference("savi", "tube", LINEAR)
    half = 4.302653 * 0.01 / 3**0.5
    assert found.mean == pytest.approx(0.1)
    assert found.interval == pytest.approx((0.1 - half, 0.1 + half), abs=1e-6)
    assert found.is_clear
    # 0.02, -0.02, 0.01
    found = summary.difference("savi", "untrained", LINEAR)
    assert found.mean == pytest.approx(0.01 / 3)
    assert not found.is_clear
    assert interval([0.1]) is None
    assert summary.difference("savi", "nobody", LINEAR) is None


def test_what_is_compared(summary):
    pairs = [(each.row, each.other) for each in differences(summary) if each.column == LINEAR]
    assert pairs == [
        ("savi", "untrained"), ("savi", "raw pixels"),
        ("tube", "savi"), ("tube", "untrained"), ("tube", "raw pixels"),
    ]  # fmt: skip


def test_words_claim_only_what_intervals_show(summary):
    (line,) = (each for each in reading(summary) if each.startswith("- **linear**"))
    assert "the highest of the ways is savi, 0.530." in line
    assert "does not differ clearly from an untrained encoder, 0.527: +0.003 (" in line
    assert "It is below raw pixels, 0.800, by 0.270: -0.270 (" in line
    assert "Different from savi: tube -0.100 (" in line


def test_one_seed_claims_nothing(study):
    for cell in study.cells()[:2]:
        write(cell)
    summary = collect(study)
    assert summary.missing == [
        "savi, seed 2", "tube, seed 2", "savi, seed 3", "tube, seed 3"
    ]  # fmt: skip
    (line,) = (each for each in reading(summary) if each.startswith("- **linear**"))
    assert "one seed does not say how much that varies" in line
    assert "No way differs clearly from savi" in line
    text = as_text(study, summary)
    assert "**Not done yet: savi, seed 2; tube, seed 2;" in text


def test_the_report(study, summary):
    _, paths = write_report(study)
    assert [os.path.basename(path) for path in paths] == ["study.json", "study.md", "study.png"]
    with open(paths[0]) as file:
        found = json.load(file)
    assert found["settings"]["seeds"] == 3
    (score,) = (
        each for each in found["scores"]
        if (each["row"], each["measure"], each["labels"]) == ("tube", "linear", 5)
    )  # fmt: skip
    assert score["top1"] == pytest.approx({"1": 0.30, "2": 0.35, "3": 0.34})
    assert len(found["cells"]) == 6
    with open(paths[1]) as file:
        text = file.read()
    assert "| savi | 3 | 0.430 ± 0.026 | 0.530 ± 0.026 |" in text
    assert "| tube | 20 | 2.5 | 2.0 | 1.5 | 0.500 | 3.0 |" in text  # steps 10, 20, 30
    assert "- Common to all ways: `--batch-size 4`, `--model tiny`, `--input-size 32`" in text
    assert "- tube: `--mask-type tube`" in text
    assert "standard error of 0.050" in text  # sqrt(1/4 / 100)
    with Image.open(paths[2]) as picture:
        assert picture.width > 500
    assert summary_table(summary).splitlines()[1].split() == [
        "savi", "3", "0.430", "±", "0.026", "0.530", "±", "0.026",
    ]  # fmt: skip


def test_shapes_have_baselines_of_their_own(tmp_path):
    def make(options):
        return TrainConfig("data", "out", model="tiny", input_size=32, num_frames=4, **options)

    ways = make_ways({}, {"patch_size": [("p 8", 8), ("p 16", 16)]}, make)
    study = Study("v", "a", "b", str(tmp_path), ways, 1, Budget("steps", 1), Judges(), None)
    for cell in study.cells():
        write(cell)
    line = reading(collect(study))[-1]
    assert "Untrained, as p 8 has 0.480; one seed" in line
    assert collect(study).baselines == [
        "untrained, as p 8", "untrained, as p 16", "raw pixels, as p 8", "raw pixels, as p 16",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes", [{"way": "tube"}, {"scores": 3}, {"scores": [{"top1": 2}]}, {"seed": None}]
)
def test_damaged_results_are_named(study, changes):
    first = study.cells()[0]
    write(first, **changes)
    with pytest.raises(SavimaeError, match=r"seed-1/result\.json: not the result of this cell"):
        collect(study)
    with open(first.result, "w") as file:
        file.write("{")
    with pytest.raises(SavimaeError, match="delete it"):
        collect(study)


def test_nothing_done_is_said(study):
    with pytest.raises(SavimaeError, match="no cell of this study is done yet"):
        collect(study)
