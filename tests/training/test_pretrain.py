"""Pretraining: exact whatever happens, loud where something is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from media import random_bytes, savimae
from runs import (
    ACCUMULATED,
    STEPS,
    checkpoint,
    command,
    config,
    log_of,
    losses,
    same_weights,
    stopping,
)

from savimae.cli import cli
from savimae.model.config import model_config
from savimae.saliency.config import SaliencyConfig
from savimae.saliency.makers import ArrayMaker
from savimae.saliency.preprocess import WalkOptions, process
from savimae.system.errors import EXIT_STOPPED, SavimaeError, UsageError
from savimae.training.loop import Loop
from savimae.training.pretrain import Pretraining, TrainConfig, train
from savimae.training.schedule import Schedule
from savimae.training.weights import convert, load_model

# ------------------------------------------------------------------------------------- exact


def test_a_run_leaves_what_it_says(uninterrupted):
    content = checkpoint(uninterrupted)
    assert content["step"] == STEPS
    assert set(content) == {
        "model", "config", "optimizer", "step", "settings", "interval", "versions",
    }  # fmt: skip
    assert sorted(os.listdir(uninterrupted / "checkpoints")) == [
        "epoch-0002.pt", "last.pt", "step-00000002.pt", "step-00000004.pt",
    ]  # fmt: skip
    log = log_of(uninterrupted)
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    assert log[-1]["epoch"] == 2
    model = load_model(str(uninterrupted / "checkpoints/last.pt"))
    assert model.config.input_size == 32


# ------------------------------------------------------------------------------- checkpoints


def test_init_starts_from_weights(data, uninterrupted, tmp_path):
    weights = str(uninterrupted / "checkpoints/last.pt")
    assert train(config(data, tmp_path / "run", init=weights, **ACCUMULATED)) == 0
    # It goes on from where the other ended, rather than from where it began.
    assert losses(tmp_path / "run")[0] < losses(uninterrupted)[0] - 0.02


def test_init_takes_the_shape_of_the_weights(data, uninterrupted, tmp_path, capfd):
    """Typed options overrule it where parameters do not depend on them, else must agree."""
    weights = tmp_path / "weights.pt"
    convert(str(uninterrupted), str(weights), "savimae")
    plain = dict.fromkeys(("model", "encoder_depth", "decoder_depth", "input_size", "num_frames"))
    options = {**ACCUMULATED, **plain, "init": str(weights)}
    of_run = config(data, tmp_path / "run", **options)
    shape = of_run.model_shape()
    assert (shape.encoder_dim, shape.decoder_depth) == (192, 1)
    assert (shape.input_size, shape.num_frames) == (32, 4)
    assert of_run.clip_config().num_frames == 4
    assert of_run.mask_spec().n_tokens == 8
    assert train(of_run) == 0
    printed = capfd.readouterr().out
    assert "clips of 4 frames, 2 apart, 32x32" in printed
    assert "a model of no known size (192 wide, 2 deep, 3 heads" in printed
    other = config(data, tmp_path / "x", **options | {"input_size": 64, "num_frames": 8})
    assert (other.model_shape().input_size, other.model_shape().n_tokens) == (64, 64)
    published = dataclasses.replace(
        other, model="pretrain_videomae_tiny_patch16_48", encoder_depth=2, input_size=None
    )
    assert published.model_shape().input_size == 48
    for changes, message in (
        ({"model": "small"}, "weights.pt: is a model of no known size (192 wide, 2 deep, 3 heads; "
                             "decoder 96 wide, 3 heads), --model is a small model (384 wide, 12 "
                             "deep); leave --model out"),
        ({"decoder_depth": 4}, "decoder_depth is 4, that of"),
        ({"encoder_depth": 6}, "encoder_depth is 6, that of"),
        ({"tubelet_size": 1}, "tubelet_size is 1, that of"),
        ({"patch_size": 8}, "weights.pt is 16; leave --patch-size out to go on with the latter"),
        ({"model": "pretrain_videomae_tiny_patch8_32", "encoder_depth": 2}, "patch_size is 8, "),
        ({"input_size": 40}, "input_size 40 is not a multiple of patch_size 16"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=re.escape(message)):
            train(config(data, tmp_path / "x", **options | changes))
    assert not (tmp_path / "x").exists()
    # The same command again, after the weights are gone: the run has its shape recorded.
    weights.unlink()
    capfd.readouterr()
    assert train(dataclasses.replace(of_run)) == 0
    assert "steps are done" in capfd.readouterr().out
    with pytest.raises(UsageError, match=r"input_size is 32 there and 64 here.*give it to --init"):
        train(dataclasses.replace(of_run, input_size=64))
    with pytest.raises(SavimaeError, match=r"weights\.pt: no such file"):
        train(dataclasses.replace(of_run, out=str(tmp_path / "x")))


def test_without_weights_the_defaults_are_those_of_base(data, tmp_path):
    shape = TrainConfig(str(data), str(tmp_path)).model_shape()
    assert shape == model_config("base")
    assert (shape.input_size, shape.num_frames, shape.decoder_depth) == (224, 16, 4)


# --------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_video_that_cannot_be_decoded(data, tmp_path, policy, capfd):
    root = tmp_path / "data"
    shutil.copytree(data.parent, root)
    broken = root / "videos/c1/v01.mp4"
    random_bytes(broken)
    run = config(root / "list.txt", tmp_path / "run", on_bad_video=policy)
    if policy == "stop":
        with pytest.raises(SavimaeError, match=r"v01\.mp4: not decodable.*--on-bad-video skip"):
            train(run)
        return
    assert train(run) == 0
    assert capfd.readouterr().err.count(f"replaced: {broken}: not decodable") == 1
    assert sum(line["replaced_videos"] for line in log_of(tmp_path / "run")) == 2  # one an epoch
    again = dataclasses.replace(run, out=str(tmp_path / "again"), workers=3)
    assert train(again) == 0
    assert same_weights(tmp_path / "run", tmp_path / "again")


def test_nothing_but_bad_videos(tmp_path):
    for index in range(3):
        random_bytes(tmp_path / f"videos/{index}.avi")
    with pytest.raises(SavimaeError, match="20 videos in a row cannot be decoded"):
        train(config(tmp_path / "videos", tmp_path / "run", on_bad_video="skip", batch_size=1))


def test_missing_arrays_are_noticed_before_the_first_step(data, tmp_path):
    arrays = tmp_path / "arrays"
    run = config(data, tmp_path / "run", saliency_root=str(arrays))
    with pytest.raises(UsageError, match=r"arrays: no such folder of arrays; make it with"):
        train(run)
    process(str(data), str(arrays), ArrayMaker(run.saliency_config()), WalkOptions(1))
    (arrays / "c1/v03.npy").unlink()
    with pytest.raises(SavimaeError, match=r"v03\.npy: no such array \(1 of 11 are missing\)"):
        train(run)
    with pytest.raises(UsageError, match="made with input_size 32, the model wants 64"):
        train(dataclasses.replace(run, input_size=64))
    with pytest.raises(ValueError, match="--saliency-threshold is for saliency that is computed"):
        train(dataclasses.replace(run, saliency_threshold=0.3))
    assert not (tmp_path / "run").exists()


def test_arrays_and_multiscale_crops(data, tmp_path, capfd):
    """With crops, saliency is computed whether there are arrays or not."""
    arrays = tmp_path / "arrays"
    one = config(data, tmp_path / "one", augment="multiscale", hflip=True)
    process(str(data), str(arrays), ArrayMaker(one.saliency_config()), WalkOptions(1))
    two = dataclasses.replace(one, out=str(tmp_path / "two"), saliency_root=str(arrays))
    assert train(one) == 0
    assert train(two) == 0
    assert "crops move the grid of the arrays" in capfd.readouterr().out
    assert same_weights(tmp_path / "one", tmp_path / "two")
    three = dataclasses.replace(two, out=str(tmp_path / "three"), augment="none")
    assert train(three) == 0
    printed = capfd.readouterr().out
    assert "saliency from arrays of" in printed
    assert "warning" not in printed


def test_arrays_of_change_say_that_they_are(data, tmp_path, capfd):
    """The kind of saliency is that of the arrays; computed change is that of the clip's frames."""
    arrays, wanted = tmp_path / "arrays", {"saliency": "change", "salient_share": 0.4}
    one = config(data, tmp_path / "one", saliency_root=str(arrays), salient_share=0.4)
    process(
        str(data), str(arrays), ArrayMaker(SaliencyConfig(32, 16, kind="change")), WalkOptions(1)
    )
    assert train(one) == 0
    settings = checkpoint(tmp_path / "one")["settings"]
    assert (settings["saliency_kind"], settings["salient_share"]) == ("change", 0.4)
    assert "saliency_threshold" not in settings
    # 8 tokens: floor(0.4 * 8) = 3 salient, of which floor(0.5 * 3) are masked, and 3 of 5 others.
    assert {line["visible_tokens"] for line in log_of(tmp_path / "one")} == {4}
    assert train(dataclasses.replace(one, saliency="change", out=str(tmp_path / "two"))) == 0
    assert same_weights(tmp_path / "one", tmp_path / "two")
    computed = dataclasses.replace(one, out=str(tmp_path / "three"), saliency_root=None, **wanted)
    assert train(computed) == 0
    assert not same_weights(tmp_path / "one", tmp_path / "three")
    with pytest.raises(UsageError, match="holds arrays of saliency change, not frame-mean; leave"):
        train(dataclasses.replace(one, saliency="frame-mean", salient_share=None))
    with pytest.raises(UsageError, match="saliency_kind is 'change' there and None here"):
        train(config(data, tmp_path / "three"))
    printed = capfd.readouterr().out
    assert "saliency from arrays of" in printed
    assert "warning" not in printed


