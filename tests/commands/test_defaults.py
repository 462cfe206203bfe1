"""What the command line says of defaults is what the code has: nothing is written twice unseen."""

from __future__ import annotations

import dataclasses
import re

import click
import pytest

from savimae.cli import cli
from savimae.commands.options import RECIPES, finetune_config, train_config
from savimae.data.random_split import RandomSplit
from savimae.judging.attention import AttentionDrawings
from savimae.judging.load import ClipOptions, MaskOptions
from savimae.judging.neighbors import NEIGHBOURS, QUERIES, NeighborOptions
from savimae.judging.reconstruct import Drawings
from savimae.model.config import VideoMAEConfig
from savimae.saliency.config import SaliencyConfig
from savimae.saliency.makers import ArrayMaker, FrameMaker
from savimae.samples.masking import MaskSpec
from savimae.samples.multi_view import Views
from savimae.system.errors import UsageError
from savimae.training.checkpoint import SaveEvery
from savimae.training.finetune import FinetuneConfig
from savimae.training.pretrain import DEFAULT_MODEL, TrainConfig
from savimae.training.setup import RunConfig

# Commands, and the dataclasses that their options fill.
FILLED = [
    ("train", TrainConfig), ("finetune", FinetuneConfig), ("preprocess", SaliencyConfig),
    ("patches", SaliencyConfig), ("inspect", SaliencyConfig), ("preprocess", ArrayMaker),
    ("patches", ArrayMaker), ("frames", FrameMaker), ("reconstruct", MaskOptions),
    ("evaluate", MaskOptions),
    ("reconstruct", ClipOptions), ("evaluate", ClipOptions), ("probe", ClipOptions),
    ("reconstruct", Drawings), ("features", Views), ("probe", Views), ("neighbors", Views),
    ("attention", AttentionDrawings), ("attention", ClipOptions), ("neighbors", NeighborOptions),
]  # fmt: skip
# Options without a default of their own, and what the help says in brackets.
IN_BRACKETS = {
    ("index", "seed"): RandomSplit.seed,
    ("train", "model"): DEFAULT_MODEL,
    ("train", "epochs"): RunConfig.default_epochs,
    ("finetune", "epochs"): FinetuneConfig.default_epochs,
    ("train", "decoder_depth"): VideoMAEConfig.decoder_depth,
    ("train", "input_size"): VideoMAEConfig.input_size,
    ("train", "patch_size"): VideoMAEConfig.patch_size,
    ("train", "tubelet_size"): VideoMAEConfig.tubelet_size,
    ("train", "num_frames"): VideoMAEConfig.num_frames,
    ("train", "mask_ratio"): MaskSpec.mask_ratio,
    ("train", "salient_mask_ratio"): MaskSpec.salient_mask_ratio,
    ("train", "nonsalient_mask_ratio"): MaskSpec.nonsalient_mask_ratio,
    ("train", "saliency_threshold"): SaliencyConfig.threshold,
    ("train", "salient_share"): SaliencyConfig.share,
    ("preprocess", "threshold"): SaliencyConfig.threshold,
    ("patches", "threshold"): SaliencyConfig.threshold,
    ("inspect", "threshold"): SaliencyConfig.threshold,
    ("evaluate", "salient_share"): SaliencyConfig.share,
    ("train", "base_lr"): RunConfig.default_base_lr,
    ("train", "min_lr"): RunConfig.default_min_lr,
    ("train", "warmup_epochs"): RunConfig.longest_warmup,
    ("finetune", "base_lr"): FinetuneConfig.default_base_lr,
    ("finetune", "min_lr"): FinetuneConfig.default_min_lr,
    ("finetune", "warmup_epochs"): FinetuneConfig.longest_warmup,
    ("evaluate", "saliency_threshold"): SaliencyConfig.threshold,
    ("convert", "input_size"): VideoMAEConfig.input_size,
    ("convert", "num_frames"): VideoMAEConfig.num_frames,
    ("neighbors", "queries"): QUERIES,
    ("neighbors", "k"): NEIGHBOURS,
}


def options_of(command: str) -> dict[str, click.Option]:
    return {
        parameter.name: parameter
        for parameter in cli.commands[command].params
        if isinstance(parameter, click.Option) and parameter.name
    }


