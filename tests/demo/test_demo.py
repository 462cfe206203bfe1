"""The demo, once and whole."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from media import savimae
from PIL import Image

from savimae.cli import cli
from savimae.commands.options import finetune_config, train_config
from savimae.data.lists import read_list
from savimae.data.video import open_video
from savimae.demo import run as demo
from savimae.demo import scores as demo_scores
from savimae.demo.scores import DemoScore, scores_table
from savimae.saliency.config import SaliencyConfig
from savimae.saliency.frames import video_patches
from savimae.samples.clips import ClipConfig, ClipReader
from savimae.samples.masking import MaskSpec, draw_masks
from savimae.samples.randomness import sample_keys
from savimae.training.finetune import FinetuneConfig
from savimae.training.log import read_log
from savimae.training.pretrain import TrainConfig
from savimae.training.setup import options_of
from savimae.training.weights import load_model


def centroid(frames: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Mean position (x, y) of what differs from the background."""
    different = np.abs(frames.astype(int) - background).sum(-1) > 60
    rows, columns = np.nonzero(different)
    return np.array([columns.mean(), rows.mean()])


@pytest.mark.parametrize("direction", range(8))
def test_objects_move_as_their_label_says(direction):
    frames = np.stack(list(demo.moving_object("rocket", direction, np.random.default_rng(3))))
    background = np.median(frames, 0)
    motion = centroid(frames[-1], background) - centroid(frames[0], background)
    angle = np.degrees(np.arctan2(motion[1], motion[0]))  # y points down, as in the names
    assert abs((angle - 45 * direction + 180) % 360 - 180) < 15
    assert np.hypot(*motion) > 25