def test_equal_counts_are_found_once(data, tmp_path, capfd):
    """Counted when a run begins; a resumed run, and other batches, show as many tokens."""
    options = {"equal_count": True, "saliency_threshold": 0.9, "salient_mask_ratio": 0.25}
    one = config(data, tmp_path / "one", **options)
    assert train(one) == 0
    count = checkpoint(tmp_path / "one")["settings"]["visible_tokens"]
    assert {line["visible_tokens"] for line in log_of(tmp_path / "one")} == {count}
    assert f"about {count} of 8 tokens visible" in capfd.readouterr().out
    two = dataclasses.replace(one, out=str(tmp_path / "two"), equal_count=False)
    assert train(dataclasses.replace(two, visible_tokens=count, batch_size=2, accumulate=2)) == 0
    assert np.allclose(losses(tmp_path / "one"), losses(tmp_path / "two"), rtol=0, atol=1e-6)
    with pytest.raises(UsageError, match="equal_count is None there and True here"):
        train(dataclasses.replace(two, equal_count=True))
    with pytest.raises(UsageError, match=f"visible_tokens is {count} there and None here"):
        train(two)


def test_equal_counts_that_cannot_be(data, tmp_path):
    with pytest.raises(ValueError, match="--visible-tokens is an equal count of its own; leave"):
        config(data, tmp_path / "run", equal_count=True, visible_tokens=4)
    ratios = dict.fromkeys(("salient_mask_ratio", "nonsalient_mask_ratio"))
    for changes in ({"equal_count": True}, {"visible_tokens": 4}):
        with pytest.raises(ValueError, match="have no effect on random masks, of which every"):
            config(data, tmp_path / "run", mask_type="random", **ratios, **changes)


