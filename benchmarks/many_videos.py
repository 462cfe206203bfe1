"""What a data set of very many videos costs beside decoding: overhead per video, by stage.

    python benchmarks/many_videos.py [--videos 100000] [--shards 64]

Makes that many tiny videos (two frames of 32x32) in 700 class folders and times, with warm caches,
the median of three where nothing is written: listing the folder, listing a list file, dealing
shards, looking for finished arrays, one part of an array job, `savimae slurm status`, what every
process of a training does before its first step, and reading every array once in random order; the
last two from a pack of these arrays as well. Prints JSON, microseconds a video. A local
disk answers in microseconds; on a network file system multiply the requests that docs/slurm.md
counts by its latency.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from hardware import hardware, versions

from savimae.data.lists import find_videos, write_list
from savimae.data.shards import Shard, deal
from savimae.data.video import write_video
from savimae.kernels.patches import compile_kernels
from savimae.saliency.array_source import open_arrays
from savimae.saliency.config import SaliencyConfig
from savimae.saliency.makers import ArrayMaker
from savimae.saliency.pack import write_pack
from savimae.saliency.preprocess import WalkOptions, process
from savimae.saliency.survey import survey
from savimae.system.cores import available_cores

N_CLASSES = 700
PARTS = 4  # of the pack


def make(folder: str, n_videos: int) -> None:
    """FOLDER/class_000/video_000000.avi and so on, all of the same content."""
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    frames[:, 8:20, 8:20] = 200
    write_video(os.path.join(folder, "one.avi"), frames, 25, "mpeg4")
    with open(os.path.join(folder, "one.avi"), "rb") as file:
        content = file.read()
    os.unlink(os.path.join(folder, "one.avi"))
    for index in range(n_videos):
        target = os.path.join(folder, f"class_{index % N_CLASSES:03}", f"video_{index:06}.avi")
        if index < N_CLASSES:
            os.makedirs(os.path.dirname(target))
        with open(target, "wb") as file:
            file.write(content)


def timed(call: Callable[[], Any], rounds: int = 3) -> tuple[float, Any]:
    """Median seconds of so many calls, and what the last returned."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def on_disk(root: str) -> dict[str, int]:
    """Files and folders below `root`, the bytes in them, and the bytes that they take."""
    found = {"files": 0, "folders": 0, "bytes": 0, "bytes_of_blocks": 0}
    for folder, _, files in os.walk(root):
        found["folders"] += 1
        for name in files:
            status = os.stat(os.path.join(folder, name))
            found["files"] += 1
            found["bytes"] += status.st_size
            found["bytes_of_blocks"] += 512 * status.st_blocks
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=64)
    options = parser.parse_args()
    n, shards = options.videos, options.shards
    job = ArrayMaker(SaliencyConfig(input_size=32, patch_size=16))
    compile_kernels()
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as work:
        videos, arrays = os.path.join(work, "videos"), os.path.join(work, "arrays")
        listed = os.path.join(work, "list.txt")
        os.mkdir(videos)
        make(videos, n)
        seconds["folder_with_sizes"], found = timed(lambda: find_videos(videos))
        seconds["folder_names_only"], _ = timed(lambda: find_videos(videos, weigh=False))
        for sizes in (False, True):
            name = "list_with_sizes" if sizes else "list"
            seconds[f"{name}_written"], _ = timed(
                lambda sizes=sizes: write_list(
                    listed, found.videos, found.root, found.classes, sizes
                )
            )
            seconds[f"{name}_weighed"], _ = timed(lambda: find_videos(listed))
        seconds["list_names_only"], _ = timed(lambda: find_videos(listed, weigh=False))
        seconds["shards_dealt"], _ = timed(lambda: deal(found.videos, shards))
        seconds["survey_of_none"], _ = timed(lambda: survey(found.videos, arrays, job))

        per_video: dict[str, float] = {}
        for workers in sorted({1, available_cores()}):
            part = WalkOptions(workers, Shard(workers, shards), overwrite=True)
            wall, report = timed(lambda part=part: process(videos, arrays, job, part), rounds=1)
            per_video[f"part_with_{workers}_workers"] = report.seconds / report.videos
            per_video[f"part_with_{workers}_workers_from_start"] = wall / report.videos
        process(videos, arrays, job, WalkOptions(available_cores()))  # the rest
        seconds["survey_of_all"], looked = timed(lambda: survey(found.videos, arrays, job))
        assert not looked.missing

        def status() -> None:
            words = ["slurm", "preprocess", videos, arrays, "--shards", str(shards)]
            command = [sys.executable, "-m", "savimae"]
            script = os.path.join(work, "job.sh")
            sizes = ["--", "--input-size", "32"]
            subprocess.run([*command, *words, "--output", script, *sizes], check=True,
                           stdout=subprocess.DEVNULL)  # fmt: skip
            subprocess.run([*command, "slurm", "status", arrays], check=True,
                           stdout=subprocess.DEVNULL)  # fmt: skip

        seconds["slurm_status"], _ = timed(status)
        from savimae.model.config import model_config
        from savimae.training.pretrain import check_arrays

        shape = model_config("tiny", input_size=32)
        seconds["training_checks_arrays"], _ = timed(
            lambda: check_arrays(found.videos, arrays, shape)
        )

        packed = os.path.join(work, "packed")
        names = [video.name for video in found.videos]
        np.random.default_rng(0).shuffle(names)

        def read_all(root: str) -> int:
            source = open_arrays(root)
            return sum(len(source.load(name)) for name in names)

        for part in range(PARTS):
            seconds[f"pack_part_{part}_of_{PARTS}"], _ = timed(
                lambda part=part: write_pack(arrays, packed, Shard(part, PARTS)), rounds=1
            )
        seconds["pack_again"], _ = timed(lambda: write_pack(arrays, packed, Shard(0, PARTS)))
        seconds["training_checks_pack"], _ = timed(
            lambda: check_arrays(found.videos, packed, shape)
        )
        seconds["arrays_read_from_folder"], from_folder = timed(lambda: read_all(arrays))
        seconds["arrays_read_from_pack"], from_pack = timed(lambda: read_all(packed))
        assert from_folder == from_pack == 2 * n
        disk = {name: on_disk(root) for name, root in (("folder", arrays), ("pack", packed))}
    print(
        json.dumps(
            {
                "videos": n,
                "shards": shards,
                "hardware": hardware(),
                "arrays_on_disk": disk,
                "versions": versions("av", "numba", "numpy"),
                "microseconds_a_video": {
                    **{name: round(value / n * 1e6, 2) for name, value in seconds.items()},
                    **{name: round(value * 1e6, 1) for name, value in per_video.items()},
                },
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
