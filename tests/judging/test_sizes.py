"""One checkpoint, and clips of other lengths and sizes than it was trained with."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from media import savimae
from models import SMALL, small_model, write_checkpoint

import savimae as library
from savimae.data.lists import Video, find_videos, write_list
from savimae.model.classifier import HeadConfig, VideoClassifier
from savimae.samples.clips import ClipConfig
from savimae.samples.multi_view import ViewReader, Views

OTHER = {"num_frames": 4, "input_size": 96}
OPTIONS = ("--num-frames", "4", "--input-size", "96")


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    """One that sees the mean of all tokens, one that sees a mean for each time step."""
    paths = {}
    for pool in ("mean", "time"):
        torch.manual_seed(1)
        model = VideoClassifier(SMALL, 2, head_scale=5.0, head=HeadConfig(pool))
        paths[pool] = tmp_path_factory.mktemp("sizes") / f"{pool}.pt"
        write_checkpoint(paths[pool], model, n_classes=2, classes=["c0", "c1"])
    return paths


def views_of(path, **sizes):
    config = ClipConfig(sizes["num_frames"], 4, sizes["input_size"])
    return torch.from_numpy(ViewReader(config, Views()).read(Video(str(path), "v")))


def test_sizes_as_trained_change_nothing(checkpoint, data):
    video = next(data.rglob("*.avi"))
    expected = library.load_encoder(checkpoint).features(video)
    found = library.load_encoder(checkpoint, num_frames=8, input_size=64).features(video)
    np.testing.assert_array_equal(found, expected)


def test_the_same_parameters_work_on_clips_of_other_sizes(checkpoint, data, tmp_path):
    expected = small_model(**OTHER)
    expected.load_state_dict(small_model().state_dict())
    encoder = library.load_encoder(checkpoint, **OTHER)
    assert (encoder.clips.num_frames, encoder.clips.input_size) == (4, 96)
    assert encoder.model.positions.shape == (2 * 36, SMALL.encoder_dim)
    video = next(data.rglob("*.avi"))
    with torch.no_grad():
        tokens = expected.eval().encoder.whole(views_of(video, **OTHER))[0]
    np.testing.assert_allclose(encoder.features(video, pool="tokens"), tokens, atol=1e-5)
    done = savimae("features", checkpoint, "--data", video, "--out", tmp_path / "f.npz", *OPTIONS)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "f.npz") as content:
        np.testing.assert_allclose(content["values"][0], tokens.mean(0), atol=1e-5)
        assert json.loads(str(content["settings"]))["input_size"] == 96
    done = savimae("features", checkpoint, "--data", video, "--out", tmp_path / "f.npz")
    assert "input_size is 96 there and 64 here" in done.stderr


def test_positions_of_the_first_time_steps_stay(checkpoint):
    whole = library.load_encoder(checkpoint).model.positions
    longer = library.load_encoder(checkpoint, num_frames=32).model.positions
    assert torch.equal(longer[: len(whole)], whole)
    assert len(longer) == 4 * len(whole)


def test_probes_neighbors_and_attention_of_other_sizes(checkpoint, data, tmp_path):
    found = find_videos(str(data))
    lists = [tmp_path / "train.txt", tmp_path / "test.txt"]
    for path, some in zip(lists, (found.videos[:4], found.videos[4:]), strict=True):
        write_list(str(path), some, found.root, found.classes)
    done = savimae("probe", checkpoint, "--train", lists[0], "--test", lists[1], "--out",
                   tmp_path / "probe", "--pool", "tokens", "--no-baselines", *OPTIONS)  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "probe/pretrained-train.npz") as content:
        assert content["values"].shape == (4, 72, SMALL.encoder_dim)
    done = savimae("neighbors", checkpoint, "--data", data, "--out", tmp_path / "near", *OPTIONS)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "near/features.npz") as content:
        assert json.loads(str(content["settings"]))["num_frames"] == 4
    video = next(data.rglob("*.avi"))
    done = savimae("attention", checkpoint, video, "--out", tmp_path / "seen", *OPTIONS)
    assert done.returncode == 0, done.stderr
    with np.load(next((tmp_path / "seen").rglob("*.npz"))) as content:
        assert content["attention"].shape[1:] == (2, 6, 6)


def test_predictions_of_other_sizes(classifiers, data, tmp_path):
    video, out = next(data.rglob("*.avi")), tmp_path / "labels.csv"
    done = savimae("predict", classifiers["mean"], video, "--clips", "1", "--crops", "0", "--out",
                   out, *OPTIONS)  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = VideoClassifier(dataclasses.replace(SMALL, **OTHER), 2).eval()
    model.load_state_dict(torch.load(classifiers["mean"])["model"])
    with torch.no_grad():
        expected = model(views_of(video, **OTHER)).softmax(1)[0, 0]
    with open(out, newline="") as file:
        assert float(next(csv.DictReader(file))["p_c0"]) == pytest.approx(float(expected), abs=2e-6)
    assert 0.01 < expected < 0.99


def test_sizes_that_do_not_fit_are_one_line(checkpoint, classifiers, data, tmp_path):
    out = ("--out", tmp_path / "f.npz")
    for words, message in (
        (("features", checkpoint, "--data", data, *out, "--num-frames", "3"),
         f"{checkpoint}: num_frames 3 is not a multiple of tubelet_size 2"),
        (("predict", classifiers["mean"], data, "--input-size", "40"),
         "input_size 40 is not a multiple of patch_size 16"),
        (("predict", classifiers["time"], data, "--num-frames", "4"),
         f"{classifiers['time']}: its last layer sees a mean for each of 4 time steps, so that "
         "clips have 8 frames; leave --num-frames out, or fine-tune with it"),
    ):  # fmt: skip
        done = savimae(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    # Its frames may be larger, and its encoder takes clips of any length.
    assert savimae("predict", classifiers["time"], data, "--input-size", "96").returncode == 0
    done = savimae("features", classifiers["time"], "--data", data, *out, "--num-frames", "4")
    assert done.returncode == 0, done.stderr