def test_decoding_what_is_salient(data, tmp_path):
    run = config(data, tmp_path / "run", saliency="change", salient_share=0.5, decode="salient")
    assert train(run) == 0
    for line in log_of(tmp_path / "run"):
        assert line["loss"] == pytest.approx(line["loss_salient"], rel=1e-6)
        assert line["loss_other"] is None
    assert checkpoint(tmp_path / "run")["settings"]["decode"] == "salient"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"salient_share": 0.5}, "--salient-share has no effect on frame-mean; give --saliency ch"),
        (
            {"saliency": "change", "saliency_threshold": 0.4},
            "--saliency-threshold has no effect",
        ),
        ({"saliency": "change", "salient_share": 1.5}, "--salient-share 1.5 is not between 0 and"),
        ({"visible_tokens": 9}, "--visible-tokens 9 is not between 1 and 7"),
        ({"decode": "salient", "decoder_mask_ratio": 0.5}, "--decode salient and --decoder-mask-r"),
        ({"warmup_epochs": 2}, "a warm-up of 2 epochs leaves nothing of a run of 2"),
        ({"min_lr": 1.0}, "smallest learning rate 1 is not between 0 and the greatest, 0.001"),
        ({"base_lr": 1e-3}, "give --lr or --base-lr, not both"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"repeat": 0}, "repeat must be at least 1, not 0"),
        ({"repeat": 3}, "--batch-size 4 is not a multiple of --repeat 3; the batch counts every"),
        ({"model": "giant"}, "unknown model 'giant'; choose one of tiny, small"),
        ({"input_size": 40}, "input_size 40 is not a multiple of patch_size 16"),
        ({"num_frames": 3}, "num_frames 3 is not a multiple of tubelet_size 2"),
        ({"num_frames_schedule": "2,3"}, "--num-frames-schedule 2,3 ends with clips of 3 frames"),
        ({"num_frames_schedule": "1,4"}, "1 is not a multiple of the tubelet size 2"),
        (
            {"num_frames": 6, "num_frames_schedule": "2,4,6"},
            "--num-frames-schedule 2,4,6 has 3 lengths, the run has 2 epochs; give more --epochs",
        ),
        ({"num_frames_schedule": "4"}, "--num-frames-schedule 4: give two numbers or more"),
        (
            {
                "num_frames_schedule": "2,4",
                "mask_type": "savi",
                "visible_tokens": 4,
                "input_size": 16,
                "num_frames": 16,
            },
            "ends with clips of 4 frames, --num-frames is 16",
        ),
        ({"salient_mask_ratio": 1.5}, "salient_mask_ratio 1.5 is not between 0 and 1"),
        ({"clip_grad": -1.0}, "clip_grad must be above 0"),
        ({"save_every": "soon"}, "'soon' is not like 10ep, 200steps or 15min"),
        ({"save_every": "0ep"}, "'0ep' is not like 10ep"),
        ({"seed": 2**64}, "Invalid value for '--seed'"),
        ({"init": ""}, "Invalid value for '--init': a path is empty"),
        ({"sampling_rate": 0}, "sampling_rate must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_one_line(data, tmp_path, changes, message):
    done = savimae(*command(data, tmp_path / "run", **changes))
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_compiling_without_a_compiler(data, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    with pytest.raises(UsageError, match="no /nonexistent/c\\+\\+ here"):
        train(config(data, tmp_path / "run", compile=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mask-ratio", "0.5"], "--mask-ratio has no effect on savi masks; give --salient-mask"),
        (["--mask-type", "tube", "--salient-mask-ratio", "0.2"], "no effect on tube masks; give"),
        (["--mask-type", "random", "--nonsalient-mask-ratio", "0.2"], "no effect on random masks"),
        (["--root", "x"], "--root says where the paths of a list start"),
    ],
)
def test_options_without_effect_are_refused(data, tmp_path, words, message):
    source = data.parent / "videos"
    done = savimae("train", "--data", source, "--out", tmp_path / "run", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_video_that_is_listed_twice_is_two_samples(data, tmp_path):
    """With masks of their own; what two different videos may not do is share one array."""
    text = data.read_text()
    doubled = data.parent / "doubled.txt"
    doubled.write_text(text + text.splitlines()[-1] + "\n")
    run = config(doubled, tmp_path / "run", epochs=1, batch_size=12, lr=1e-3)
    assert train(run) == 0
    assert log_of(tmp_path / "run")[0]["step"] == 1
    assert checkpoint(tmp_path / "run")["settings"]["videos"].startswith("12 (")
    alike = data.parent / "alike.txt"
    alike.write_text(text + "c0/v00.avi 0\n")  # v00 is a folder of frames
    (tmp_path / "arrays").mkdir()
    with pytest.raises(UsageError, match=r"c0/v00 and .*c0/v00.avi: both would be written to c0"):
        train(config(alike, tmp_path / "b", saliency_root=str(tmp_path / "arrays")))


def test_a_list_of_random_bytes(tmp_path):
    random_bytes(tmp_path / "list.txt")
    done = savimae(*command(tmp_path / "list.txt", tmp_path / "run"))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "list.txt" in done.stderr


# ------------------------------------------------------------------------- how it is asked for

PUBLISHED = """
    --model pretrain_videomae_base_patch16_224 --data_path {data}
    --mask_type savi --saliency_root {arrays} --salient_mask_ratio 0.85
    --nonsalient_mask_ratio 0.95 --num_frames 16 --sampling_rate 4 --input_size 224
    --batch_size 2 --epochs 30 --device cpu --output_dir {out}
"""


def test_the_published_command_line(data, tmp_path, monkeypatch):
    from savimae import cli
    from savimae.training import pretrain as module

    received: list[TrainConfig] = []
    monkeypatch.setattr(module, "train", lambda config: received.append(config) or 0)
    text = PUBLISHED.format(data=data, arrays=tmp_path / "arrays", out=tmp_path / "run")
    result = CliRunner().invoke(cli.cli, ["train", "--allocator", "default", *text.split()])
    assert result.exit_code == 0, result.output
    (given,) = received
    assert given == TrainConfig(
        str(data), str(tmp_path / "run"), saliency_root=str(tmp_path / "arrays"),
        model="pretrain_videomae_base_patch16_224", input_size=224, num_frames=16,
        batch_size=2, epochs=30, device="cpu", salient_mask_ratio=0.85, nonsalient_mask_ratio=0.95,
    )  # fmt: skip
    assert given.model_shape().encoder_dim == 768


def test_the_plan_is_printed_before_the_first_step(data, tmp_path):
    done = savimae(*command(data, tmp_path / "run", saliency_threshold=0, **ACCUMULATED))
    assert done.returncode == 0, done.stderr
    for text in (
        "warning: 100.0% of the tokens of the first clips are salient, so that savi masks differ",
        "11 videos; clips of 4 frames, 2 apart, 32x32",
        "effective batch 4 = 2 clips x 2 accumulated x 1 processes",
        "learning rate up to 0.001, as given; 0 steps of warm-up, then down to 1e-05",
        "of 8 tokens visible",
        "steps: 6 (2 epochs of 3); expected time about 0:00:0",
    ):
        assert text in done.stdout


def test_defaults_follow_the_effective_batch():
    from savimae.training.plan import Plan

    given = TrainConfig("data", "run", epochs=100)
    schedule = given.schedule(Plan(1000, 8, 4))
    assert schedule.peak_lr == pytest.approx(1.5e-4 * 32 / 256)
    assert schedule.warmup_steps == 10 * 32  # a tenth of 100 epochs of ceil(1000 / 32)
    assert schedule.min_lr == pytest.approx(schedule.peak_lr / 10)
    assert TrainConfig("data", "run", lr=1e-3).schedule(Plan(10, 8)).min_lr == 1e-5


def test_losses_of_salient_and_other_tokens_make_up_the_whole(data, tmp_path):
    run = tmp_path / "run"
    masks = {"salient_mask_ratio": None, "nonsalient_mask_ratio": None, "mask_ratio": 0.5}
    assert train(config(data, run, mask_type="random", **masks, batch_size=11)) == 0
    first = log_of(run)[0]
    assert first["visible_tokens"] == 4
    low, high = sorted([first["loss_salient"], first["loss_other"]])
    assert low < first["loss"] < high


def test_the_loss_is_a_mean_over_tokens_not_over_clips(data, tmp_path, monkeypatch):
    """Clips hide different numbers of tokens; each token weighs the same."""
    seen = []
    original = Pretraining.loss

    def loss(self, batch):
        total, sums = original(self, batch)
        seen.append((float(total.detach()), int(batch.mask.sum())))
        return total, sums

    monkeypatch.setattr(Pretraining, "loss", loss)
    run = tmp_path / "run"
    assert train(config(data, run, **ACCUMULATED, nonsalient_mask_ratio=0.9)) == 0
    seen = seen[2:]  # the two trials before the first step
    values = 2 * 16 * 16 * 3
    for number, expected in enumerate(losses(run)):
        parts = seen[2 * number : 2 * number + 2]
        mean = sum(total for total, _ in parts) / sum(n for _, n in parts) / values
        assert expected == pytest.approx(mean, rel=1e-9)
    assert len({n for _, n in seen}) > 1


def test_decoder_masks_and_clipping_and_checkpointed_activations(data, tmp_path):
    changes = {"decoder_mask_ratio": 0.5, "clip_grad": 0.05, "batch_size": 4}
    assert train(config(data, tmp_path / "a", **changes)) == 0
    again = config(data, tmp_path / "b", **changes, checkpoint_activations=True)
    assert train(again) == 0
    np.testing.assert_allclose(losses(tmp_path / "a"), losses(tmp_path / "b"), atol=1e-6)
    assert all(line["grad_norm"] > 0.05 for line in log_of(tmp_path / "a"))
    assert train(config(data, tmp_path / "c", decoder_mask_ratio=0.5, batch_size=4)) == 0
    assert losses(tmp_path / "a")[-1] != losses(tmp_path / "c")[-1]
    assert checkpoint(tmp_path / "a")["settings"]["decoder_mask_start"] == "drawn for each clip"


def test_training_decodes_every_masked_token_sooner_or_later(data, tmp_path, monkeypatch):
    from savimae.training.pretrain import Batch

    seen: list[Batch] = []
    original = Pretraining.loss
    monkeypatch.setattr(Pretraining, "loss", lambda self, b: seen.append(b) or original(self, b))
    changes = {"decoder_mask_ratio": 0.5, "mask_type": "random", "epochs": 4, "input_size": 64}
    ratios = {"salient_mask_ratio": None, "nonsalient_mask_ratio": None, "mask_ratio": 0.75}
    assert train(config(data, tmp_path / "run", **changes, **ratios)) == 0
    decoded = torch.cat([batch.decoded for batch in seen])
    masked = torch.cat([batch.mask for batch in seen])
    assert decoded.any(0).all()
    assert int(decoded.sum()) == pytest.approx(int(masked.sum()) / 2, rel=0.2)


def test_tensorboard(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(config(data, tmp_path / "run", tensorboard=True)) == 0
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, STEPS + 1))
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(
        losses(tmp_path / "run")
    )


def test_help_shows_those_that_matter_first():
    def options(*words):
        lines = savimae(*words).stdout.splitlines()
        found = [line.split()[0].rstrip(",") for line in lines if line[2:4] == "--"]
        return [name for name in found if name != "--help"]  # or -h, as its first user asked

    first = [
        "--data", "--out", "--recipe", "--model", "--init", "--epochs", "--batch-size",
        "--mask-type", "--saliency", "--saliency-root",
    ]  # fmt: skip
    assert options("train", "--help") == [*first, "--help-all"]
    whole = options("train", "--help-all")
    assert whole[:10] == first
    assert len(whole) == len(set(whole)) == len(cli.commands["train"].params)
    assert options("finetune", "--help") == [
        "--train", "--test", "--dataset", "--split", "--out", "--epochs", "--batch-size", "--task",
        "--untrained", "--recipe", "--help-all",
    ]  # fmt: skip


def test_savimae_train_under_torchrun(data, tmp_path):
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "savimae", *command(data, tmp_path / "run", batch_size=2, epochs=1),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "run")) == STEPS / 2


