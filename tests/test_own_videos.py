"""The recipes of docs/own-videos.md, typed as they stand there, on small made videos."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import tifffile
from media import encode, savimae
from models import SMALL, small_model, write_checkpoint
from test_docs import savimae_words, simple_commands

PAGE = Path(__file__).parents[1] / "docs/own-videos.md"
# What makes it quick. Of options that are typed twice the last one counts.
ONE = ("--threads", "1", "--precision", "fp32", "--attention", "products")
TINY = ("--encoder-depth", "1", "--num-frames", "4")
SHORT: dict[str, tuple[str, ...]] = {
    "train": (
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--encoder-depth",
        "2",
        "--num-frames",
        "4",
        *ONE,
    ),
    "finetune": ("--batch-size", "4", "--test-clips", "1", "--epochs", "1", *ONE),
}
# Of a checkpoint, whose shape is its own.
ON_SMALL = ("--epochs", "1", "--batch-size", "4", "--sampling-rate", "1", *ONE)


def commands_of(title: str) -> list[list[str]]:
    """The words of the command lines of a section."""
    section = re.search(
        rf"^## {title}$(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert section is not None
    (block,) = re.findall(r"^```sh\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    found = [savimae_words(words) for words in simple_commands(block)]
    assert len(found) > 3
    assert None not in found
    return [words for words in found if words]


def blobs(seed: int, is_moving: bool) -> np.ndarray:
    """A few spots that move or do not, on a dark ground with noise: uint16 [24, 48, 64]."""
    rng = np.random.default_rng(seed)
    t, y, x = np.mgrid[:24, :48, :64]
    counts = np.full(t.shape, 110.0)
    for row, column in rng.uniform(5, 40, (3, 2)):
        shift = 2 * t if is_moving else 0
        distance = (y - row) ** 2 + (x - (column + shift) % 64) ** 2
        counts += 900 * np.exp(-distance / 18)
    return rng.poisson(counts).astype(np.uint16)


def run(words: list[str], cwd: Path, more: tuple[str, ...] = ()) -> str:
    done = savimae(*words, *more, cwd=cwd)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def test_a_microscopist(tmp_path):
    for index in range(8):
        path = tmp_path / f"movies/{('control', 'treated')[index % 2]}/cell_{index // 2:02}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, blobs(index, index % 2 == 1), imagej=True, metadata={"axes": "TYX"})
    printed = [
        run(words, tmp_path, SHORT.get(words[0], ())) for words in commands_of("A microscopist")
    ]
    assert re.fullmatch(r"--pixel-mean 0\.\d{4} --pixel-std 0\.\d{4} --channels 1\n", printed[2])
    assert (tmp_path / "pictures/cell_01.png").exists()
    assert "raw pixels" in printed[-1]


def test_gray_cameras(tmp_path):
    for index in range(8):
        frames = (blobs(index, index % 2 == 1) // 5).clip(0, 255).astype(np.uint8)
        path = tmp_path / f"videos/{('fault', 'fine')[index % 2]}/film_{index // 2:02}.mp4"
        encode(path, np.repeat(frames[..., None], 3, -1), "libx264")
    write_checkpoint(tmp_path / "weights", small_model())
    for words in commands_of("Gray cameras"):
        sizes = ("--input-size", str(SMALL.input_size)) if words[0] == "preprocess" else ()
        more = ON_SMALL if words[0] == "train" else SHORT.get(words[0], sizes)
        printed = run(words, tmp_path, more)
    assert re.match(r"videos/fault/film_01\.mp4  (fault|fine) [01]\.\d+", printed)
