"""Clips for benchmarks where no real ones are given."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image
from skimage import data

from savimae.data.video import open_video, write_video


def make_clips(folder: str) -> None:
    """Two clips of a window that wanders over a photograph, with noise as cameras have it."""
    rng = np.random.default_rng(0)
    for name in ("astronaut", "coffee"):
        photograph = getattr(data, name)()
        frames = []
        for index in range(240):
            y, x = 60 + int(50 * np.sin(index / 30)), 100 + int(90 * np.cos(index / 40))
            window = photograph[y : y + 240, x : x + 320].astype(np.int16)
            frames.append((window + rng.integers(-4, 5, window.shape)).clip(0, 255))
        write_video(f"{folder}/{name}.avi", np.stack(frames).astype(np.uint8), 25, "mpeg4")


def extract_frames(video: str, folder: str) -> None:
    os.makedirs(folder)
    for index, rgb in enumerate(open_video(video).rgb_frames()):
        Image.fromarray(rgb).save(f"{folder}/img_{index + 1:05}.jpg", quality=95)
