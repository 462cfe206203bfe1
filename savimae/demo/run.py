"""The demo: a small labelled set of real video files, and everything run on it.

The videos are made from the photographs that scikit-image ships: a cut-out of one moves in one of
eight directions over another. Two things can be told from a video: what moves, and where to.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw
from skimage import data

from savimae.data.lists import Video, write_list
from savimae.data.video import write_video
from savimae.judging.pictures import inspect_video
from savimae.saliency.config import SaliencyConfig
from savimae.saliency.makers import ArrayMaker
from savimae.saliency.preprocess import WalkOptions, process
from savimae.system.errors import shown
from savimae.system.files import refuse_file
from savimae.system.progress import Progress
from savimae.system.settings import record_config

WIDTH, HEIGHT = 160, 120  # pixels
N_FRAMES = 48
DEMO_FRAMES_PER_S = 24
OBJECT_PX = 44
DIRECTIONS = ("right", "down_right", "down", "down_left", "left", "up_left", "up", "up_right")
# Centre (x, y) and diameter of the cut-out, in pixels of the photograph.
OBJECTS = {
    "astronaut": ("astronaut", (225, 110), 190),
    "cat": ("chelsea", (222, 120), 236),
    "cup": ("coffee", (300, 200), 330),
    "rocket": ("rocket", (322, 235), 190),
}
BACKGROUNDS = ("brick", "grass", "gravel", "hubble_deep_field")
FORMATS = ((".avi", "mpeg4"), (".mp4", "libx264"))
EXAMPLE = "right/right_cat_01"  # the video that is drawn


@dataclasses.dataclass(frozen=True)
class DemoSet:
    """Where the parts of the demo's data set are."""

    videos: str  # folder, `direction/direction_object_01.avi`
    direction_list: str
    object_list: str
    n_videos: int


def make_demo_set(out: str, seed: int = 0, copies: int = 2) -> DemoSet:
    """Write 8 directions x 4 objects x `copies` videos of 48 frames, 160x120, and their two lists.

    The same seed gives the same bytes. AVI (MPEG-4) and MP4 (H.264) alternate.

    Raises:
        UsageError: `out` holds a demo made with another seed, or is a file.
    """
    refuse_file(out)
    os.makedirs(out, exist_ok=True)
    record_config(out, {"output": "demo", "seed": seed, "copies": copies})
    root = os.path.join(out, "videos")
    by_direction: list[Video] = []
    by_object: list[Video] = []
    total = len(DIRECTIONS) * len(OBJECTS) * copies
    with Progress("making videos") as progress:
        for direction_index, direction in enumerate(DIRECTIONS):
            for object_index, name in enumerate(OBJECTS):
                for copy in range(copies):
                    place = (seed, direction_index, object_index, copy)
                    extension, codec = FORMATS[(object_index + copy) % len(FORMATS)]
                    stem = f"{direction}/{direction}_{name}_{copy + 1:02}"
                    path = os.path.join(root, stem + extension)
                    frames = moving_object(name, direction_index, np.random.default_rng(place))
                    write_video(path, np.stack(list(frames)), DEMO_FRAMES_PER_S, codec)
                    by_direction.append(Video(path, stem, direction_index))
                    by_object.append(Video(path, stem, object_index))
                    progress.show(len(by_object) / total, f"{len(by_object)}/{total} videos")
    direction_list = os.path.join(out, "direction.txt")
    object_list = os.path.join(out, "object.txt")
    write_list(direction_list, by_direction, root, DIRECTIONS)
    write_list(object_list, by_object, root, tuple(OBJECTS))
    return DemoSet(root, direction_list, object_list, len(by_direction))


