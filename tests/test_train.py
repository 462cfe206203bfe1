"""Pretraining: exact whatever happens, loud where something is wrong."""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from media import random_bytes, savimae, truncate
from training import (
    checkpoint,
    command,
    config,
    finish,
    hooked,
    log_of,
    losses,
    make_videos,
    ranks,
    same_weights,
)

from savimae.checkpoint import last_checkpoint, read_training_checkpoint
from savimae.convert import convert, load_model
from savimae.errors import EXIT_STOPPED, SavimaeError, UsageError
from savimae.loop import SaveEvery, make_optimizer
from savimae.model import build_model, model_config
from savimae.preprocess import ArrayJob, RunOptions, process
from savimae.train import Pretraining, TrainConfig, train

STEPS = 6  # 2 epochs of ceil(11 / 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The list of the videos that all runs below are trained on."""
    return make_videos(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Path:
    """A run that nothing happens to: batches of 2, two of them accumulated."""
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert train(config(data, run, batch_size=2, accumulate=2)) == 0
    return run


ACCUMULATED = {"batch_size": 2, "accumulate": 2}


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
    assert model.config.image_size == 32


def test_the_same_command_gives_the_same_weights(data, uninterrupted, tmp_path):
    assert train(config(data, tmp_path / "again", **ACCUMULATED)) == 0
    assert same_weights(uninterrupted, tmp_path / "again")
    assert losses(uninterrupted) == losses(tmp_path / "again")
    assert train(config(data, tmp_path / "other", seed=1, **ACCUMULATED)) == 0
    assert not same_weights(uninterrupted, tmp_path / "other")


@pytest.mark.parametrize("workers", [0, 3])
def test_workers_change_nothing(data, uninterrupted, tmp_path, workers):
    assert train(config(data, tmp_path / "run", workers=workers, **ACCUMULATED)) == 0
    assert same_weights(uninterrupted, tmp_path / "run")


# Forward passes: step 1 has 1 and 2, ... step 3 (three videos) has 5 and 6, step 4 has 7 and 8.
@pytest.mark.parametrize("call", [1, 6, 7])
def test_killed_at_any_moment_and_resumed(data, uninterrupted, tmp_path, call):
    run = tmp_path / "run"
    hook = f"at_call = lambda n: n == {call} and os.kill(os.getpid(), signal.SIGKILL)"
    arguments = command(data, run, **ACCUMULATED)
    code, _ = finish(hooked(hook, arguments))
    assert code == -signal.SIGKILL
    code, printed = finish(hooked("at_call = lambda n: None", arguments))
    assert code == 0, printed
    assert same_weights(uninterrupted, run)
    assert losses(uninterrupted) == losses(run)
    assert not list(run.rglob("*.savimae-tmp"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_saves_and_resuming_is_exact(data, uninterrupted, tmp_path, name):
    run = tmp_path / "run"
    hook = f"at_call = lambda n: n == 5 and os.kill(os.getpid(), signal.{name})"
    # No checkpoint but that of the signal.
    arguments = command(data, run, save_every="100ep", **ACCUMULATED)
    code, printed = finish(hooked(hook, arguments))
    assert code == EXIT_STOPPED == 85
    assert f"stopped by {name} after step 3 of 6" in printed
    assert os.listdir(run / "checkpoints").count("epoch-0001.pt") == 1
    code, printed = finish(hooked("at_call = lambda n: None", arguments))
    assert code == 0, printed
    assert "resuming at step 3, 3 left of 6" in printed
    assert same_weights(uninterrupted, run)


def test_the_log_of_a_resumed_run_is_that_of_one_never_stopped(data, tmp_path):
    arguments = {"save_every": "100ep", "log_every": "4", **ACCUMULATED}
    hook = "at_call = lambda n: n == 5 and os.kill(os.getpid(), signal.SIGTERM)"
    finish(hooked(hook, command(data, tmp_path / "a", **arguments)))
    for run in ("a", "b"):
        code, printed = finish(
            hooked("at_call = lambda n: None", command(data, tmp_path / run, **arguments))
        )
        assert code == 0, printed
    keys = ("step", "loss", "loss_salient", "loss_other", "visible_tokens", "lr")
    logs = [[[line[key] for key in keys] for line in log_of(tmp_path / run)] for run in "ab"]
    assert logs[0] == logs[1]


def test_a_second_interrupt_exits_at_once(data, tmp_path):
    hook = """
def at_call(n):
    if n == 3:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("still there")
"""
    code, printed = finish(hooked(hook, command(data, tmp_path / "run")))
    assert code == -signal.SIGINT
    assert "still there" not in printed


def test_batches_ranks_and_accumulation_give_the_same_losses(data, tmp_path):
    assert train(config(data, tmp_path / "one", batch_size=4)) == 0
    assert train(config(data, tmp_path / "accumulated", **ACCUMULATED)) == 0
    started = ranks(2, command(data, tmp_path / "two", batch_size=2))
    results = [finish(each) for each in started]
    assert [code for code, _ in results] == [0, 0], results
    assert "effective batch 4 = 2 clips x 1 accumulated x 2 processes" in results[0][1]
    assert results[1][1] == ""  # only the first one speaks
    expected = losses(tmp_path / "one")
    assert len(expected) == STEPS
    for run in ("accumulated", "two"):
        # Sums of float32 in another order.
        np.testing.assert_allclose(losses(tmp_path / run), expected, rtol=0, atol=1e-5)
    visible = [
        [line["visible_tokens"] for line in log_of(tmp_path / run)] for run in ("one", "two")
    ]
    assert visible[0] == visible[1]  # nothing counted twice, nothing left out


def test_three_ranks_when_one_has_nothing_left(data, tmp_path):
    """11 videos in steps of 9: the second step has two for three ranks, one has none."""
    assert train(config(data, tmp_path / "one", batch_size=9)) == 0
    results = [finish(each) for each in ranks(3, command(data, tmp_path / "three", batch_size=3))]
    assert [code for code, _ in results] == [0, 0, 0], results
    np.testing.assert_allclose(
        losses(tmp_path / "three"), losses(tmp_path / "one"), rtol=0, atol=1e-5
    )


def test_two_ranks_killed_and_resumed(data, tmp_path):
    arguments = command(data, tmp_path / "killed", batch_size=2)
    whole = ranks(2, command(data, tmp_path / "whole", batch_size=2))
    assert [finish(each)[0] for each in whole] == [0, 0]
    hook = "at_call = lambda n: n == 4 and os.kill(os.getpid(), signal.SIGKILL)"
    killed = ranks(2, arguments, hook)
    assert [finish(each)[0] for each in killed] == [-signal.SIGKILL] * 2
    results = [finish(each) for each in ranks(2, arguments)]
    assert [code for code, _ in results] == [0, 0], results
    assert same_weights(tmp_path / "whole", tmp_path / "killed")


def test_a_signal_to_one_rank_stops_all_at_the_same_step(data, tmp_path):
    hook = (
        "at_call = lambda n: n == 3 and os.environ['RANK'] == '1' "
        "and os.kill(os.getpid(), signal.SIGUSR1)"
    )
    arguments = command(data, tmp_path / "run", batch_size=2, save_every="100ep")
    results = [finish(each) for each in ranks(2, arguments, hook)]
    assert [code for code, _ in results] == [85, 85], results
    assert "stopped by a signal to another process after step" in results[0][1]
    assert checkpoint(tmp_path / "run")["step"] in (2, 3)


def test_a_rank_that_dies_takes_the_run_down(data, tmp_path):
    hook = "at_call = lambda n: n == 2 and os.environ['RANK'] == '1' and os._exit(9)"
    started = ranks(2, command(data, tmp_path / "run", batch_size=2), hook)
    assert finish(started[1])[0] == 9
    code, printed = finish(started[0])
    assert code == 1
    assert "process 0 of 2: another process of this run stopped or cannot be reached" in printed
    assert "Traceback" not in printed


# ------------------------------------------------------------------------------- checkpoints


def test_a_broken_last_checkpoint_offers_the_one_before(data, uninterrupted, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    again = config(data, run, **ACCUMULATED)
    for path in (run / "checkpoints/last.pt", run / "checkpoints/epoch-0002.pt"):
        truncate(path, 0.6)
    with pytest.raises(
        SavimaeError, match=r"last\.pt: not a checkpoint .* or a truncated one"
    ) as error:
        train(again)
    offered = str(run / "checkpoints/step-00000004.pt")
    assert f"go on from it with --resume {offered}" in str(error.value)
    assert train(dataclasses.replace(again, resume=offered)) == 0
    assert same_weights(uninterrupted, run)


@pytest.mark.parametrize("content", ["random", "weights", "list"])
def test_foreign_checkpoints_are_refused(data, tmp_path, content):
    path = tmp_path / "x.pt"
    if content == "random":
        random_bytes(path)
    else:
        weights = build_model("tiny").state_dict()
        torch.save({"model": weights} if content == "weights" else [1, 2], path)
    with pytest.raises(SavimaeError, match=r"x\.pt: (not a checkpoint|no config|holds no dict)"):
        train(config(data, tmp_path / "run", resume=str(path)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", "3"), ("step", -1), ("step", 10**9), ("step", True), ("interval", [1.0]),
        ("interval", ["a"]), ("optimizer", {}), ("optimizer", None), ("model", {}),
        ("settings", [1]), ("settings", {"seed": torch.zeros(3)}),
        ("exp_avg", torch.zeros(3)), ("exp_avg", torch.zeros(3, 3).to_sparse()), ("exp_avg", None),
        ("weight_decay", "x"), ("betas", (0.0, 0.5)),
    ],
    ids=str,
)  # fmt: skip
def test_damaged_checkpoints_are_one_line(data, uninterrupted, tmp_path, key, value):
    content = checkpoint(uninterrupted)
    if key == "exp_avg":
        content["optimizer"]["state"][0][key] = value
    elif key in ("weight_decay", "betas"):
        content["optimizer"]["param_groups"][0][key] = value
    else:
        content[key] = value
    (tmp_path / "checkpoints").mkdir()
    torch.save(content, tmp_path / "checkpoints/last.pt")
    with pytest.raises(SavimaeError, match=r"last\.pt: .*(damaged|are not those of a run)"):
        train(config(data, tmp_path))


def test_other_settings_are_refused(data, uninterrupted, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    before = (run / "checkpoints/last.pt").read_bytes()
    with pytest.raises(UsageError, match="seed is 0 there and 5 here"):
        train(config(data, run, seed=5, **ACCUMULATED))
    with pytest.raises(UsageError, match="effective_batch is 4 there and 6 here"):
        train(config(data, run, batch_size=6))
    with pytest.raises(UsageError, match=r"holds a run and --resume is never"):
        train(config(data, run, resume="never", **ACCUMULATED))
    assert (run / "checkpoints/last.pt").read_bytes() == before
    # How the work is spread is not a setting.
    assert train(config(data, run, batch_size=4, workers=2, log_every=3)) == 0


def test_a_full_disk_leaves_the_old_checkpoint_whole(data, tmp_path):
    run = tmp_path / "run"
    arguments = command(data, run, save_every="2steps", keep=1)
    # The second checkpoint may not be written: the limit on a file's size stands for the disk's.
    hook = """
import resource
def at_call(n):
    if n == 3:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
"""
    code, printed = finish(hooked(hook, arguments))
    assert code == 1
    assert "step-00000004.pt: cannot be written (File too large)" in printed
    assert "Traceback" not in printed
    assert checkpoint(run)["step"] == 2
    assert sorted(os.listdir(run / "checkpoints")) == ["last.pt", "step-00000002.pt"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    code, printed = finish(hooked("at_call = lambda n: None", arguments))
    assert code == 0, printed


def test_pruning_keeps_the_newest(data, tmp_path):
    saves = (SaveEvery(steps=1),)
    assert train(config(data, tmp_path / "run", keep=2, save_every=saves)) == 0
    assert sorted(os.listdir(tmp_path / "run/checkpoints")) == [
        "epoch-0002.pt", "last.pt", "step-00000005.pt",
    ]  # fmt: skip
    last = last_checkpoint(str(tmp_path / "run"))
    assert last is not None
    assert read_training_checkpoint(last)["step"] == STEPS


def test_a_run_that_saved_nothing_may_begin_again_with_other_settings(data, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(SavimaeError, match=r"x\.pt: no such file"):
        train(config(data, run, init=str(tmp_path / "x.pt")))
    assert train(config(data, run, epochs=1)) == 0
    with pytest.raises(UsageError, match="epochs is 1 there and 2 here"):
        train(config(data, run))
    arrays = tmp_path / "arrays"
    process(str(data), str(arrays), ArrayJob(config(data, run).of_saliency()), RunOptions(1))
    with pytest.raises(UsageError, match="output is 'patches' there and 'pretraining' here"):
        train(config(data, arrays))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file is a file; name a folder"):
        train(config(data, tmp_path / "file"))


def test_resume_takes_the_folder_of_a_run(data, uninterrupted, tmp_path):
    again = config(data, tmp_path / "run", resume=str(uninterrupted), **ACCUMULATED)
    assert train(again) == 0
    with pytest.raises(UsageError, match="a folder without checkpoints of a run"):
        train(dataclasses.replace(again, resume=str(tmp_path)))


def test_init_starts_from_weights(data, uninterrupted, tmp_path):
    weights = str(uninterrupted / "checkpoints/last.pt")
    assert train(config(data, tmp_path / "run", init=weights, **ACCUMULATED)) == 0
    # It goes on from where the other ended, rather than from where it began.
    assert losses(tmp_path / "run")[0] < losses(uninterrupted)[0] - 0.02


def test_init_takes_the_shape_of_the_weights(data, uninterrupted, tmp_path, capfd):
    """Typed options overrule it where parameters do not depend on them, else must agree."""
    weights = tmp_path / "weights.pt"
    convert(str(uninterrupted), str(weights), "savimae")
    plain = dict.fromkeys(("model", "decoder_depth", "input_size", "num_frames"))
    options = {**ACCUMULATED, **plain, "init": str(weights)}
    of_run = config(data, tmp_path / "run", **options)
    shape = of_run.of_model()
    assert (shape.encoder_dim, shape.decoder_depth) == (192, 1)
    assert (shape.image_size, shape.num_frames) == (32, 4)
    assert of_run.of_clips().num_frames == 4
    assert of_run.of_masks().n_tokens == 8
    assert train(of_run) == 0
    printed = capfd.readouterr().out
    assert "clips of 4 frames, 2 apart, 32x32" in printed
    assert "a tiny model (192 wide, 12 deep): " in printed
    other = config(data, tmp_path / "x", **options | {"input_size": 64, "num_frames": 8})
    assert (other.of_model().image_size, other.of_model().n_tokens) == (64, 64)
    published = dataclasses.replace(
        other, model="pretrain_videomae_tiny_patch16_48", input_size=None
    )
    assert published.of_model().image_size == 48
    for changes, message in (
        ({"model": "small"}, "weights.pt: is a tiny model (192 wide, 12 deep), --model is a small "
                             "model (384 wide, 12 deep); leave --model out"),
        ({"decoder_depth": 4}, "decoder_depth is 4, that of"),
        ({"tubelet_size": 1}, "tubelet_size is 1, that of"),
        ({"patch_size": 8}, "weights.pt is 16; leave --patch-size out to go on with the latter"),
        ({"model": "pretrain_videomae_tiny_patch8_32"}, "patch_size is 8, that of"),
        ({"input_size": 40}, "image_size 40 is not a multiple of patch_size 16"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=re.escape(message)):
            train(config(data, tmp_path / "x", **options | changes))
    assert not (tmp_path / "x").exists()
    # The same command again, after the weights are gone: the run has its shape recorded.
    weights.unlink()
    capfd.readouterr()
    assert train(dataclasses.replace(of_run)) == 0
    assert "steps are done" in capfd.readouterr().out
    with pytest.raises(UsageError, match=r"image_size is 32 there and 64 here.*give it to --init"):
        train(dataclasses.replace(of_run, input_size=64))
    with pytest.raises(SavimaeError, match=r"weights\.pt: no such file"):
        train(dataclasses.replace(of_run, out=str(tmp_path / "x")))


def test_without_weights_the_defaults_are_those_of_base(data, tmp_path):
    shape = TrainConfig(str(data), str(tmp_path)).of_model()
    assert shape == model_config("base")
    assert (shape.image_size, shape.num_frames, shape.decoder_depth) == (224, 16, 4)


# --------------------------------------------------------------------------- what goes wrong


def test_a_loss_that_is_not_finite_stops_with_everything_one_needs(data, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(SavimaeError) as error:
        train(config(data, run, lr=1e30, warmup_epochs=0.4, save_every=(SaveEvery(steps=1),)))
    text = str(error.value)
    assert "the loss is nan at step 2 (epoch 0)" in text
    clips = text.partition("its clips: ")[2].partition(". Last good")[0].split(", ")
    assert len(clips) == 3
    assert all(os.path.exists(clip) for clip in clips)
    assert "\n" not in text
    # The step of rate 0 was saved; that of rate 1e30 would have been, but for its broken weights.
    assert "Last good checkpoint: " in text


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
    process(str(data), str(arrays), ArrayJob(run.of_saliency()), RunOptions(1))
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
    process(str(data), str(arrays), ArrayJob(one.of_saliency()), RunOptions(1))
    two = dataclasses.replace(one, out=str(tmp_path / "two"), saliency_root=str(arrays))
    assert train(one) == 0
    assert train(two) == 0
    assert "crops move the grid of the arrays" in capfd.readouterr().out
    assert same_weights(tmp_path / "one", tmp_path / "two")
    three = dataclasses.replace(two, out=str(tmp_path / "three"), augment="none")
    assert train(three) == 0
    assert "saliency from arrays of" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_epochs": 2}, "a warm-up of 2 epochs leaves nothing of a run of 2"),
        ({"min_lr": 1.0}, "smallest learning rate 1 is not between 0 and the greatest, 0.001"),
        ({"base_lr": 1e-3}, "give --lr or --base-lr, not both"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"model": "giant"}, "unknown model 'giant'; choose one of tiny, small"),
        ({"input_size": 40}, "image_size 40 is not a multiple of patch_size 16"),
        ({"num_frames": 3}, "num_frames 3 is not a multiple of tubelet_size 2"),
        ({"salient_mask_ratio": 1.5}, "salient_ratio 1.5 is not between 0 and 1"),
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
    from savimae import train as module

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
    assert given.of_model().encoder_dim == 768


def test_the_plan_is_printed_before_the_first_step(data, tmp_path):
    done = savimae(*command(data, tmp_path / "run", **ACCUMULATED))
    assert done.returncode == 0, done.stderr
    for text in (
        "11 videos; clips of 4 frames, 2 apart, 32x32",
        "effective batch 4 = 2 clips x 2 accumulated x 1 processes",
        "learning rate up to 0.001, as given; 0 steps of warm-up, then down to 1e-05",
        "of 8 tokens visible",
        "steps: 6 (2 epochs of 3); expected time about 0:00:0",
    ):
        assert text in done.stdout


def test_defaults_follow_the_effective_batch():
    from savimae.batches import Plan

    given = TrainConfig("data", "run", epochs=100)
    schedule = given.schedule(Plan(1000, 8, 4))
    assert schedule.peak_lr == pytest.approx(1.5e-4 * 32 / 256)
    assert schedule.warmup_steps == 10 * 32  # a tenth of 100 epochs of ceil(1000 / 32)
    assert schedule.min_lr == pytest.approx(schedule.peak_lr / 10)
    assert TrainConfig("data", "run", lr=1e-3).schedule(Plan(10, 8)).min_lr == 1e-5


def test_weight_decay_spares_biases_norms_and_the_mask_token():
    model = build_model("tiny")
    optimizer = make_optimizer(model, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = (
        {names[id(parameter)] for parameter in group["params"]} for group in optimizer.param_groups
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    assert decayed | spared == set(names.values())
    assert spared == {
        name for name in names.values()
        if name.endswith("bias") or "norm" in name or name == "mask_token"
    }  # fmt: skip


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
    from savimae.train import Batch

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


def test_runs_from_before_starts_were_drawn_are_not_continued(data, tmp_path):
    """They never decoded half of the tokens. Without a decoder mask nothing has changed."""
    for ratio in (0.5, 0.0):
        run = config(data, tmp_path / str(ratio), decoder_mask_ratio=ratio, epochs=1)
        assert train(run) == 0
        path = tmp_path / str(ratio) / "checkpoints" / "last.pt"
        content = torch.load(path, weights_only=True)
        content["settings"].pop("decoder_mask_start", None)
        content["config"]["decoder_mask_ratio"] = ratio  # where it stood
        torch.save(content, path)
        if ratio:
            with pytest.raises(UsageError, match="decoder_mask_start is None there and 'drawn"):
                train(run)
        else:
            assert train(run) == 0
        assert load_model(str(path)).config.encoder_dim == 192


def test_bf16_runs_and_resumes(data, tmp_path):
    """On any processor, if slowly; auto keeps to what the run began with."""
    run = config(data, tmp_path / "run", precision="bf16", epochs=1)
    assert train(run) == 0
    assert checkpoint(tmp_path / "run")["settings"]["precision"] == "bf16"
    assert checkpoint(tmp_path / "run")["model"]["mask_token"].dtype == torch.float32
    assert train(dataclasses.replace(run, precision="auto")) == 0
    with pytest.raises(UsageError, match="precision is 'bf16' there and 'fp32' here"):
        train(dataclasses.replace(run, precision="fp32"))


def test_tensorboard(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(config(data, tmp_path / "run", tensorboard=True)) == 0
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, STEPS + 1))
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(
        losses(tmp_path / "run")
    )


def test_help_shows_the_five_that_matter_first():
    done = savimae("train", "--help")
    first = done.stdout.partition("The ones that matter:")[2].partition("\n\n")[0]
    options = [line.split()[0].rstrip(",") for line in first.splitlines() if line[2:4] == "--"]
    assert options == ["--data", "--out", "--saliency-root", "--epochs", "--batch-size"]


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