@pytest.fixture(scope="module")
def whole_demo(tmp_path_factory):
    """A demo's folder and what it printed: one that is there already, or a new one."""
    if made := os.environ.get("SAVIMAE_TEST_DEMO"):
        return Path(made), Path(f"{made}.txt").read_text()
    out = tmp_path_factory.mktemp("demo") / "demo"
    done = savimae("demo", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_every_path_that_is_printed_is_there(whole_demo):
    out, printed = whole_demo
    written = [line.split()[-1] for line in printed.splitlines() if line.startswith("   wrote ")]
    names = [path.rpartition("demo/")[2] for path in written]
    assert names == [
        "inspect.png", "inspect.mp4", "run/log.jsonl", "run/checkpoints/last.pt",
        "reconstructions/right_cat_01.png", "reconstructions/right_cat_01.mp4",
        "reconstructions/reconstruction.json",
    ]  # fmt: skip
    assert all((out / name).stat().st_size > 1000 for name in names[:-1])
    picture = Image.open(out / names[-3])
    assert np.asarray(picture.convert("RGB")).std() > 20


def test_the_model_learned_more_than_the_mean_of_each_patch(whole_demo):
    """With normalised targets, a model that predicts each patch's mean predicts 0."""
    out, _ = whole_demo
    log = read_log(str(out / "run"))
    assert log[-1]["loss"] < log[0]["loss"]
    model = load_model(str(out / "run/checkpoints/last.pt")).eval()
    reader = ClipReader(ClipConfig(8, 4, 96), SaliencyConfig(96, 16), 2, str(out / "saliency"))
    spec = MaskSpec("savi", 4, 6, salient_mask_ratio=0.5, nonsalient_mask_ratio=0.75)
    videos = read_list(str(out / "direction.txt")).videos
    keys = sample_keys(0, 1000, np.arange(len(videos)))  # an epoch that it has not seen
    errors = of_means = 0.0
    for video, key in zip(videos, keys, strict=True):
        clip = reader.read(video, key)
        mask = torch.from_numpy(draw_masks(spec, np.array([key]), clip.saliency[None]))
        with torch.no_grad():
            output = model(torch.from_numpy(clip.pixels)[None], mask)
        errors += float(output.loss_sum)
        of_means += float(output.target.square().sum())
    # 1 is a model that has learned nothing.
    assert errors / of_means < 0.9


def test_the_videos_are_labelled_and_the_same_every_time(whole_demo, tmp_path):
    out, printed = whole_demo
    assert "64 videos, 3072 frames" in printed
    labels = read_list(str(out / "direction.txt"))
    assert labels.classes == list(demo.DIRECTIONS)
    assert np.bincount([video.label for video in labels.videos]).tolist() == [8] * 8
    objects = read_list(str(out / "object.txt"))
    assert np.bincount([video.label for video in objects.videos]).tolist() == [16] * 4
    for video in labels.videos:
        array = np.load(out / "saliency" / f"{video.name}.npy")
        assert array.shape == (48, 6, 6)
        assert 0 < array.mean() < 0.6
    demo.make_demo_set(str(tmp_path), seed=0)
    for video in labels.videos:
        name = video.path.removeprefix(str(out))
        assert (tmp_path / name.lstrip("/")).read_bytes() == (out / name.lstrip("/")).read_bytes()
    expected = video_patches(open_video(labels.videos[0].path), SaliencyConfig(96, 16))
    first = np.load(out / "saliency" / f"{labels.videos[0].name}.npy")
    np.testing.assert_array_equal(first, expected)


def test_another_seed_wants_another_folder(whole_demo):
    out, _ = whole_demo
    done = savimae("demo", "--out", out, "--seed", "6")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "seed is 0 there and 6 here" in done.stderr


# ------------------------------------------------------------------------------ what it is worth


def parsed(command, words):
    params = cli.commands[command].make_context(command, words, parent=click.Context(cli)).params
    return {name: value for name, value in params.items() if name != "allocator"}


def test_commands_that_are_printed_do_the_same():
    of_training = TrainConfig("a list", "run", saliency_root="s", model="tiny", hflip=True, lr=0.5)
    words = shlex.split(" ".join(options_of(of_training)))
    assert train_config(**parsed("train", words)) == of_training
    of_finetuning = FinetuneConfig(
        "train", "out", checkpoint="run", test="test", untrained=True, hflip=False, test_crops=None
    )
    words = shlex.split(" ".join(options_of(of_finetuning)))
    assert words == ["--train", "train", "--out", "out", "--test", "test", "--untrained",
                     "--no-hflip", "--test-crops", "0"]  # fmt: skip
    assert finetune_config(**parsed("finetune", ["run", *words])) == of_finetuning


def test_table_of_scores():
    scores = [
        DemoScore("object", "kNN", "pretrained", 1, 0.5),
        DemoScore("object", "kNN", "raw pixels", 1, 0.25),
        DemoScore("object", "fine-tuned", "untrained", 1, 1.0),
        DemoScore("object", "kNN", "pretrained", 2, 0.75),
        DemoScore("direction", "kNN", "pretrained", 1, 0.125),
        DemoScore("object", "kNN", "pretrained", 3, 0.7),
    ]
    assert scores_table(scores).splitlines() == [
        "top-1                        pretrained  untrained  raw pixels",
        "object (chance 0.250)",
        "  kNN                     0.650 ± 0.132          -       0.250",
        "  fine-tuned                          -      1.000           -",
        "direction (chance 0.125)",
        "  kNN                             0.125          -           -",
    ]


def test_full_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_scores, "SEEDS", (1,))
    monkeypatch.setattr(demo_scores, "INPUT_SIZE", 48)  # a quarter of the tokens
    monkeypatch.setattr(demo, "DIRECTIONS", demo.DIRECTIONS[:3])  # and of the videos
    for what in ("PRETRAINING_COPIES", "LABELLED_COPIES", "TEST_COPIES", "PRETRAINING_EPOCHS",
                 "FINETUNING_EPOCHS"):  # fmt: skip
        monkeypatch.setattr(demo_scores, what, 1)
    assert demo_scores.run_full_demo(str(tmp_path), 4, 2) == 0
    printed = capsys.readouterr().out
    scores = [DemoScore(**each) for each in json.loads((tmp_path / "scores.json").read_text())]
    assert printed.endswith(f"{scores_table(scores)}\nwrote {tmp_path}/scores.json\n")
    assert len(scores) == 2 * (2 * 2 * 3 + 2)  # labels, pools x classifiers x features, fine-tuned
    known = {(each.label, each.way, each.features): each.top1 for each in scores}
    result = json.loads((tmp_path / "seed-1/direction-untrained/test.json").read_text())
    assert known["direction", "fine-tuned", "untrained"] == result["top1"]
    # Features are shared by the labels, and each label is asked for.
    with np.load(tmp_path / "seed-1/probe-tokens/pretrained-test.npz") as features:
        assert features["values"].shape == (12, 36, 192)
        assert np.bincount(features["labels"]).tolist() == [4] * 3
    raw = {way: known["object", way, "raw pixels"] for way in ("linear, mean of tokens",
                                                               "linear, all tokens")}  # fmt: skip
    assert len(set(raw.values())) == 1
    assert raw["linear, all tokens"] > 0.4  # chance 0.25
    recorded = [
        json.loads((tmp_path / part / "config.json").read_text())
        for part in ("labelled", "test", "unlabelled")
    ]
    assert len({each["seed"] for each in recorded}) == 3  # no video is in two of them
