"""Runs on frames that are not square, and on frames that are fitted without pressing them."""

from __future__ import annotations

import csv
import dataclasses
import json
import shlex

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
from savimae.system.errors import EXIT_STOPPED, SavimaeError, UsageError
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


def test_what_is_recorded_as_the_command_makes_the_same(runs):
    lines = [json.loads(line) for line in (runs / "pad/log.jsonl").read_text().splitlines()]
    words = shlex.split(next(line["command"] for line in lines if "command" in line))
    assert words[words.index("--input-size") + 1] == "32x80"
    assert words.count("--input-size") == 1
    assert words[words.index("--fit") + 1] == "pad"


def test_clips_that_hide_only_padding_can_be_judged(data, tmp_path):
    """One place of 2 x 5 is hidden: of some clips one beside the video."""
    tube = {"mask_type": "tube", "mask_ratio": 0.1}
    none = {"salient_mask_ratio": None, "nonsalient_mask_ratio": None}
    run = small(data, tmp_path / "run", fit="pad", batch_size=1, **tube, **none)
    assert train(run) == 0
    machine = dataclasses.replace(MACHINE, batch_size=1)
    (found,) = evaluate([str(tmp_path / "run")], str(data), machine, MaskOptions(), ClipOptions())
    assert np.isfinite(found.loss)
    done = savimae("reconstruct", tmp_path / "run", data, "--out", tmp_path / "seen", "--videos",
                   "11", "--animation", "none")  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = json.loads((tmp_path / "seen/reconstruction.json").read_text())
    assert len(records) == 11
    assert all(np.isfinite(record["loss"]) for record in records)


def test_a_fit_that_nothing_sees_is_refused(runs, data, tmp_path):
    with pytest.raises(ValueError, match="--fit press is for whole frames; --augment multiscale"):
        small(data, tmp_path / "x", fit="press", augment="multiscale")
    with pytest.raises(UsageError, match="--fit crop is for whole frames, and neither training"):
        finetune(tuned(data, runs / "press", tmp_path / "x", fit="crop", test_crops=3))
    done = savimae("features", runs / "press", "--data", data, "--out", tmp_path / "f.npz",
                   "--crops", "3", "--fit", "crop")  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--fit crop is for whole frames, and 3 crops of a frame are seen" in done.stderr


def test_an_unknown_fit_in_a_file_names_it(runs, data, tmp_path):
    content = torch.load(runs / "pad/checkpoints/last.pt", weights_only=True)
    content["settings"]["fit"] = "zoom"
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(SavimaeError, match=r"model\.pt: its settings say fit 'zoom', not one of"):
        read_weights(str(tmp_path / "model.pt"))
    job = ArrayMaker(small(data, tmp_path / "x", fit="pad").saliency_config())
    process(str(data), str(tmp_path / "arrays"), job, WalkOptions(1))
    path = tmp_path / "arrays/config.json"
    path.write_text(path.read_text().replace('"pad"', '"zoom"'))
    with pytest.raises(UsageError, match=r"arrays/config\.json: fit 'zoom' is not one of"):
        train(small(data, tmp_path / "x", saliency_root=str(tmp_path / "arrays")))


def test_maps_say_how_they_were_fitted(data, tmp_path):
    videos, maps = data.parent / "videos", tmp_path / "maps"
    shape = ("--input-size", "32x80", "--patch-size", "8", "--fit", "pad")
    assert savimae("saliency", videos, maps, *shape).returncode == 0
    for words, message in (
        (("--input-size", "32x80", "--patch-size", "8"), "holds maps of --fit pad; give the same"),
        ((*shape[2:], "--input-size", "32x64"), "holds maps of --input-size 32x80; give the same"),
        ((*shape[:2], *shape[4:], "--patch-size", "16"), "maps of --patch-size 8; give the same"),
    ):
        done = savimae("patches", maps, tmp_path / "x", *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr
        assert not (tmp_path / "x").exists()
    assert savimae("patches", maps, tmp_path / "patches", *shape).returncode == 0
    assert savimae("preprocess", videos, tmp_path / "arrays", *shape).returncode == 0
    assert "pad" in (tmp_path / "patches/config.json").read_text()
    made = sorted(path.relative_to(tmp_path / "arrays") for path in
                  (tmp_path / "arrays").rglob("*.npy"))  # fmt: skip
    assert len(made) == 11
    for path in made:
        pair = [np.load(tmp_path / name / path) for name in ("arrays", "patches")]
        # Of folders of RGB frames the bits are the same; a video's luma may differ by a step.
        assert (pair[0] != pair[1]).mean() < 0.02


def test_crops_and_fits_exclude_each_other(data, tmp_path):
    run = small(data, tmp_path / "run", augment="multiscale")
    with pytest.raises(ValueError, match="--fit pad is for whole frames; --augment multiscale"):
        dataclasses.replace(run, fit="pad")
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