# ------------------------------------------------------------------------------------ its length


def test_a_number_of_steps_is_a_run_of_its_own_length(data, tmp_path):
    """Six steps are two epochs of three; seven end in the middle of the third one."""
    assert train(config(data, tmp_path / "epochs")) == 0
    assert train(config(data, tmp_path / "six", epochs=None, steps=6)) == 0
    assert same_weights(tmp_path / "epochs", tmp_path / "six")
    run = config(data, tmp_path / "seven", epochs=None, steps=7)
    assert train(run) == 0
    last = log_of(tmp_path / "seven")[-1]
    assert (last["step"], last["epoch"]) == (7, pytest.approx(7 / 3, abs=1e-4))
    assert last["lr"] < log_of(tmp_path / "six")[-1]["lr"]  # the cosine ends a step later
    with pytest.raises(UsageError, match="epochs is 2 there and None here"):
        train(config(data, tmp_path / "epochs", epochs=None, steps=6))
    assert train(run) == 0  # nothing is left to do
    assert len(log_of(tmp_path / "seven")) == 7


def test_a_run_becomes_longer(data, tmp_path, monkeypatch, capfd):
    """Two epochs are done; four of them go on with the learning rates of a run of four."""
    runs = [tmp_path / name for name in ("whole", "killed")]
    for run in runs:
        assert train(config(data, run)) == 0
    longer = {"epochs": 4, "extend": True}
    capfd.readouterr()
    assert train(config(data, runs[0], **longer)) == 0
    printed = capfd.readouterr().out
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "run", stopping(Loop.run, STEPS + 3))
        assert train(config(data, runs[1], **longer)) == EXIT_STOPPED
    assert train(config(data, runs[1], epochs=4)) == 0  # it is a run of four epochs by now
    assert same_weights(*runs)
    lines = log_of(runs[0])
    assert [line["step"] for line in lines] == list(range(1, 2 * STEPS + 1))
    short = Schedule(1e-3, 1e-5, STEPS)  # a tenth of two epochs is no whole step of warm-up
    long = Schedule(1e-3, 1e-5, 2 * STEPS)
    expected = [(short if step < STEPS else long).at(step) for step in range(2 * STEPS)]
    assert [line["lr"] for line in lines] == pytest.approx(expected, abs=1e-8)
    assert (
        "extended from 6 to 12 steps: from step 6 on, the learning rate is that of a run of this "
        f"length, {long.at(6):.3g} where it was 1e-05"
    ) in printed
    assert json.loads((runs[0] / "config.json").read_text())["epochs"] == 4
    assert train(config(data, runs[0], **longer)) == 0  # again: nothing is left to do
    for changes, message in (
        ({"epochs": 5}, r"epochs is 4 there and 5 here\. To make the run longer, give --extend"),
        ({"epochs": 3}, r"epochs is 4 there and 3 here\. A run cannot be made shorter"),
        ({"epochs": 3, "extend": True}, "of a run of 12 steps, which --extend does not make short"),
        ({"epochs": None, "steps": 11, "extend": True}, "make shorter: 11 were asked for"),
        ({"epochs": 5, "lr": 1.0, "extend": True}, r"lr is 0.001 there.*What may change in a run"),
        ({"epochs": 5, "seed": 1}, r"seed is 0 there.*What may change in a run: --epochs or"),
    ):
        with pytest.raises(UsageError, match=message):
            train(config(data, runs[0], **changes))
    with pytest.raises(UsageError, match="new: --extend, and there is no run to go on with"):
        train(config(data, tmp_path / "new", extend=True))


