"""Runs on frames that are not square, and on frames that are fitted without pressing them."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from media import savimae
from models import MACHINE
from runs import ACCUMULATED, checkpoint, config, log_of, make_videos, same_weights, stopping

import savimae as library
from savimae.data.lists import read_list
from savimae.judging.evaluate import evaluate
from savimae.judging.load import ClipOptions, MaskOptions
from savimae.saliency.makers import ArrayMaker
from savimae.saliency.preprocess import WalkOptions, process
from savimae.samples.clips import ClipReader
from savimae.samples.masking import draw_masks
from savimae.samples.randomness import sample_keys
from savimae.system.errors import EXIT_STOPPED, UsageError
from savimae.training.distributed import World
from savimae.training.finetune import FinetuneConfig, FinetuningRun, find_labelled, finetune
from savimae.training.loop import Loop
from savimae.training.pretrain import train
from savimae.training.setup import set_up_elsewhere
from savimae.training.weights import load_model, read_weights

WIDE = (32, 80)  # videos are 48 x 64: padded, 48 of 80 columns are theirs


def small(data, out, **changes):
    return config(data, out, input_size=WIDE, **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """A finished run for each fit, by its name."""
    home = tmp_path_factory.mktemp("runs")
    for fit in ("press", "crop", "pad"):
        assert train(small(data, home / fit, fit=fit)) == 0
    return home


def test_what_a_run_of_another_shape_records(runs):
    for fit in ("press", "crop", "pad"):
        recorded = json.loads((runs / fit / "config.json").read_text())
        assert recorded["input_size"] == [32, 80]
        assert recorded.get("fit") == (None if fit == "press" else fit)
        assert load_model(str(runs / fit)).config.sides == WIDE
        settings = read_weights(str(runs / fit)).settings
        assert settings.get("fit", "press") == fit
    weights = [
        checkpoint(runs / fit)["model"]["decoder.head.weight"] for fit in ("press", "crop", "pad")
    ]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("fit", ["press", "pad"])
def test_stopped_and_resumed_with_arrays_exactly(data, tmp_path, monkeypatch, fit):
    """Where saliency comes from the arrays, which say how they were fitted."""
    whole = small(data, tmp_path / "whole", fit=fit, hflip=True)
    process(
        str(data), str(tmp_path / "arrays"), ArrayMaker(whole.saliency_config()), WalkOptions(1)
    )
    whole = dataclasses.replace(whole, fit=None, saliency_root=str(tmp_path / "arrays"))
    assert train(whole) == 0
    assert checkpoint(tmp_path / "whole")["settings"].get("fit", "press") == fit
    parts = dataclasses.replace(whole, out=str(tmp_path / "parts"), **ACCUMULATED)
    whole_again = dataclasses.replace(whole, out=str(tmp_path / "again"), **ACCUMULATED)
    assert train(whole_again) == 0
    with monkeypatch.context() as stopped:
        stopped.setattr(Loop, "run", stopping(Loop.run, 3))
        assert train(parts) == EXIT_STOPPED
    assert train(parts) == 0
    assert same_weights(tmp_path / "parts", tmp_path / "again")
    losses = [[line["loss"] for line in log_of(tmp_path / name)] for name in ("whole", "again")]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_padding_is_in_no_loss(runs, data):
    """A step, and `evaluate`, count the tokens of the video alone."""
    tube = {"mask_type": "tube", "mask_ratio": 0.5}
    none = {"salient_mask_ratio": None, "nonsalient_mask_ratio": None}
    run = small(data, runs / "x", fit="pad", **tube, **none)
    masks = MaskOptions(**tube)
    (found,) = evaluate([str(runs / "pad")], str(data), MACHINE, masks, ClipOptions(), 1)

    reader = ClipReader(run.clip_config(), run.saliency_config(), 2)
    model = load_model(str(runs / "pad")).eval()
    total, n = 0.0, 0
    for index, video in enumerate(read_list(str(data)).videos):
        keys = sample_keys(0, 0, np.array([index]))
        clip = reader.read(video, keys[0])
        assert clip.padding.reshape(2, 2, 5)[0, 0].tolist() == [True, False, False, False, True]
        mask = draw_masks(run.mask_spec(), keys)
        decoded = mask & ~clip.padding
        with torch.no_grad():
            output = model(torch.from_numpy(clip.pixels)[None], torch.from_numpy(mask),
                           torch.from_numpy(decoded))  # fmt: skip
        total, n = total + float(output.token_losses.double().sum()), n + int(decoded.sum())
    assert 0 < n < 11 * 20 / 2  # half of the tokens are hidden
    assert found.loss == pytest.approx(total / n, rel=1e-5)


def test_crops_and_fits_exclude_each_other(data, tmp_path):
    run = small(data, tmp_path / "run", augment="multiscale")
    with pytest.raises(UsageError, match="--fit pad is for whole frames; --augment multiscale"):
        train(dataclasses.replace(run, fit="pad"))
    arrays = tmp_path / "arrays"
    fitted = small(data, tmp_path / "run", fit="pad")
    process(str(data), str(arrays), ArrayMaker(fitted.saliency_config()), WalkOptions(1))
    with pytest.raises(UsageError, match="arrays of --fit pad, the clips are fitted by crop"):
        train(dataclasses.replace(fitted, fit="crop", saliency_root=str(arrays)))
    with pytest.raises(UsageError, match="made with input_size 32x80, the model wants 32x64"):
        train(dataclasses.replace(fitted, input_size=(32, 64), saliency_root=str(arrays)))
    assert not (tmp_path / "run").exists()
    # Crops are fitted in no way, whatever the arrays are.
    assert train(dataclasses.replace(run, saliency_root=str(arrays))) == 0
    assert "fit" not in checkpoint(tmp_path / "run")["settings"]


def tuned(data, pretrained, out, **changes):
    fields = {"epochs": 1, "batch_size": 4, "lr": 1e-3, "precision": "fp32", "threads": 1,
              "log_every": 1, "device": "cpu", "allow_overlap": True, "test_clips": 1,
              "test_crops": None, "head_scale": 1.0, **changes}  # fmt: skip
    return FinetuneConfig(str(data), str(out), checkpoint=str(pretrained), test=str(data), **fields)


def test_a_classifier_sees_frames_as_its_encoder_did(runs, data, tmp_path):
    with pytest.raises(UsageError, match=r"3 crops of a frame are not what .* padded frames"):
        finetune(tuned(data, runs / "pad", tmp_path / "x", test_crops=3))
    assert finetune(tuned(data, runs / "pad", tmp_path / "pad")) == 0
    assert json.loads((tmp_path / "pad/config.json").read_text())["fit"] == "pad"
    assert finetune(tuned(data, runs / "pad", tmp_path / "press", fit="press")) == 0
    assert "fit" not in json.loads((tmp_path / "press/config.json").read_text())
    with open(tmp_path / "pad/predictions.csv", newline="") as file:
        tested = [float(row["p_c0"]) for row in csv.DictReader(file)]
    out = tmp_path / "predicted.csv"
    words = ("predict", tmp_path / "pad", data, "--device", "cpu", "--precision", "fp32")
    done = savimae(*words, "--out", out)
    assert done.returncode == 0, done.stderr
    with open(out, newline="") as file:
        predicted = [float(row["p_c0"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(predicted, tested, atol=2e-6)
    done = savimae(*words, "--fit", "crop", "--out", out)
    assert done.returncode == 0, done.stderr
    with open(out, newline="") as file:
        cropped = [float(row["p_c0"]) for row in csv.DictReader(file)]
    assert np.abs(np.array(cropped) - predicted).max() > 1e-4
    encoder = library.load_encoder(tmp_path / "pad", input_size=(48, 64), fit="press")
    assert (encoder.clips.sides, encoder.clips.fit) == ((48, 64), "press")


def test_parts_of_padded_frames_keep_their_shape(runs, data, tmp_path):
    """Random crops of a padded model are padded too; the others are pressed into the input."""

    for fit, is_padded in (("pad", True), ("press", False)):
        options = tuned(data, runs / "pad", tmp_path / fit, smallest_crop=0.5, erasing=0.0,
                        mixup=0.0, cutmix=0.0, fit=fit)  # fmt: skip
        labelled = find_labelled(options)
        setup = set_up_elsewhere(options, World(), len(labelled.train))
        task = FinetuningRun(options, setup, labelled).build(True)
        pixels = np.stack([task.load(index, 0).pixels for index in range(8)])
        assert pixels.shape == (8, 4, 32, 80, 3)
        columns = pixels.reshape(8, 4, 32, 5, 16, 3).any((1, 2, 4, 5))  # of patches
        assert columns[:, 2].all()
        assert (~columns[:, [0, 4]]).any() == is_padded
