"""Fine-tuning: its numbers against ones written out by hand, and runs of it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from media import encode, moving_frames, random_bytes, savimae
from models import classifier_at
from runs import (
    checkpoint,
    config,
    finish,
    hooked,
    losses,
    make_videos,
    ranks,
    same_weights,
    stopping,
)

from savimae.data.lists import Video, label_of, read_list
from savimae.model.classifier import HeadConfig, VideoClassifier
from savimae.model.config import model_config
from savimae.samples.augment import (
    Mixing,
    draw_mixing,
    drop_path_branches,
    drop_path_rates,
    dropout_features,
    erase,
    mix_clips,
    resized_crop_box,
    soft_target,
)
from savimae.samples.clips import ClipConfig
from savimae.samples.multi_view import ViewReader, Views
from savimae.samples.randomness import sample_keys
from savimae.system.errors import SavimaeError, UsageError
from savimae.system.signals import StopSignals
from savimae.system.sizes import Sides
from savimae.training.checkpoint import SaveEvery
from savimae.training.classifier_test import ClassifierTest, summarize
from savimae.training.distributed import World
from savimae.training.finetune import FinetuneConfig, finetune
from savimae.training.loop import Loop
from savimae.training.optimizer import layer_of, parameter_groups
from savimae.training.pretrain import train
from savimae.training.schedule import Schedule
from savimae.training.weights import load_model

KEYS = sample_keys(0, 0, np.arange(2000))

# ------------------------------------------------------------------------- numbers, by hand


class TwoViews:
    """A reader whose two views of video `name` are its number, and that plus 2."""

    def read(self, video):
        return np.array([[int(video.name)], [int(video.name) + 2]], np.float32)


def test_a_test_averages_softmax_and_goes_on(tmp_path):
    # Class k has the logit log(weights[k]) for a view of value k or less, else 0.
    weights = torch.tensor([1.0, 2, 3, 4, 5, 6])
    model = torch.nn.Module()
    model.forward = lambda views: torch.where(views <= torch.arange(6), weights.log(), 0.0)
    videos = [Video(str(n), str(n), label) for n, label in ((0, 5), (3, 0), (4, 1))]

    def of_step(step):
        settings = {"step": step}
        path = str(tmp_path / "test.partial.npz")
        return ClassifierTest(
            path, settings, videos, 6, TwoViews(), 1, torch.device("cpu"), "fp32", World()
        )

    # Views 0 and 2: (1 2 3 4 5 6) / 21 and (1 1 3 4 5 6) / 20; 3 and 5: (1 1 1 4 5 6) / 18 and
    # (1 1 1 1 1 6) / 11; 4 and 6: (1 1 1 1 5 6) / 15 and all 1 / 6.
    by_hand = np.array([
        (np.array([1, 2, 3, 4, 5, 6]) / 21 + np.array([1, 1, 3, 4, 5, 6]) / 20) / 2,
        (np.array([1, 1, 1, 4, 5, 6]) / 18 + np.array([1, 1, 1, 1, 1, 6]) / 11) / 2,
        (np.array([1, 1, 1, 1, 5, 6]) / 15 + np.ones(6) / 6) / 2,
    ])  # fmt: skip
    found = of_step(7).run(model, StopSignals())
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)
    # What was kept of another test does not count, of this one it does.
    path = tmp_path / "test.partial.npz"
    kept = np.array([[0, 0, 1, 0, 0, 0]], np.float32)
    np.savez(path, probabilities=kept, settings=np.array(json.dumps({"step": 7})))
    assert np.array_equal(of_step(8).run(model, StopSignals()), found)
    assert np.array_equal(of_step(7).run(model, StopSignals()), [*kept, *found[1:]])

    step = np.array(json.dumps({"step": 7}))
    for wrong in (
        np.float32(3), np.ones(6, np.float32), np.ones((1, 5), np.float32), np.ones((1, 6)),
        np.ones((4, 6), np.float32), np.full((1, 6), np.nan, np.float32),
    ):  # fmt: skip
        np.savez(path, probabilities=wrong, settings=step)
        with pytest.raises(SavimaeError, match=r"partial\.npz: not what a test leaves"):
            of_step(7).run(model, StopSignals())
    for content in (b"[" * 100_000, b"", path.read_bytes()[:-30]):
        path.write_bytes(content)
        with pytest.raises(SavimaeError, match=r"partial\.npz: not what a test leaves"):
            of_step(7).run(model, StopSignals())


def test_a_summary_counts_what_is_likeliest():
    videos = [Video(str(n), str(n), label) for n, label in enumerate((5, 0, 1, 1))]
    likely = np.array([
        [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 5, 4], [0, 9, 0, 0, 0, 0],
    ]) / 21  # fmt: skip
    result = summarize(likely, videos, list("abcdef"))
    assert (result["top1"], result["top5"], result["videos"]) == (2 / 4, 3 / 4, 4)
    assert result["top1_of_class"] == {"a": 0, "b": 0.5, "f": 1}
    confusion = np.zeros((6, 6), int)
    confusion[[5, 0, 1, 1], [5, 5, 4, 1]] = 1
    assert result["confusion"] == confusion.tolist()
    with pytest.raises(SavimaeError, match="no finite numbers"):
        summarize(likely * np.nan, videos, list("abcdef"))


def test_layers_and_their_learning_rates():
    shape = model_config("tiny", input_size=32, num_frames=4)  # 12 blocks
    model = VideoClassifier(shape, 5)
    rates = {
        "encoder.patch_embed.proj.weight": 0.75**13,
        "encoder.patch_embed.proj.bias": 0.75**13,
        "encoder.blocks.0.norm1.weight": 0.75**12,
        "encoder.blocks.0.attn.q_bias": 0.75**12,
        "encoder.blocks.5.mlp.fc1.weight": 0.75**7,
        "encoder.blocks.11.attn.proj.weight": 0.75,
        "fc_norm.weight": 1.0,
        "head.weight": 1.0,
        "head.bias": 1.0,
    }
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model.named_parameters(), 12, 0.05, 0.75)
    found = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    assert len(found) == len(names)
    for name, rate in rates.items():
        assert found[name][0] == pytest.approx(rate, rel=1e-12), name
    decayed = {name for name, (_, decay) in found.items() if decay == 0.05}
    assert {"head.weight", "encoder.blocks.3.attn.qkv.weight"} <= decayed
    assert not any(name.endswith("bias") or "norm" in name for name in decayed)
    assert [layer_of(f"encoder.blocks.{i}.x", 12) for i in (0, 11)] == [1, 12]


def test_drop_path_rates_and_branches():
    np.testing.assert_allclose(drop_path_rates(0.2, 5), [0, 0.05, 0.1, 0.15, 0.2])
    branches = np.stack([drop_path_branches(key, 0.2, 5) for key in KEYS])
    assert (branches[:, 0] == 1).all()  # the first block is never dropped
    assert set(np.unique(branches[:, 4])) == {0.0, np.float32(1 / 0.8)}
    # 4000 draws of 0.2: a standard deviation of 0.0063.
    assert (branches[:, 4] == 0).mean() == pytest.approx(0.2, abs=0.03)
    assert branches[:, 2].mean() == pytest.approx(1, abs=0.03)


def test_a_dropped_branch_is_as_if_the_block_were_not_there():
    shape = model_config("tiny", input_size=32, num_frames=4, encoder_depth=2)
    model = VideoClassifier(shape, 3, head_scale=1.0).eval()
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    branches = torch.ones(2, 2, 2)
    torch.testing.assert_close(model(clips, branches), model(clips))
    branches[1, :, 0] = 0  # the second block of the first clip
    mixed = model(clips, branches)
    torch.testing.assert_close(mixed[1], model(clips)[1])
    del model.encoder.blocks[1]
    torch.testing.assert_close(mixed[0], model(clips)[0])


def test_dropped_features_do_not_reach_the_head():
    drawn = np.stack([dropout_features(key, 0.3, 192) for key in KEYS[:50]])
    assert set(np.unique(drawn)) == {0.0, np.float32(1 / 0.7)}
    # 9600 draws of 0.3: a standard deviation of 0.0047.
    assert (drawn == 0).mean() == pytest.approx(0.3, abs=0.02)
    assert (dropout_features(KEYS[0], 0.0, 192) == 1).all()
    shape = model_config("tiny", input_size=32, num_frames=4, encoder_depth=1)
    model = VideoClassifier(shape, 3, head_scale=1.0).eval()
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    features = torch.zeros(2, 192)
    features[1] = 1
    logits = model(clips, None, features)
    torch.testing.assert_close(logits[0], model.head.bias)
    torch.testing.assert_close(logits[1], model(clips)[1])


def test_the_head_sees_standardised_means_of_time_steps():
    shape = model_config("tiny", input_size=32, num_frames=6, encoder_depth=1)  # 3 steps of 4
    torch.manual_seed(0)
    head = HeadConfig("time", standardize=True)
    model = VideoClassifier(shape, 5, head_scale=1.0, head=head)
    clips = torch.randint(0, 256, (4, 6, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        tokens = model.encoder.whole(clips).view(4, 3, 4, 192)
        features = model.fc_norm(tokens.mean(2)).flatten(1)  # [4, 576]
        mean, variance = features.mean(0), features.var(0, correction=0)
        wanted = model.head((features - mean) / (variance + 1e-5).sqrt())
        torch.testing.assert_close(model.train()(clips), wanted)
        # Running values move by a tenth; that of the variance is the unbiased one.
        torch.testing.assert_close(model.standardize.mean, 0.1 * mean)
        running = 0.9 + 0.1 * features.var(0)
        torch.testing.assert_close(model.standardize.variance, running)
        alone = model.eval()(clips[:1])
        wanted = model.head((features[:1] - 0.1 * mean) / (running + 1e-5).sqrt())
        torch.testing.assert_close(model.train()(clips[:1]), wanted)
        torch.testing.assert_close(alone, wanted)
    names = {name for name, _ in model.named_parameters()}
    assert not any("standardize" in name for name in names)  # nothing of it is learned
    with pytest.raises(ValueError, match="pool 'space' is not one of mean, time"):
        HeadConfig("space")


def test_targets():
    np.testing.assert_allclose(soft_target(2, 2, 1.0, 4, 0.0), [0, 0, 1, 0])
    np.testing.assert_allclose(soft_target(2, 2, 1.0, 4, 0.1), [0.025, 0.025, 0.925, 0.025])
    np.testing.assert_allclose(
        soft_target(0, 3, 0.7, 4, 0.1), [0.025 + 0.63, 0.025, 0.025, 0.025 + 0.27], rtol=1e-6
    )


def test_mixing():
    black, white = np.zeros((2, 8, 8, 3), np.uint8), np.full((2, 8, 8, 3), 200, np.uint8)
    assert (mix_clips(black, white, Mixing(0.75, None)) == 50).all()
    mixed = mix_clips(black, white, Mixing(0.875, (2, 4, 0, 4)))
    assert (mixed[:, 2:4, :4] == 200).all()
    assert mixed.sum() == 2 * 2 * 4 * 3 * 200
    assert draw_mixing(Sides(8, 8), 0, 0, KEYS[0]) == Mixing(1.0, None)
    both = [draw_mixing(Sides(64, 64), 0.8, 1.0, key) for key in KEYS]
    boxes = [each for each in both if each.box is not None]
    assert len(boxes) == pytest.approx(1000, abs=100)
    for each in boxes:
        top, bottom, left, right = each.box
        assert each.share == 1 - (bottom - top) * (right - left) / 64**2
    shares = np.array([each.share for each in both if each.box is None])
    # Beta(0.8, 0.8): mean 1/2, variance 1 / (4 * 2.6).
    assert shares.mean() == pytest.approx(0.5, abs=0.04)
    assert shares.var() == pytest.approx(1 / (4 * 2.6), abs=0.01)
    assert all(draw_mixing(Sides(64, 64), 0.8, 0, key).box is None for key in KEYS[:50])
    assert all(draw_mixing(Sides(64, 64), 0, 1.0, key).box is not None for key in KEYS[:50])


def test_crops():
    boxes = [resized_crop_box(240, 320, Sides(32, 32), 0.3, key) for key in KEYS]
    shares = np.array([box.width * box.height for box in boxes]) / (240 * 320)
    assert 0.29 < shares.min() < 0.35
    assert 0.9 < shares.max() <= 1
    aspects = np.array([box.width / box.height for box in boxes])
    assert aspects.min() == pytest.approx(3 / 4, abs=0.02)
    assert aspects.max() == pytest.approx(4 / 3, abs=0.02)
    assert all(box.left + box.width <= 320 and box.top + box.height <= 240 for box in boxes)
    wide = resized_crop_box(10, 400, Sides(32, 32), 1.0, KEYS[0])  # nothing fits: the middle, 4:3
    assert (wide.width, wide.height, wide.left) == (13, 10, 193)


def test_erasing():
    gray = np.full((2, 64, 64, 3), 7, np.uint8)
    touched = []
    for key in KEYS[:400]:
        pixels = gray.copy()
        erase(pixels, 0.25, key)
        touched.append((pixels != gray).any((0, 3)).mean())
    touched = np.array(touched)
    assert (touched > 0).mean() == pytest.approx(0.25, abs=0.07)
    assert touched[touched > 0].min() > 0.01
    assert touched.max() < 0.35
    first, again = gray.copy(), gray.copy()
    erase(first, 1.0, KEYS[3])
    erase(again, 1.0, KEYS[3])
    assert (first == again).all()
    assert (first != gray).any((1, 2, 3)).all()  # every frame


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing 1.0 is not in"),
        ({"smallest_crop": 0.0}, "smallest_crop 0.0 is not in"),
        ({"layer_decay": 1.5}, "layer_decay 1.5 is not in"),
        ({"mixup": -1.0}, "mixup must be at least 0"),
        ({"test_clips": 0}, "clips must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"test": None}, "give --test and a list for --train, or --dataset"),
        ({"dataset": "ucf101"}, "give --test and a list for --train, or --dataset"),
        ({"splits": "x"}, "--splits goes with --dataset"),
        ({"pool": "tokens"}, "pool 'tokens' is not one of mean, time"),
        ({"standardize": True, "batch_size": 1}, "give --batch-size 2 or more"),
        ({"split": 1}, "--split goes with --dataset"),
        ({"test": None, "dataset": "ucf101", "root": "x"}, "--root is for lists; --dataset takes"),
    ],
)
def test_options_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        FinetuneConfig("train", "out", **{"test": "test", **changes})


# ------------------------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("finetune"))


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("finetune") / "pretrained"
    assert train(config(data, run, epochs=1)) == 0
    return run


COMMON = {
    "epochs": 2, "batch_size": 4, "lr": 1e-3, "precision": "fp32", "threads": 1, "log_every": 1,
    "device": "cpu", "smallest_crop": 0.5, "test_clips": 2, "drop_path": 0.2, "ema": 0.9,
}  # fmt: skip


def finetune_config(pretrained: Path, data: Path, out: Path, **changes):
    values = {**COMMON, "test_crops": 2, "save_every": (SaveEvery(steps=2),), **changes}
    values = {"test": str(data), "allow_overlap": True, **values}  # tested on what it is trained on
    return FinetuneConfig(str(data), str(out), checkpoint=str(pretrained), **values)


def finetune_command(pretrained: Path, data: Path, out: Path, **changes):
    values = {**COMMON, "test_crops": 2, "save_every": "2steps", **changes}
    words = [
        word
        for name, value in values.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    return ["finetune", str(pretrained), "--train", str(data), "--test", str(data), "--out",
            str(out), "--allow-overlap", *words]  # fmt: skip


@pytest.fixture(scope="module")
def expected(pretrained, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("finetune") / "run"
    assert finetune(finetune_config(pretrained, data, out, test_every=1)) == 0
    return out


def top1_of(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["test_top1"]) for line in lines if "test_top1" in line]


def test_it_begins_with_the_pretrained_encoder_and_is_tested(pretrained, data, expected):
    content = checkpoint(expected)
    assert content["config"]["n_classes"] == 2
    assert content["config"]["classes"] == ["c0", "c1"]
    first = losses(expected)[0]
    assert first == pytest.approx(math.log(2), abs=0.05)  # a head scaled to nearly nothing
    # The test, by hand: averaged weights, softmax averaged over 2 clips x 2 crops.
    shape = load_model(str(pretrained)).config
    model = classifier_at(expected)
    averaged = content["extra"]["ema"]
    assert int(averaged["n_averaged"]) == 6
    assert torch.equal(model.head.weight, averaged["module.head.weight"])
    assert not torch.equal(model.head.weight, content["model"]["head.weight"])
    task = finetune_config(pretrained, data, expected)
    reader = ViewReader(ClipConfig(shape.num_frames, 2, shape.input_size), Views(2, 2))
    confusion = np.zeros((2, 2), int)
    for video in read_list(task.test).videos:
        with torch.no_grad():
            mean = model(torch.from_numpy(reader.read(video))).softmax(1).mean(0)
        confusion[label_of(video), int(mean.argmax())] += 1
    result = json.loads((expected / "test.json").read_text())
    assert result["confusion"] == confusion.tolist()
    assert result["top1"] == np.trace(confusion) / 11
    assert (result["top5"], result["videos"]) == (1.0, 11)
    assert [step for step, _ in top1_of(expected)] == [3, 6]
    assert top1_of(expected)[-1] == (6, result["top1"])


def test_untrained_weights_are_others(pretrained, data, expected, tmp_path):
    changes = {"epochs": 1, "untrained": True}
    assert finetune(finetune_config(pretrained, data, tmp_path / "run", **changes)) == 0
    ours = checkpoint(tmp_path / "run")["model"]["encoder.blocks.0.attn.qkv.weight"]
    theirs = checkpoint(expected)["model"]["encoder.blocks.0.attn.qkv.weight"]
    start = load_model(str(pretrained)).encoder.blocks[0].attn.qkv.weight
    assert (theirs - start).norm() < 0.05 * start.norm()  # layer decay: it hardly moves
    assert (ours - start).norm() > start.norm()


def test_clips_of_other_sizes_than_in_pretraining(pretrained, data, tmp_path):
    changes = {"epochs": 1, "num_frames": 8, "input_size": 48, "pool": "time"}
    run = tmp_path / "run"
    assert finetune(finetune_config(pretrained, data, run, **changes)) == 0
    found, begun = checkpoint(run), load_model(str(pretrained)).config
    shape = {name: found["config"][name] for name in ("num_frames", "input_size")}
    assert shape == {"num_frames": 8, "input_size": 48}
    assert (begun.num_frames, begun.input_size) == (4, 32)
    assert found["model"]["head.weight"].shape == (2, 4 * begun.encoder_dim)
    assert classifier_at(run).encoder.positions.shape == (4 * 9, begun.encoder_dim)
    with pytest.raises(UsageError, match="input_size is 48 there and 32 here"):
        finetune(finetune_config(pretrained, data, run, **{**changes, "input_size": None}))
    # Its encoder starts other classifiers, also with clips of another length.
    again = {"epochs": 1, "num_frames": 2, "input_size": 48}
    assert finetune(finetune_config(run, data, tmp_path / "again", **again)) == 0
    with pytest.raises(UsageError, match="num_frames 5 is not a multiple of tubelet_size 2"):
        finetune(finetune_config(pretrained, data, tmp_path / "odd", num_frames=5))
    assert not (tmp_path / "odd").exists()


def test_the_learning_rate_of_every_layer_at_every_step(pretrained, data, tmp_path, monkeypatch):
    steps, of_adamw = [], torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        steps.append([(group["lr"], group["weight_decay"]) for group in self.param_groups])
        return of_adamw(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    changes = {"warmup_epochs": 1.0, "min_lr": 1e-5, "layer_decay": 0.5}
    assert finetune(finetune_config(pretrained, data, tmp_path / "run", **changes)) == 0
    # Three steps of warm-up from 0 to 1e-3, then 1e-5 + (1e-3 - 1e-5) / 2 (1 + cos(pi s / 3)).
    by_step = [0, 5e-4, 1e-3, 1e-3, 7.525e-4, 2.575e-4]
    # 4 layers: patch embedding, 2 blocks, head; each with and without weight decay.
    by_layer = [0.125, 0.25, 0.5, 1]
    expected = [[(lr * scale, decay) for scale in by_layer for decay in (0, 0.05)]
                for lr in by_step]  # fmt: skip
    np.testing.assert_allclose(steps, expected, rtol=1e-12)
    # The published run of UCF101: 5e-4 * 128 / 256 after five epochs.
    published = FinetuneConfig("train", "run", test="test")
    assert (published.default_base_lr, published.longest_warmup) == (5e-4, 5)
    assert Schedule(2.5e-4, 1e-6, 7500, 375).at(374) == 2.5e-4
    middle = Schedule(2.5e-4, 1e-6, 7500, 375).at(375 + 7125 // 3)  # cos(pi / 3) = 1 / 2
    assert middle == pytest.approx(1e-6 + 0.75 * 2.49e-4, rel=1e-12)


def test_killed_and_resumed_is_exact(pretrained, data, expected, tmp_path):
    run = tmp_path / "run"
    words = finetune_command(pretrained, data, run, test_every=1)
    hook = """
