"""What `savimae train` holds in memory as it goes on: at the end against a tenth of the steps.

Masks that follow saliency show another number of tokens in every clip, so the blocks of memory that
a step asks for differ from step to step. That must not make a long run grow, or slow.

    python benchmarks/memory.py --model tiny --input-size 112 --batch-size 32 --steps 3000
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

import numpy as np
from hardware import hardware, versions
from skimage import data

from savimae.data.video import write_video

N_VIDEOS = 64


def make_videos(folder: str, size: int) -> None:
    """Windows that wander over photographs; how much of them is salient differs a lot."""
    rng = np.random.default_rng(0)
    photographs = (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())
    for index in range(N_VIDEOS):
        photograph = photographs[index % len(photographs)]
        y, x = (int(rng.integers(0, side - size - 31)) for side in photograph.shape[:2])
        frames = [photograph[y + n : y + n + size, x + n : x + n + size] for n in range(32)]
        write_video(f"{folder}/{index:02}.mp4", np.stack(frames), 25, "libx264")


def run(options: argparse.Namespace, work: str, mask_type: str) -> dict[str, object]:
    """One training; what its log says of memory and rate."""
    out = os.path.join(work, mask_type)
    epochs = -(-options.steps * options.batch_size // N_VIDEOS)
    given = {
        "data": os.path.join(work, "videos"), "out": out, "model": options.model,
        "input_size": options.input_size, "batch_size": options.batch_size, "epochs": epochs,
        "mask_type": mask_type, "sampling_rate": 2, "lr": 1e-4, "precision": options.precision,
        "threads": options.threads, "allocator": options.allocator, "save_every": "10000ep",
        "log_every": max(1, options.steps // 40),
    }  # fmt: skip
    words = [
        word
        for name, value in given.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    subprocess.run(
        [sys.executable, "-m", "savimae", "train", *words], stdout=sys.stderr, check=True
    )
    with open(os.path.join(out, "log.jsonl")) as file:
        lines = [line for line in map(json.loads, file) if "loss" in line]
    total = lines[-1]["step"]
    early = [line for line in lines if line["step"] <= total / 10]
    late = [line for line in lines if line["step"] > total * 9 / 10]
    rates = [statistics.median(line["clips_per_s"] for line in part) for part in (early, late)]
    return {
        "mask_type": mask_type,
        "steps": total,
        "memory_gib": {line["step"]: line["memory_gib"] for line in lines},
        "memory_end_over_tenth": round(lines[-1]["memory_gib"] / early[-1]["memory_gib"], 4),
        "clips_per_s_first_tenth": rates[0],
        "clips_per_s_last_tenth": rates[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--input-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--allocator", default="keep")
    parser.add_argument("--mask-types", nargs="+", default=["savi", "tube"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        os.mkdir(os.path.join(work, "videos"))
        make_videos(os.path.join(work, "videos"), options.input_size)
        runs = [run(options, work, mask_type) for mask_type in options.mask_types]
    result = {
        "hardware": hardware(),
        "versions": versions("savimae", "torch", "numpy"),
        **vars(options),
        "runs": runs,
    }
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
