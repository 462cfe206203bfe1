"""The loop: exact whatever happens, with any number of processes."""

from __future__ import annotations

import dataclasses
import os
import signal

import numpy as np
import pytest
import torch
from runs import (
    ACCUMULATED,
    STEPS,
    checkpoint,
    command,
    config,
    finish,
    hooked,
    log_of,
    losses,
    ranks,
    same_weights,
)

from savimae.data.lists import find_videos
from savimae.system.errors import EXIT_STOPPED, SavimaeError, UsageError
from savimae.training.checkpoint import SaveEvery
from savimae.training.distributed import World
from savimae.training.pretrain import Pretraining, PretrainingRun, train
from savimae.training.schedule import FrameSchedule
from savimae.training.setup import set_up


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


def test_bf16_runs_and_resumes(data, tmp_path):
    """On any processor, if slowly; auto keeps to what the run began with."""
    run = config(data, tmp_path / "run", precision="bf16", epochs=1)
    assert train(run) == 0
    assert checkpoint(tmp_path / "run")["settings"]["precision"] == "bf16"
    assert checkpoint(tmp_path / "run")["model"]["mask_token"].dtype == torch.float32
    assert train(dataclasses.replace(run, precision="auto")) == 0
    with pytest.raises(UsageError, match="precision is 'bf16' there and 'fp32' here"):
        train(dataclasses.replace(run, precision="fp32"))


def test_several_masks_of_each_clip(data, tmp_path):
    """A batch of 4 is two clips with two masks each; it is as exact as any."""
    changes = {"batch_size": 4, "repeat": 2}
    whole = tmp_path / "whole"
    assert train(config(data, whole, **changes)) == 0
    log = log_of(whole)
    assert [line["step"] for line in log] == list(range(1, 13))  # 2 epochs of ceil(11 / 2)
    hook = "at_call = lambda n: n == 5 and os.kill(os.getpid(), signal.SIGKILL)"
    arguments = command(data, tmp_path / "killed", **changes)
    assert finish(hooked(hook, arguments))[0] == -signal.SIGKILL
    assert train(config(data, tmp_path / "killed", **changes)) == 0
    assert same_weights(whole, tmp_path / "killed")
    started = ranks(2, command(data, tmp_path / "two", batch_size=2, repeat=2))
    assert [finish(each)[0] for each in started] == [0, 0]
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(whole), atol=1e-5)
    with pytest.raises(UsageError, match="repeat is 2 there and None here"):
        train(config(data, whole, batch_size=4))


def test_short_clips_first(data, tmp_path):
    """Two epochs of 4 frames, then one of 8; what is stopped in either goes on the same."""
    changes = {"num_frames": 8, "num_frames_schedule": "4,8", "epochs": 3}
    given = {**changes, "num_frames_schedule": FrameSchedule((4, 8))}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(config(data, whole, **given)) == 0
    visible = [line["visible_tokens"] for line in log_of(whole)]
    # Of 8 and of 16 tokens; half of the salient and a quarter of the others, rounded up.
    assert max(visible[:6]) <= 5 < 6 <= min(visible[6:])
    assert checkpoint(whole)["config"]["num_frames"] == 8
    # In step 5, of the second epoch, and, from step 4 on, in step 8, of the third.
    for call in (5, 4):
        hook = f"at_call = lambda n: n == {call} and os.kill(os.getpid(), signal.SIGABRT)"
        code, _ = finish(hooked(hook, command(data, killed, **changes)))
        assert code == -signal.SIGABRT
    assert train(config(data, killed, **given)) == 0
    assert same_weights(whole, killed)
    with pytest.raises(UsageError, match="num_frames_schedule is '4,8' there and None here"):
        train(config(data, whole, **{**given, "num_frames_schedule": None}))


def test_masks_of_one_clip_differ_and_the_first_is_that_without_repeats(data, tmp_path):
    def task(repeat: int) -> Pretraining:
        given = config(data, tmp_path / "run", batch_size=4, repeat=repeat)
        found = find_videos(given.data)
        setup = set_up(given, World(), len(found.videos), repeat)
        return PretrainingRun(given, setup, found).build(is_new=True)

    once, twice = task(1), task(2)
    samples = [once.load(index, 1) for index in (3, 8)]
    single, double = once.collate(samples, 1), twice.collate(samples, 1)
    assert double.pixels.shape[0] == 4
    for name in ("pixels", "salient"):
        assert torch.equal(getattr(double, name)[::2], getattr(single, name))
        assert torch.equal(getattr(double, name)[1::2], getattr(single, name))
    assert torch.equal(double.mask[::2], single.mask)
    assert not torch.equal(double.mask[1::2], single.mask)
    assert double.n_replaced == single.n_replaced
