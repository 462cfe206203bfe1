"""Checkpoints: whole ones are resumed from, others are one line."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil

import pytest
import torch
from media import random_bytes, truncate
from runs import ACCUMULATED, STEPS, checkpoint, command, config, finish, hooked, same_weights

from savimae.model.videomae import build_model
from savimae.saliency.makers import ArrayMaker
from savimae.saliency.preprocess import WalkOptions, process
from savimae.system.errors import SavimaeError, UsageError
from savimae.training.checkpoint import SaveEvery, last_checkpoint, read_training_checkpoint
from savimae.training.pretrain import train
from savimae.training.weights import load_model


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


@pytest.mark.parametrize("text", ["10ep", "200steps", "15min"])
def test_when_to_save_is_written_as_it_is_read(text):
    assert str(SaveEvery.parse(text)) == text


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
    process(str(data), str(arrays), ArrayMaker(config(data, run).saliency_config()), WalkOptions(1))
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
