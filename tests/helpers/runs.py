"""Small runs for the tests of training."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from media import encode, moving_frames, write_frames

from savimae.data.lists import Video, write_list
from savimae.training.checkpoint import SaveEvery
from savimae.training.pretrain import TrainConfig

N_VIDEOS = 11  # not a multiple of any batch below: the last step of an epoch is short
STEPS = 6  # 2 epochs of ceil(11 / 4)
ACCUMULATED = {"batch_size": 2, "accumulate": 2}  # the same batch of 4
SMALL = {
    "model": "tiny", "encoder_depth": 2, "decoder_depth": 1, "input_size": 32, "num_frames": 4,
    "sampling_rate": 2, "mask_type": "savi", "salient_mask_ratio": 0.5,
    "nonsalient_mask_ratio": 0.75, "epochs": 2, "batch_size": 4, "lr": 1e-3, "precision": "fp32",
    "threads": 1, "log_every": 1, "device": "cpu",
}  # fmt: skip


def make_videos(root: Path) -> Path:
    """A list of frame folders and video files, and the list's path."""
    videos = []
    for index in range(N_VIDEOS):
        frames = moving_frames(14 + index)[:, ::-1] if index % 2 else moving_frames(9 + index)
        name = f"c{index % 2}/v{index:02}"
        path = root / "videos" / name
        if index % 3 == 0:
            write_frames(path, frames)
        else:
            path = encode(path.with_suffix(".mp4" if index % 3 == 1 else ".avi"), frames,
                          "libx264" if index % 3 == 1 else "mpeg4")  # fmt: skip
        videos.append(Video(str(path), name, index % 2))
    write_list(str(root / "list.txt"), videos, str(root / "videos"), ["c0", "c1"])
    return root / "list.txt"


def config(data: Path, out: Path, **changes: Any) -> TrainConfig:
    saves = (SaveEvery(steps=2),)
    return TrainConfig(str(data), str(out), **{**SMALL, "save_every": saves, **changes})


def command(data: Path, out: Path, **changes: Any) -> list[str]:
    """The same as a command line."""
    options = {**SMALL, "save_every": "2steps", **changes}
    words = [
        word
        for name, value in options.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    return ["train", "--data", str(data), "--out", str(out), *words]


# Runs the command line with a hook: HOOK is code that may replace parts of savimae.
WITH_HOOK = """
import os, signal, sys, torch
from savimae.training.pretrain import Pretraining
original, calls = Pretraining.loss, 0
def loss(self, batch):
    global calls
    if torch.is_grad_enabled():  # not the trial before the first step
        calls += 1
        at_call(calls)
    return original(self, batch)
Pretraining.loss = loss
{hook}
from savimae.cli import main
main()
"""


def hooked(hook: str, arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start the command line with `hook`, which defines at_call(number of the forward pass)."""
    code = WITH_HOOK.replace("{hook}", hook)
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code, and what was printed."""
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out + err


def ranks(n: int, arguments: list[str], hook: str = "at_call = lambda n: None", **more: str):
    """Start `n` processes of one run, as torchrun would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        hooked(
            hook, arguments, RANK=str(rank), WORLD_SIZE=str(n), LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(n), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), **more,
        )
        for rank in range(n)
    ]  # fmt: skip


def log_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "event" not in line]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in log_of(run) if "loss" in line]


def checkpoint(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)


def same_weights(run: Path, other: Path) -> bool:
    """Bit for bit, with the optimizer's state."""
    ours, theirs = checkpoint(run), checkpoint(other)
    pairs = [(ours["model"][name], theirs["model"][name]) for name in ours["model"]]
    for key, state in ours["optimizer"]["state"].items():
        pairs += [(state[name], theirs["optimizer"]["state"][key][name]) for name in state]
    return ours["step"] == theirs["step"] and all(torch.equal(a, b) for a, b in pairs)


def stopping(run, after):
    """`Loop.run` that is asked to stop after so many steps."""

    def stopped(self, signals, event):
        step = self._step

        def one(*arguments):
            record = step(*arguments)
            if self.step == after:
                signals.received = signal.SIGTERM
            return record

        self._step = one
        return run(self, signals, event)

    return stopped