from savimae.training.finetune import Finetuning
original_finetuning, n_calls = Finetuning.loss, 0
def finetuning_loss(self, batch):
    global n_calls
    n_calls += 1
    if n_calls == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return original_finetuning(self, batch)
Finetuning.loss = finetuning_loss
at_call = lambda n: None
"""
    code, text = finish(hooked(hook, words))
    assert code == -9, text
    assert finetune(finetune_config(pretrained, data, run, test_every=1)) == 0
    assert same_weights(run, expected)
    ours, theirs = checkpoint(run)["extra"]["ema"], checkpoint(expected)["extra"]["ema"]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert top1_of(run) == top1_of(expected)
    message = (
        r"layer_decay is 0\.75 there and 0\.5 here\. Choose another --out, or repeat the settings "
        r"it was made with\. What may change in a run: --epochs or --steps, to more, with --extend"
    )
    with pytest.raises(UsageError, match=message):
        finetune(finetune_config(pretrained, data, run, layer_decay=0.5))


HEAD = {"pool": "time", "standardize": True}


def test_another_head_is_kept_and_resumed_exactly(pretrained, data, tmp_path, monkeypatch):
    settings = {**HEAD, "test_every": 1, "head_dropout": 0.1}
    runs = [tmp_path / "whole", tmp_path / "parts"]
    assert finetune(finetune_config(pretrained, data, runs[0], **settings)) == 0
    monkeypatch.setattr(Loop, "run", stopping(Loop.run, 2))
    assert finetune(finetune_config(pretrained, data, runs[1], **settings)) == 85
    monkeypatch.undo()
    assert finetune(finetune_config(pretrained, data, runs[1], **settings)) == 0
    assert same_weights(*runs)
    assert top1_of(runs[1]) == top1_of(runs[0])
    content = checkpoint(runs[0])
    assert {name: content["settings"][name] for name in HEAD} == HEAD
    assert content["model"]["head.weight"].shape == (2, 2 * 192)
    assert content["model"]["standardize.mean"].abs().min() > 0
    # The running means of the averaged weights are those of the model.
    model = classifier_at(runs[0])
    assert torch.equal(model.standardize.mean, content["model"]["standardize.mean"])
    message = r"pool is 'time' there and None here; standardize is True there and None here"
    with pytest.raises(UsageError, match=message):
        finetune(finetune_config(pretrained, data, runs[0], head_dropout=0.1, test_every=1))


def test_all_processes_test_with_the_running_means_of_the_first(pretrained, data, tmp_path):
    words = finetune_command(pretrained, data, tmp_path / "run", batch_size=2, pool="time")
    hook = """