def defaults_of(command: str) -> dict[str, object]:
    """What a command gets if nothing is typed."""
    context = cli.commands[command].make_context(command, [], resilient_parsing=True)
    defaults = dict(context.params)
    if "save_every" in defaults:
        defaults["save_every"] = tuple(map(SaveEvery.parse, defaults["save_every"]))
    if defaults.get("crops") == 0:  # no squares: whole frames
        defaults["crops"] = None
    return defaults


@pytest.mark.parametrize(("command", "config"), FILLED)
def test_options_have_the_defaults_of_what_they_fill(command, config):
    options, defaults = options_of(command), defaults_of(command)
    compared = 0
    for field in dataclasses.fields(config):
        option = options.get(field.name)
        if option is None or option.required or field.default is dataclasses.MISSING:
            continue
        if (command, field.name) in IN_BRACKETS:
            continue
        assert defaults[field.name] == field.default, field.name
        compared += 1
    assert compared


@pytest.mark.parametrize(("command", "name"), IN_BRACKETS)
def test_the_help_names_the_default_that_the_code_takes(command, name):
    option = options_of(command)[name]
    assert defaults_of(command)[name] is None
    said = re.search(r"\[(.+)\]$", option.help or "")
    assert said, option.help
    words = re.findall(r"[\w.-]+", said[1])
    expected = IN_BRACKETS[command, name]
    if isinstance(expected, str):
        assert expected in words
    else:
        numbers = [float(word) for word in words if re.fullmatch(r"\d[\d.e-]*", word)]
        assert expected in numbers


def test_a_recipe_changes_defaults_and_what_is_typed_counts_more():
    command, given = cli.commands["finetune"], ["run", "--train", "a", "--test", "b", "--out", "c"]

    def parsed(*words):
        return command.make_context("finetune", [*given, *words]).params

    published, small = parsed(), parsed("--recipe", "small")
    assert parsed("--recipe", "published") == published
    assert {n: small[n] for n in small if small[n] != published[n]} == RECIPES["finetune"]["small"]
    # Before or after the recipe; --lr instead of its --base-lr.
    typed = parsed("--lr", "0.002", "--mixup", "0.5", "--recipe", "small", "--pool", "mean")
    changed = {n: typed[n] for n in typed if typed[n] != small[n]}
    assert changed == {"lr": 0.002, "base_lr": None, "mixup": 0.5, "pool": "mean"}
    assert finetune_config(**{n: typed[n] for n in typed if n != "allocator"}).lr == 0.002
    assert parsed() == published  # nothing of it is left behind


def test_the_small_recipe_of_pretraining():
    given, small = ["--data", "a", "--out", "b"], RECIPES["train"]["small"]

    def parsed(*words):
        return cli.commands["train"].make_context("train", [*given, *words]).params

    def config(*words):
        params = parsed(*words)
        assert params.pop("allocator") == "keep"
        return train_config(**params)

    published = parsed()
    chosen = parsed("--recipe", "small")
    assert {n: chosen[n] for n in chosen if chosen[n] != published[n]} == small
    assert config("--recipe", "small").model_shape().encoder_depth == 3

    # What is typed counts more, and what cannot stand beside it is gone.
    for words, expected in [
        (["--base-lr", "1e-3"], {"base_lr": 1e-3, "lr": None}),
        (["--epochs", "7"], {"epochs": 7, "steps": None}),
        (["--model", "base"], {"model": "base", "encoder_depth": None, "decoder_depth": None}),
        (["--encoder-depth", "6"], {"encoder_depth": 6}),
        (["--mask-type", "tube"], {"mask_type": "tube", "salient_mask_ratio": None}),
        (["--mask-type", "savi"], {"mask_type": "savi"}),
        (["--saliency-root", "arrays"], {"saliency_root": "arrays"}),
        (
            ["--init", "weights"],
            {"init": "weights"}
            | dict.fromkeys(["model", "encoder_depth", "decoder_depth", "input_size"]),
        ),
    ]:
        for line in ([*words, "--recipe", "small"], ["--recipe", "small", *words]):
            typed = parsed(*line)
            assert {n: typed[n] for n in typed if typed[n] != chosen[n]} == expected
            config(*line)
    # A ratio that is typed beside masks that have none is refused all the same.
    with pytest.raises(UsageError, match="--salient-mask-ratio has no effect on tube masks"):
        config("--recipe", "small", "--mask-type", "tube", "--salient-mask-ratio", "0.5")