def test_an_encoder_of_another_depth(data, tmp_path):
    run = tmp_path / "run"
    assert train(config(data, run, encoder_depth=3, epochs=1)) == 0
    assert load_model(str(run)).config.encoder_depth == 3
    # Its weights are what --model and --encoder-depth say together.
    again = {"init": str(run), "epochs": 1}
    assert train(config(data, tmp_path / "again", encoder_depth=3, **again)) == 0
    with pytest.raises(UsageError, match=r"is a model of no known size \(192 wide, 3 deep"):
        train(config(data, tmp_path / "other", **again))


def test_epochs_and_steps_are_one_too_many():
    with pytest.raises(ValueError, match="give --epochs or --steps, not both"):
        TrainConfig("data", "run", epochs=2, steps=6)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        TrainConfig("data", "run", steps=0)


# ------------------------------------------------------------------------------------ its optimizer


def test_muon_resumes_exactly_and_is_another_run(data, tmp_path, monkeypatch):
    given = {"optimizer": "muon", "clip_grad": 1.0}
    assert train(config(data, tmp_path / "whole", **given)) == 0
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "run", stopping(Loop.run, 3))
        assert train(config(data, tmp_path / "run", **given)) == EXIT_STOPPED
    assert train(config(data, tmp_path / "run", **given)) == 0
    assert same_weights(tmp_path / "run", tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert train(config(data, tmp_path / "accumulated", **given, **ACCUMULATED)) == 0
    ours, theirs = losses(tmp_path / "accumulated"), losses(tmp_path / "whole")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    with pytest.raises(UsageError, match="optimizer is 'muon' there and None here"):
        train(config(data, tmp_path / "whole", clip_grad=1.0))
    with pytest.raises(ValueError, match="optimizer 'sgd' is not one of adamw, muon"):
        config(data, tmp_path / "x", optimizer="sgd")