from savimae.training.classifier_test import ClassifierTest
of_run = ClassifierTest.run
def run(self, model, signals):
    print("means", model.module.standardize.mean.double().sum().item())
    return of_run(self, model, signals)
ClassifierTest.run = run
at_call = lambda n: None
"""
    means = []
    for process in ranks(2, [*words, "--standardize"], hook):
        code, text = finish(process)
        assert code == 0, text
        means += [float(line[6:]) for line in text.splitlines() if line.startswith("means ")]
    kept = classifier_at(tmp_path / "run").standardize.mean.double().sum().item()
    assert means == [kept, kept]


def test_stopped_in_a_test_and_resumed(pretrained, data, expected, tmp_path):
    run = tmp_path / "run"
    words = finetune_command(pretrained, data, run, test_every=1)
    hook = """
from savimae.training.classifier_test import ClassifierTest
of_test, n_calls = ClassifierTest._predict, 0
def predict(self, model, video):
    global n_calls
    n_calls += 1
    if n_calls == STOP:
        os.kill(os.getpid(), signal.SIGUSR1)
    return of_test(self, model, video)
ClassifierTest._predict = predict
at_call = lambda n: None
"""
    # In the first test; in the rest of it; then, by one of two processes, in the last test.
    for stop, processes, known in (("4", 1, 4), ("3", 1, 7), ("5", 2, 6)):
        if processes == 2:
            words[words.index("--batch-size") + 1] = "2"
        for process in ranks(processes, words, hook.replace("STOP", stop)):
            code, text = finish(process)
            assert code == 85, text
        with np.load(run / "test.partial.npz") as partial:
            assert partial["probabilities"].shape == (known, 2)
            step = json.loads(str(partial["settings"]))["step"]
        assert step == (3 if processes == 1 else 6)
        assert not (run / "test.json").exists()
        saved = checkpoint(run)
        assert (saved["step"], "is_tested" in saved) == (step, False)
    whole = (run / "test.partial.npz").read_bytes()
    random_bytes(run / "test.partial.npz")
    with pytest.raises(
        SavimaeError, match=r"test\.partial\.npz: not what a test leaves .* delete it"
    ):
        finetune(finetune_config(pretrained, data, run, test_every=1))
    (run / "test.partial.npz").write_bytes(whole)
    assert finetune(finetune_config(pretrained, data, run, test_every=1)) == 0
    assert not (run / "test.partial.npz").exists()
    assert checkpoint(run)["is_tested"] is True
    assert [step for step, _ in top1_of(run)] == [3, 6]
    assert (run / "test.json").read_bytes() == (expected / "test.json").read_bytes()
    assert finetune(finetune_config(pretrained, data, run, test_every=1)) == 0  # nothing to do
    assert [step for step, _ in top1_of(run)] == [3, 6]


def test_two_processes_give_the_losses_of_one(pretrained, data, expected, tmp_path):
    words = finetune_command(pretrained, data, tmp_path / "run", batch_size=2)
    for process in ranks(2, words):
        code, text = finish(process)
        assert code == 0, text
    assert np.allclose(losses(tmp_path / "run"), losses(expected), rtol=0, atol=1e-5)
    ours, theirs = (json.loads((r / "test.json").read_text()) for r in (tmp_path / "run", expected))
    assert ours["videos"] == theirs["videos"] == 11
    assert np.sum(ours["confusion"]) == 11


def test_what_does_not_fit_is_one_line(pretrained, data, tmp_path):
    beyond = tmp_path / "test.txt"
    beyond.write_text(f"{data.parent}/videos/c0/v00 5\n")
    words = finetune_command(pretrained, data, tmp_path / "run")
    words[words.index("--test") + 1] = str(beyond)
    done = savimae(*words)
    assert done.returncode == 2
    assert "v00 has label 5, which no training video of" in done.stderr
    done = savimae(*finetune_command(data, data, tmp_path / "run"))
    assert done.returncode == 1
    assert "not a checkpoint that can be loaded safely" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_labels_are_those_of_the_training_list(pretrained, data, tmp_path):
    """Classes are matched by name; numbers of the list need not begin at 0."""
    lines = data.read_text().splitlines()
    classes = next(line for line in lines if line.startswith("# classes"))
    root = next(line for line in lines if line.startswith("# root"))
    videos = [line.rpartition(" ")[0] for line in lines if line.endswith((" 0", " 1"))]
    trained, tested = tmp_path / "train.txt", tmp_path / "test.txt"
    (tmp_path / "videos").symlink_to(data.parent / "videos")

    def write(path, header, numbers):
        body = [f"{name} {numbers[int(name[1])]}" for name in videos]
        path.write_text("\n".join([*header, *body]) + "\n")

    def confusion(run):
        changes = {"epochs": 1, "test": str(tested), "ema": 0.0}
        assert finetune(finetune_config(pretrained, trained, run, **changes)) == 0
        return json.loads((run / "test.json").read_text())

    names = ['# classes: ["c0", "c1"]', '# classes: ["c1", "c0"]']
    assert classes == names[0]
    write(trained, [root, names[0]], (0, 1))
    write(tested, [root, names[0]], (0, 1))
    expected = confusion(tmp_path / "expected")
    assert expected["test_videos_in_training"] == 11
    assert expected["classes"] == ["c0", "c1"]
    assert np.sum(expected["confusion"], 1).tolist() == [6, 5]
    write(tested, [root, names[1]], (1, 0))  # the other way round: the same classes
    assert confusion(tmp_path / "named") == expected
    write(trained, [root], (3, 7))
    write(tested, [root], (3, 7))
    holes = confusion(tmp_path / "holes")
    assert holes["confusion"] == expected["confusion"]
    assert (holes["classes"], holes["labels_in_the_training_list"]) == (["3", "7"], [3, 7])
    assert checkpoint(tmp_path / "holes")["config"]["n_classes"] == 2
    write(trained, [root], (7, 3))  # labels are among the settings
    with pytest.raises(UsageError, match="labels is "):
        confusion(tmp_path / "holes")


def test_training_videos_in_the_test_are_refused(pretrained, data, tmp_path):
    with pytest.raises(UsageError, match="11 of 11 test videos are training videos as well"):
        finetune(finetune_config(pretrained, data, tmp_path / "run", allow_overlap=False))
    assert not (tmp_path / "run").exists()


def test_an_official_split(pretrained, tmp_path):
    """UCF101's split files beside the videos; labels from 0 in their order, not in the sorted."""
    root = tmp_path / "UCF-101"
    splits = tmp_path / "ucfTrainTestlist"
    splits.mkdir()
    names = [f"{c}/v_{c}_g0{group}_c01" for c in ("B", "A") for group in (1, 2)]
    for index, name in enumerate(names):
        encode(root / f"{name}.avi", moving_frames(14 + index))
    (splits / "classInd.txt").write_text("1 B\n2 A\n")
    (splits / "trainlist01.txt").write_text(f"{names[0]}.avi 1\n{names[2]}.avi 2\n")
    (splits / "testlist01.txt").write_text(f"{names[1]}.avi\n{names[3]}.avi\n")
    changes = {"test": None, "dataset": "ucf101", "epochs": 1}
    run = tmp_path / "run"
    assert finetune(dataclasses.replace(finetune_config(pretrained, root, run), **changes)) == 0
    assert checkpoint(run)["config"]["classes"] == ["B", "A"]
    assert np.sum(json.loads((run / "test.json").read_text())["confusion"], 1).tolist() == [1, 1]
    (root / f"{names[3]}.avi").unlink()
    with pytest.raises(SavimaeError, match=r"1 of 2 test videos of the split are not there, such"):
        finetune(dataclasses.replace(finetune_config(pretrained, root, run), **changes))
    splits.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="no ucfTrainTestlist in it or beside it"):
        finetune(dataclasses.replace(finetune_config(pretrained, root, run), **changes))
