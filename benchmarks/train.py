"""The whole `savimae train` against the bare step: loading, logging and start-up included.

    python benchmarks/train.py [--clips FOLDER] [--model base] [--input-size 224] [--rounds 3]
        [--steps 15] [--precision bf16] [--sampling-rate 4]

In every round the bare step (train_step.py: random clips in memory, savi masks) and the command, on
videos and on frame folders, take turns, each in a process of its own. The share is the command's
FLOP rate over the bare step's, since clips show different numbers of tokens; medians over the
rounds. Then, once each, what a setting changes. The first third of the steps is warm-up. Prints
JSON.

Without --clips, two clips of 320x240 are made from photographs. Clips are repeated under many
names.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from hardware import hardware, versions
from made_clips import extract_frames, make_clips

from savimae.data.lists import find_videos
from savimae.saliency.config import SaliencyConfig
from savimae.saliency.makers import ArrayMaker
from savimae.saliency.preprocess import WalkOptions, process
from savimae.system.cores import available_cores

HERE = os.path.dirname(os.path.abspath(__file__))
BATCHES = 5  # of videos: an epoch


def prepare(clips: str | None, input_size: int, n_videos: int, work: str) -> None:
    """WORK/videos and WORK/frames with `n_videos` names each, and their arrays."""
    source = clips or os.path.join(work, "made")
    if clips is None:
        os.makedirs(source)
        make_clips(source)
    found = find_videos(source).videos
    for index in range(n_videos):
        video = found[index % len(found)]
        target = os.path.join(work, "videos", f"{index:02}{os.path.splitext(video.path)[1]}")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copyfile(video.path, target)
        frames = os.path.join(work, "frames", f"{index:02}")
        if index < len(found):
            extract_frames(video.path, frames)
        else:
            shutil.copytree(os.path.join(work, "frames", f"{index % len(found):02}"), frames)
    for kind in ("videos", "frames"):
        job = ArrayMaker(SaliencyConfig(input_size))
        options = WalkOptions(available_cores())
        process(os.path.join(work, kind), os.path.join(work, "arrays", kind), job, options)


def bare_step(options: argparse.Namespace) -> float:
    """GFLOP/s of the step alone, savi masks."""
    setting = {
        "code": "savimae", "mask": "savi", "allocator": "keep", "decoder_mask_ratio": 0.0,
        "precision": options.precision, "batch": [options.batch_size],
    }  # fmt: skip
    done = subprocess.run(
        [
            sys.executable, os.path.join(HERE, "train_step.py"), "--model", options.model,
            "--input-size", str(options.input_size), "--steps", str(options.steps * 2 // 3),
            "--only", json.dumps(setting),
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    result = json.loads(done.stdout)
    return float(result["share_of_product_rate"] * result["product_gflop_per_s"])


def command(
    options: argparse.Namespace, work: str, kind: str, processes: int = 1, **changes: object
) -> dict[str, float]:
    """Run `savimae train` once: medians over its log after the warm-up, and its start-up."""
    run = os.path.join(work, "run")
    shutil.rmtree(run, ignore_errors=True)
    every = options.steps // 3
    given = {
        "data": os.path.join(work, kind), "saliency_root": os.path.join(work, "arrays", kind),
        "out": run, "model": options.model, "input_size": options.input_size,
        "sampling_rate": options.sampling_rate, "batch_size": options.batch_size // processes,
        "epochs": options.steps // BATCHES, "log_every": every,
        "save_every": "10000ep", "precision": options.precision, "seed": 0, **changes,
    }  # fmt: skip
    words = [
        word
        for name, value in given.items() if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    started = time.time()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "savimae", "train", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={
                **os.environ, "RANK": str(rank), "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
        )
        for rank in range(processes)
    ]  # fmt: skip
    for each in running:
        printed, _ = each.communicate()
        if each.returncode:
            sys.exit(printed.decode())
    with open(os.path.join(run, "log.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    start, *steps = lines
    result = {
        name: round(statistics.median(line[name] for line in steps[1:]), 4)
        for name in ("gflop_per_s", "clips_per_s", "data_wait_share", "visible_tokens")
    }
    result["memory_gib"] = max(line["memory_gib"] for line in steps)
    result["seconds_to_first_step"] = round(start["time"] - started, 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", help="folder of real videos")
    parser.add_argument("--model", default="base")
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--sampling-rate", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15, help="a multiple of 15")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        prepare(options.clips, options.input_size, BATCHES * options.batch_size, work)
        rounds = []
        for _ in range(options.rounds):
            one = {"bare_gflop_per_s": round(bare_step(options), 1)}
            for kind in ("videos", "frames"):
                one[kind] = command(options, work, kind)  # type: ignore[assignment]
                one[f"{kind}_share"] = round(
                    one[kind]["gflop_per_s"] / one["bare_gflop_per_s"], 3  # type: ignore[index]
                )  # fmt: skip
            rounds.append(one)
            print(json.dumps(one), file=sys.stderr, flush=True)
        settings = {
            "crops, saliency computed": {
                "kind": "videos", "augment": "multiscale", "saliency_root": None,
            },
            "no threads for loading": {"kind": "videos", "workers": 0},
            "default allocator": {"kind": "videos", "allocator": "default"},
            "fp32": {"kind": "videos", "precision": "fp32"},
            "decoder mask ratio 0.5": {"kind": "videos", "decoder_mask_ratio": 0.5},
            "2 processes": {"kind": "videos", "processes": 2},
        }  # fmt: skip
        effects = {}
        for name, changes in settings.items():
            effects[name] = command(options, work, **changes)  # type: ignore[arg-type]
            print(name, json.dumps(effects[name]), file=sys.stderr, flush=True)
    result = {
        "hardware": hardware(),
        "versions": versions("savimae", "torch", "numpy", "av", "pillow"),
        "model": options.model,
        "input_size": options.input_size,
        "sampling_rate": options.sampling_rate,
        "batch_size": options.batch_size,
        "precision": options.precision,
        **{
            f"share of the bare step, {kind}": statistics.median(
                one[f"{kind}_share"] for one in rounds
            )
            for kind in ("videos", "frames")
        },
        "rounds": rounds,
        "effects": effects,
    }
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
