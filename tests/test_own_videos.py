"""The recipes of docs/own-videos.md, typed as they stand there, on small made videos."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import tifffile
from media import encode, moving_frames, savimae
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


def test_wide_screen_videos(tmp_path):
    shapes = ((54, 96), (54, 96), (96, 54), (48, 64))  # wide, upright, old
    for index in range(8):
        height, width = shapes[index // 2]
        frames = moving_frames(12, width, height)
        name = f"films/{('goal', 'foul')[index % 2]}/film_{index // 2:02}.mp4"
        encode(tmp_path / name, frames[::-1] if index % 2 else frames, "libx264")
    for words in commands_of("Wide-screen videos"):
        printed = run(words, tmp_path, SHORT.get(words[0], ()))
        if words[0] == "probe":
            assert "raw pixels" in printed
        if words[0] == "predict":
            assert re.match(r"films/goal/film_01\.mp4  (goal|foul) [01]\.\d+", printed)
    assert (tmp_path / "pictures/film_01.png").exists()
    for name in ("run", "classifier"):
        recorded = json.loads((tmp_path / name / "config.json").read_text())
        assert (recorded["input_size"], recorded["fit"]) == ([96, 160], "pad")
    arrays = {path.stem: np.load(path) for path in (tmp_path / "saliency/goal").glob("*.npy")}
    assert {array.shape for array in arrays.values()} == {(12, 6, 10)}
    # 54 x 96 fills the frame; 96 x 54 fills 3 patches of 10, and 48 x 64 fills 8.
    seen = {name: array.any((0, 1)).nonzero()[0] for name, array in arrays.items()}
    assert [(int(each.min()), int(each.max())) for _, each in sorted(seen.items())] == [
        (0, 9), (0, 9), (3, 5), (1, 8),
    ]  # fmt: skip
    about = onnxruntime.InferenceSession(tmp_path / "classifier.onnx").get_modelmeta()
    assert json.loads(about.custom_metadata_map["savimae"])["fit"] == "pad"
