"""Ways, budgets and cells of a study."""

from __future__ import annotations

import json

import click
import pytest

from savimae.cli import cli
from savimae.commands.study import make_study
from savimae.saliency.config import CHANGE, SaliencyConfig
from savimae.study.plan import (
    Budget,
    Judges,
    Study,
    make_ways,
    options_that_count,
)
from savimae.system.errors import UsageError
from savimae.system.settings import record_config
from savimae.training.finetune import FinetuneConfig
from savimae.training.pretrain import TrainConfig

MASKS = {"mask_type": [(kind, kind) for kind in ("savi", "savi-tube", "tube", "random")]}
SALIENCY = {"saliency": [(kind, kind) for kind in ("frame-mean", "change")]}
LENIENT = {"resilient_parsing": True}  # required options may be absent


def make(options):
    return TrainConfig("data", "out", model="tiny", input_size=32, num_frames=4, **options)


def study(ways, **changes):
    given = {
        "data": "data", "train": "train", "test": "test", "out": "out", "ways": ways, "seeds": 2,
        "budget": Budget("steps", 7), "judges": Judges(label_counts=(5, None)),
        "finetuning": FinetuneConfig("train", "out", test="test", epochs=3), **changes,
    }  # fmt: skip
    return Study(**given)


def test_ways_that_differ_in_what_does_not_count_are_one():
    ways = make_ways({}, {**MASKS, **SALIENCY}, make)
    assert [way.name for way in ways] == [
        "savi, frame-mean", "savi, change", "savi-tube, frame-mean", "savi-tube, change", "tube",
        "random",
    ]  # fmt: skip
    assert [way.config.saliency for way in ways] == [
        "frame-mean", "change", "frame-mean", "change", None, None,
    ]  # fmt: skip


def test_saliency_counts_where_it_says_what_is_decoded():
    ways = make_ways({"decode": "salient"}, {**MASKS, **SALIENCY}, make)
    assert [way.name for way in ways][-4:] == [
        "tube, frame-mean", "tube, change", "random, frame-mean", "random, change",
    ]  # fmt: skip


def test_each_way_gets_the_options_that_count_in_it():
    common = {"mask_ratio": 0.8, "salient_mask_ratio": 0.7, "salient_share": 0.3, "batch_size": 4}
    ways = {way.name: way.config for way in make_ways(common, {**MASKS, **SALIENCY}, make)}
    assert ways["savi, change"].salient_share == 0.3
    assert ways["savi, frame-mean"].salient_share is None
    assert ways["savi, frame-mean"].salient_mask_ratio == 0.7
    assert ways["tube"].mask_ratio == 0.8
    assert ways["tube"].salient_mask_ratio is None
    assert {way.batch_size for way in ways.values()} == {4}


def ways_of(*typed, vary):
    """The configs of `savimae study --vary … -- TYPED`, by name."""
    ctx = cli.commands["study"].make_context("study", [], parent=click.Context(cli), **LENIENT)
    options = {
        **ctx.params, "data": "data", "train": "train", "test": "test", "out": "out", "steps": 3,
        "vary": vary,
    }  # fmt: skip
    for name in ("arguments", "shard", "collect"):
        del options[name]
    return {way.name: way.config for way in make_study(ctx, typed, **options).ways}


def test_a_recipe_counts_where_nothing_else_is_said():
    """Decoding salient tokens makes two ways of tube masks; a ratio that idles is left out."""
    vary = ("mask-type=savi,tube", "saliency=frame-mean,change")
    ways = ways_of("--recipe", "small", "--lr", "1e-3", vary=vary)
    assert list(ways) == ["savi, frame-mean", "savi, change", "tube, frame-mean", "tube, change"]
    assert ways["savi, frame-mean"].saliency == "frame-mean"
    assert [way.salient_mask_ratio for way in ways.values()] == [0.75, 0.75, None, None]
    for way in ways.values():
        assert (way.lr, way.decode, way.optimizer, way.steps) == (1e-3, "salient", "muon", None)


def test_what_is_varied_replaces_what_a_recipe_says():
    rates = ways_of("--recipe", "small", vary=("base-lr=1e-3,2e-3",)).values()
    assert [(way.base_lr, way.lr) for way in rates] == [(1e-3, None), (2e-3, None)]
    models = ways_of("--recipe", "small", vary=("model=tiny,small",)).values()
    assert [way.model_shape().encoder_depth for way in models] == [12, 12]


def test_arrays_have_a_kind_of_their_own(tmp_path):
    record_config(str(tmp_path), SaliencyConfig(kind=CHANGE).of_arrays)
    given = {"saliency_root": str(tmp_path), "salient_share": 0.3, "saliency_threshold": 0.4}
    assert options_that_count(given) == {"saliency_root": str(tmp_path), "salient_share": 0.3}


@pytest.mark.parametrize(
    ("common", "varied", "message"),
    [
        ({"mask_ratio": 0.5}, SALIENCY, "--mask-ratio counts in none of the ways"),
        ({"mask_type": "tube"}, SALIENCY, "--saliency counts in none of the ways"),
        ({}, {"mask_type": [("savi", "savi")]}, "two values that count"),
        ({"salient_mask_ratio": 2.0}, MASKS, "savi: salient_mask_ratio 2.0 is not between 0 and 1"),
        ({}, {"lr": [("lr 1e-3", 1e-3), ("lr 1e 3", 1e3)]}, "cannot be told apart"),
    ],
)
def test_what_cannot_be_compared(common, varied, message):
    def checked(options):
        config = make(options)
        try:
            config.mask_spec()
        except ValueError as error:
            raise UsageError(str(error)) from None
        return config

    with pytest.raises(UsageError, match=message):
        make_ways(common, varied, checked)


def test_a_cell_is_a_way_with_a_seed_and_the_first_of_each_shape_has_the_baselines():
    varied = {"mask_type": MASKS["mask_type"][1:3], "patch_size": [("p 8", 8), ("p 16", 16)]}
    cells = study(make_ways({}, varied, make)).cells()
    assert [(cell.name, cell.with_baselines) for cell in cells[:4]] == [
        ("savi-tube, p 8, seed 1", True), ("savi-tube, p 16, seed 1", True),
        ("tube, p 8, seed 1", False), ("tube, p 16, seed 1", False),
    ]  # fmt: skip
    assert [cell.seed for cell in cells] == [1] * 4 + [2] * 4
    assert cells[5].folder == "out/cells/savi-tube-p-16/seed-2"
    assert len({cell.folder for cell in cells}) == 8


def test_a_decoder_of_another_depth_needs_no_other_baseline():
    ways = make_ways({}, {"decoder_depth": [("1", 1), ("2", 2)]}, make)
    assert [cell.with_baselines for cell in study(ways).cells()] == [True, False, True, False]


def test_settings_are_the_same_when_they_come_back():
    ways = make_ways({}, MASKS, make)
    settings = study(ways).settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["budget"] == "7 steps"
    assert settings["ways"]["tube"][-1] == "--mask-type tube"
    assert settings["finetuning"] == ["--epochs 3"]
    assert study(ways, seeds=9).settings() == settings
    assert study(ways, budget=Budget("flops", 1e12)).settings() != settings


def test_budgets():
    assert Budget("flops", 3e14).words == "3e+14 floating point operations"
    for amount in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be above 0"):
            Budget("minutes", amount)
