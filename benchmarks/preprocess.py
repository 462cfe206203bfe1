"""Preprocessing speed: ours against the two-step route, OpenCV and NumPy, and decoding alone.

    python benchmarks/preprocess.py [--clips FOLDER] [--rounds 7]

Everything runs on the same clips in one process on one core, the routes in turn in every round, so
that a machine whose speed drifts treats them alike; medians over the rounds, compilation and a
warm-up round left out. Then the whole command runs on one worker and on all cores. Prints JSON.
Rates are frames/s.

Without --clips, two clips of 320x240 (MPEG-4 in AVI, 240 frames) are made from photographs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import av
import numpy as np
from hardware import hardware, versions
from made_clips import extract_frames, make_clips
from PIL import Image

from savimae.data.lists import find_videos
from savimae.data.video import GrayPlane, open_video
from savimae.kernels import patches as kernels
from savimae.saliency.arrays import write_array
from savimae.saliency.config import SaliencyConfig
from savimae.saliency.frames import frame_saliency, patch_chunks
from savimae.saliency.makers import ArrayMaker
from savimae.saliency.preprocess import WalkOptions, process
from savimae.system.cores import available_cores

try:
    import cv2
except ImportError:
    cv2 = None

CONFIG = SaliencyConfig()
CHANGE_CONFIG = SaliencyConfig(kind="change")
SIZE, PATCH, GRID = CONFIG.input_size, CONFIG.patch_size, CONFIG.grid


# ------------------------------------------------------------------------- the routes, one core


def two_steps(folder: str, work: str) -> None:
    """(a) JPEG -> PNG maps -> array, in Pillow and NumPy, as the published scripts go about it."""
    maps = os.path.join(work, "maps")
    os.makedirs(maps, exist_ok=True)
    names = sorted(os.listdir(folder))
    for name in names:
        with Image.open(os.path.join(folder, name)) as image:
            gray = image.convert("RGB").convert("L").resize((SIZE, SIZE), Image.BILINEAR)
        pixels = np.asarray(gray, np.float32) / 255
        deviation = np.abs(pixels - pixels.mean())
        peak = deviation.max()
        saliency = deviation / peak if peak else deviation
        Image.fromarray((saliency * 255).astype(np.uint8)).save(f"{maps}/{name[:-4]}.png")
    arrays = []
    for name in names:
        with Image.open(f"{maps}/{name[:-4]}.png") as image:
            saliency = np.asarray(image.convert("L"), np.float32) / 255
        salient = saliency >= CONFIG.threshold
        arrays.append(salient.reshape(GRID, PATCH, GRID, PATCH).max(axis=(1, 3)))
    np.save(os.path.join(work, "array.npy"), np.stack(arrays).astype(np.float32))


def opencv(video: str, work: str) -> None:
    """(b) What a user would write: OpenCV and NumPy straight from the video."""
    capture = cv2.VideoCapture(video, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    arrays = []
    while True:
        more, frame = capture.read()
        if not more:
            break
        gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        gray = cv2.resize(gray, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        pixels = gray.astype(np.float32) / 255
        deviation = np.abs(pixels - pixels.mean())
        salient = deviation / deviation.max() >= CONFIG.threshold
        arrays.append(salient.reshape(GRID, PATCH, GRID, PATCH).max(axis=(1, 3)))
    np.save(os.path.join(work, "array.npy"), np.stack(arrays).astype(np.uint8))


def ours(source: str, work: str) -> None:
    """(c), (d) The body of `savimae preprocess` for one video."""
    _write(source, work, CONFIG)


def change(source: str, work: str) -> None:
    """(f) The same with `--saliency change`."""
    _write(source, work, CHANGE_CONFIG)


def _write(source: str, work: str, config: SaliencyConfig) -> None:
    chunks = patch_chunks(open_video(source), config)
    write_array(os.path.join(work, "array.npy"), chunks, GRID, "uint8")


def decode_jpeg(folder: str, _: str) -> None:
    """(e) Decoding the frames of a folder to RGB, nothing else."""
    for name in sorted(os.listdir(folder)):
        with Image.open(os.path.join(folder, name)) as image:
            image.load()


def decode_video(video: str, _: str) -> None:
    """(e) Decoding a video file on one thread, nothing else."""
    with av.open(video, metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for _frame in container.decode(stream):
            pass


def rates(
    routes: dict[str, tuple[Callable[[str, str], None], list[str]]], n_frames: int, rounds: int
) -> dict[str, list[float]]:
    """Frames/s of each route in each round; the routes take turns."""
    result: dict[str, list[float]] = {name: [] for name in routes}
    with tempfile.TemporaryDirectory() as work:
        for index in range(rounds + 1):
            for name, (route, sources) in routes.items():
                start = time.perf_counter()
                for source in sources:
                    route(source, work)
                if index:  # the first round warms up
                    result[name].append(n_frames / (time.perf_counter() - start))
    return result


def kernel_us(config: SaliencyConfig, rounds: int) -> float:
    """The fused kernel alone on 320x240 frames, in microseconds a call; median."""
    planes = np.random.default_rng(0).integers(0, 256, (32, 240, 320), np.uint8)
    planes.flags.writeable = False
    saliency = frame_saliency(config)
    out = np.empty((GRID, GRID), np.uint8)
    times = []
    for _ in range(rounds * 10):
        start = time.perf_counter()
        for plane in planes:
            saliency.patches(GrayPlane(plane, 240, 320), out)
        times.append((time.perf_counter() - start) / len(planes) * 1e6)
    return statistics.median(times)


def command_rates(sources: list[str], copies: int, work: str) -> dict[str, int]:
    """The whole command on `copies` links to each source, on one worker and on all cores."""
    links = os.path.join(work, "links")
    os.makedirs(links)
    for index in range(copies):
        for source in sources:
            name, extension = os.path.splitext(os.path.basename(source))
            os.symlink(os.path.abspath(source), f"{links}/{name}_{index:04}{extension}")
    figures = {}
    for workers in (1, available_cores()):
        out = os.path.join(work, f"out-{workers}")
        report = process(links, out, ArrayMaker(CONFIG), WalkOptions(workers=workers))
        figures[f"{workers} workers"] = round(report.frames / report.seconds)
        shutil.rmtree(out)
    shutil.rmtree(links)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", help="folder of video files; default: two that are made")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--copies", type=int, default=200, help="of each clip, for many workers")
    options = parser.parse_args()
    kernels.compile_kernels()
    with tempfile.TemporaryDirectory() as work:
        if not options.clips:
            os.makedirs(f"{work}/clips")
            make_clips(f"{work}/clips")
        videos = [video.path for video in find_videos(options.clips or f"{work}/clips").videos]
        folders = [f"{work}/frames/{index}" for index in range(len(videos))]
        for video, folder in zip(videos, folders, strict=True):
            extract_frames(video, folder)
        n_frames = sum(len(os.listdir(folder)) for folder in folders)
        routes = {  # what is compared most closely runs side by side
            "a two steps, JPEG": (two_steps, folders),
            "c ours, JPEG": (ours, folders),
            "e decoding alone, JPEG": (decode_jpeg, folders),
            "b OpenCV + NumPy, video": (opencv, videos),
            "d ours, video": (ours, videos),
            "f ours, change, video": (change, videos),
            "e decoding alone, video": (decode_video, videos),
        }
        if cv2 is None:
            del routes["b OpenCV + NumPy, video"]
        by_route = rates(routes, n_frames, options.rounds)

        def ratio(one: str, other: str) -> float | None:
            """Median over the rounds of the ratio within a round."""
            keys = [
                next((key for key in by_route if key.startswith(name)), None)
                for name in (one, other)
            ]
            if None in keys:
                return None
            pairs = zip(by_route[keys[0]], by_route[keys[1]], strict=True)
            return round(statistics.median(x / y for x, y in pairs), 3)

        result = {
            "hardware": hardware(),
            "versions": versions("savimae", "numba", "numpy", "av", "pillow"),
            "clips": "given" if options.clips else "made, 320x240 MPEG-4",
            "frames": n_frames,
            "rounds": options.rounds,
            "one core, frames/s": {
                name: round(statistics.median(values)) for name, values in by_route.items()
            },
            "ratios": {
                "d / e (at least 0.5)": ratio("d", "e decoding alone, video"),
                "d / b (at least 4)": ratio("d", "b"),
                "f / e (at least 0.5)": ratio("f", "e decoding alone, video"),
                "c / e (at least 0.8)": ratio("c", "e decoding alone, JPEG"),
                "c / a (at least 15)": ratio("c", "a"),
                "d / a (at least 50)": ratio("d", "a"),
            },
            "kernel, us per 320x240 frame (under 40)": round(kernel_us(CONFIG, options.rounds), 1),
            "kernel of change, the same": round(kernel_us(CHANGE_CONFIG, options.rounds), 1),
            "whole command, frames/s": {
                "video": command_rates(videos, options.copies, work),
                "JPEG": command_rates(folders, max(options.copies // 3, 1), work),
            },
        }
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