def run_demo(out: str, seed: int, workers: int) -> int:
    """Make the videos, preprocess them, look at one, pretrain on them, look at what was learned.

    Prints each step as the command that does the same, and every file it writes.

    Returns:
        The exit code: 0, 1 if a video failed, or `errors.EXIT_STOPPED` if training was stopped.
    """
    from savimae.judging.load import ClipOptions, Machine, MaskOptions
    from savimae.judging.reconstruct import Drawings, draw_reconstructions
    from savimae.training.pretrain import TrainConfig, train
    from savimae.training.setup import options_of

    say("1. making videos: cut-outs that move over photographs, as AVI and MP4")
    made = make_demo_set(out, seed)
    say(
        f"   {made.n_videos} videos in {shown(made.videos)}: {len(DIRECTIONS)} directions "
        f"({shown(made.direction_list)}), {len(OBJECTS)} objects ({shown(made.object_list)})"
    )
    arrays, run = os.path.join(out, "saliency"), os.path.join(out, "run")
    # A model and clips so small that something is learned in some minutes on two cores.
    config = TrainConfig(
        made.direction_list, run, saliency_root=arrays, seed=seed,
        model="tiny", encoder_depth=3, decoder_depth=2, input_size=96, num_frames=8,
        salient_mask_ratio=0.5, nonsalient_mask_ratio=0.75, epochs=150, batch_size=16,
        optimizer="muon", lr=5e-3,
    )  # fmt: skip
    size = config.saliency_config().input_size
    say(f"2. savimae preprocess {shown(made.videos)} {shown(arrays)} --input-size {size}")
    job = ArrayMaker(config.saliency_config())
    report = process(made.videos, arrays, job, WalkOptions(workers, overwrite=True))
    say(f"   {report.summary()}")
    if report.failures:
        return 1

    extension = next(
        extension
        for extension, _ in FORMATS
        if os.path.exists(os.path.join(made.videos, EXAMPLE + extension))
    )
    example = os.path.join(made.videos, EXAMPLE + extension)
    picture = os.path.join(out, "inspect.png")
    say(f"3. savimae inspect {shown(example)} --out {shown(picture)}")
    for path in inspect_video(example, picture, SaliencyConfig()):
        say(f"   wrote {shown(path)}")

    say(f"4. savimae train {' '.join(options_of(config))}")
    code = train(config)
    if code:
        return code
    say(f"   wrote {shown(os.path.join(run, 'log.jsonl'))}")
    checkpoint = os.path.join(run, "checkpoints", "last.pt")
    say(f"   wrote {shown(checkpoint)}")

    pictures = os.path.join(out, "reconstructions")
    say(f"5. savimae reconstruct {shown(run)} {shown(example)} --out {shown(pictures)}")
    machine = Machine.choose("auto", "auto", None)
    drawn = draw_reconstructions(
        run, example, pictures, machine, MaskOptions(), ClipOptions(), Drawings()
    )
    for path in drawn.written:
        say(f"   wrote {shown(path)}")
    say(
        "Look at the pictures. Then try your own videos:\n"
        "   savimae inspect YOUR_VIDEO\n"
        "   savimae preprocess YOUR_FOLDER YOUR_ARRAYS\n"
        "   savimae train --data YOUR_FOLDER --saliency-root YOUR_ARRAYS --out YOUR_RUN"
    )
    return 0


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def moving_object(name: str, direction: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Frames uint8 `[120, 160, 3]` of object `name` moving at `direction` * 45 degrees."""
    cutout = _cutout(name, OBJECT_PX + int(rng.integers(-6, 7)))
    background = _background(BACKGROUNDS[rng.integers(len(BACKGROUNDS))], rng)
    angle = direction * math.pi / 4
    step = np.array([math.cos(angle), math.sin(angle)])
    speed = rng.uniform(1.0, 1.5)  # pixels a frame: 48 to 72 pixels in all
    middle = np.array([WIDTH, HEIGHT]) / 2 + rng.uniform(-8, 8, 2)
    for index in range(N_FRAMES):
        center = middle + step * speed * (index - (N_FRAMES - 1) / 2)
        corner = np.round(center - cutout.width / 2).astype(int)
        frame = background.copy()
        frame.paste(cutout, (int(corner[0]), int(corner[1])), cutout)
        yield np.asarray(frame)


@functools.cache
def _photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(data, name)()).convert("RGB")


def _cutout(name: str, side: int) -> Image.Image:
    """A round piece of a photograph, RGBA, `side` pixels wide."""
    photograph, (x, y), diameter = OBJECTS[name]
    box = (x - diameter // 2, y - diameter // 2, x + diameter // 2, y + diameter // 2)
    piece = _photograph(photograph).crop(box).resize((side, side), Image.Resampling.LANCZOS)
    mask = Image.new("L", (4 * side, 4 * side))
    ImageDraw.Draw(mask).ellipse((0, 0, 4 * side - 1, 4 * side - 1), fill=255)
    piece.putalpha(mask.resize((side, side), Image.Resampling.LANCZOS))
    return piece


def _background(name: str, rng: np.random.Generator) -> Image.Image:
    """A random crop of a photograph, evened out a little so that the object stands out."""
    photograph = _photograph(name)
    x = int(rng.integers(photograph.width - 2 * WIDTH + 1))
    y = int(rng.integers(photograph.height - 2 * HEIGHT + 1))
    crop = photograph.crop((x, y, x + 2 * WIDTH, y + 2 * HEIGHT))
    crop = crop.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    return Image.blend(crop, Image.new("RGB", crop.size, crop.resize((1, 1)).getpixel((0, 0))), 0.5)
