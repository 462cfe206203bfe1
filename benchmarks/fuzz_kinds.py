"""What `fuzz.py` damages: every kind of file that a command reads, and the command that reads it.

A kind is a function that gets a `Box`: it writes whole and damaged files into the box's folder and
returns the words of a command line. Undamaged, every kind's command ends well; `fuzz.py` checks.
"""

from __future__ import annotations

import dataclasses
import io
import json
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from fuzz_damage import (
    DIGITS,
    VALUES,
    damaged_bytes,
    damaged_json,
    damaged_text,
    damaged_value,
)
from PIL import Image

from savimae.model.config import VideoMAEConfig
from savimae.model.videomae import VideoMAE

SIZES = ("--input-size", "32")
ONE_BY_ONE = ("--device", "cpu", "--precision", "fp32", "--threads", "1")
MACHINE = (*ONE_BY_ONE, "--workers", "0")
TRAINING = ("--epochs", "1", "--warmup-epochs", "0", "--batch-size", "2", "--log-every", "1")
TESTING = ("--test-clips", "1", "--test-crops", "0")
MICRO = VideoMAEConfig(
    input_size=32, num_frames=4, encoder_dim=12, encoder_depth=1, encoder_heads=3,
    decoder_dim=12, decoder_depth=1, decoder_heads=3,
)  # fmt: skip
HEADS = ("--encoder-heads", "3", "--decoder-heads", "3", "--input-size", "32", "--num-frames", "4")


@dataclasses.dataclass
class Box:
    """The folder of one case, and what its kind tells of it."""

    folder: Path
    whole: Whole
    rng: random.Random
    is_damaged: bool = True  # False: everything is left whole
    variant: int | None = None  # of the command, for the checks; None: drawn
    damaged: list[Path] = dataclasses.field(default_factory=list)  # a refusal names one of these
    arrays: dict[Path, tuple[Path, int]] = dataclasses.field(default_factory=dict)
    # array -> (its video, frames of the whole video)
    n_variants: int = 1
    names_others: bool = False  # a refusal may name a video that is not there instead

    def write(self, name: str, content: bytes, is_damaged: bool = False) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if is_damaged:
            self.damaged.append(path)
        return path

    def choose(self, *variants: Any) -> Any:
        """One of several commands: a drawn one, or that of the check under way."""
        drawn = variants[self.rng.randrange(len(variants))]
        distinct = [each for i, each in enumerate(variants) if each not in variants[:i]]
        self.n_variants = len(distinct)
        return drawn if self.variant is None else distinct[self.variant]

    def damage(self, how: Callable[..., bytes], whole: Any, plain: bytes, *more: Any) -> bytes:
        return how(self.rng, whole, *more) if self.is_damaged else plain

    def bytes_(self, whole: bytes, *more: Any) -> bytes:
        return self.damage(damaged_bytes, whole, whole, *more)

    def text(self, whole: str, *more: Any) -> bytes:
        return self.damage(damaged_text, whole, whole.encode(), *more)

    def json(self, whole: Any, indent: int | None = 2) -> bytes:
        plain = json.dumps(whole, indent=indent).encode()
        return self.damage(damaged_json, whole, plain, indent)

    def copy(self, source: Path, name: str) -> Path:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
        return target


Kind = Callable[[Box], list[str]]

# ---------------------------------------------------------------------------------- whole files


class Whole:
    """Whole files of every kind, made once in a folder and then read from it.

    Args:
        folder: where they lie.
        clips: a folder of real videos to damage beside those that are made here.
    """

    def __init__(self, folder: Path, clips: Path | None = None):
        self.folder = folder
        self.micro = folder / "micro.pt"
        self.videos = folder / "videos"
        self.listed = folder / "list.txt"
        self.run = folder / "run"
        files = sorted((folder / "formats").iterdir())
        self.formats: dict[str, list[tuple[str, bytes, int]]] = {}
        for path in [*files, *(sorted(clips.iterdir()) if clips else [])]:
            kind = path.suffix.lower()
            if kind in FORMATS and path.stat().st_size < 2**22:
                found = self.formats.setdefault(FORMATS[kind], [])
                found.append((path.name, path.read_bytes(), count_frames(path)))

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def content(self, name: str) -> Any:
        return torch.load(self.folder / name, weights_only=True)


FORMATS = {
    ".avi": "avi", ".mp4": "mp4", ".mov": "mp4", ".mkv": "mkv", ".webm": "webm", ".mpg": "mpeg",
    ".ts": "mpeg",
}  # fmt: skip
# container, codec, pixel format, options
ENCODINGS = (
    ("mpeg4.avi", "mpeg4", "yuv420p", {}), ("mjpeg.avi", "mjpeg", "yuvj420p", {}),
    ("h264.avi", "libx264", "yuv420p", {"bf": "0"}), ("raw.avi", "rawvideo", "yuv420p", {}),
    ("h264.mp4", "libx264", "yuv420p", {"g": "6"}), ("mpeg4.mp4", "mpeg4", "yuv420p", {}),
    ("hevc.mp4", "libx265", "yuv420p", {"x265-params": "log-level=none"}),
    ("av1.mp4", "libsvtav1", "yuv420p", {"preset": "12"}),
    ("h264.mkv", "libx264", "yuv420p", {}), ("ffv1.mkv", "ffv1", "yuv420p", {}),
    ("vp9.webm", "libvpx-vp9", "yuv420p", {"cpu-used": "8"}),
    ("vp8.webm", "libvpx", "yuv420p", {"cpu-used": "8"}),
    ("mpeg1.mpg", "mpeg1video", "yuv420p", {}), ("mpeg2.mpg", "mpeg2video", "yuv420p", {}),
    ("h264.ts", "libx264", "yuv420p", {}), ("mpeg2.ts", "mpeg2video", "yuv420p", {}),
)  # fmt: skip


def moving_frames(n_frames: int = 14, width: int = 64, height: int = 48) -> np.ndarray:
    """A window that moves over colored noise: uint8 `[n_frames, height, width, 3]`."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    ground = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    return np.stack([ground[i : i + height, 4 * i : 4 * i + width] for i in range(n_frames)])


def encode(path: Path, codec: str, pix_fmt: str, options: Mapping[str, str]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        stream.options = dict(options)
        stream.codec_context.thread_count = 1
        for frame in moving_frames():
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def count_frames(path: Path) -> int:
    """Frames that a decoder finds that ignores errors wherever it can."""
    n_frames = 0
    with av.open(f"file:{path}", metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            return 0
        stream.codec_context.thread_count = 1
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                continue  # the demuxer goes on behind what it cannot read, or ends
            if packet is None:
                return n_frames
            try:
                n_frames += len(stream.codec_context.decode(packet))
            except (av.FFmpegError, EOFError):
                continue


def make_whole(folder: Path, run: Callable[..., int]) -> None:
    """Make all whole files. `run` calls a command and returns its exit code."""
    formats = folder / "formats"
    formats.mkdir(parents=True)
    for name, codec, pix_fmt, options in ENCODINGS:
        encode(formats / name, codec, pix_fmt, options)
    for label, name in enumerate(("mpeg4.avi", "h264.mp4", "vp8.webm", "mpeg4.mp4")):
        target = (
            folder / "videos" / f"c{label % 2}" / f"v_c{label % 2}_g0{label}_c01{Path(name).suffix}"
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(formats / name, target)
    torch.manual_seed(0)
    content = {"model": VideoMAE(MICRO).state_dict(), "config": dataclasses.asdict(MICRO)}
    torch.save(content, folder / "micro.pt")
    words = [str(folder / name) for name in ("videos", "list.txt", "micro.pt", "run")]
    calls: list[list[str]] = [
        ["index", words[0], words[1], "--sizes"],
        ["convert", words[2], str(folder / "published.pt"), "--to", "videomae"],
        ["convert", words[2], str(folder / "hf"), "--to", "huggingface"],
        ["preprocess", words[0], str(folder / "arrays"), *SIZES],
        *(
            ["pack", str(folder / "arrays"), str(folder / "pack"), "--shard", f"{number}/2"]
            for number in range(2)
        ),
        finetune_words(words[2], words[1], words[3]),
        ["features", words[2], "--data", words[1], "--out", str(folder / "f.npz"), *MACHINE],
        ["features", words[2], "--data", words[1], "--out", str(folder / "f.npy"), *MACHINE],
    ]
    for call in calls:
        if code := run(call):
            raise RuntimeError(f"savimae {' '.join(call)} ends with {code}")
    classifier = str(folder / "run" / "checkpoints" / "last.pt")
    if run(["convert", classifier, str(folder / "hf-classifier"), "--to", "huggingface"]):
        raise RuntimeError("a classifier cannot be converted")


def warming_words(whole: Whole, out: str) -> list[list[str]]:
    """Commands that, together, import and compile what all others need."""
    micro, listed, run = str(whole.micro), str(whole.listed), str(whole.run)
    return [
        ["features", micro, "--data", listed, "--out", f"{out}/f.npz", *MACHINE],
        ["features", micro, "--data", listed, "--out", f"{out}/f.npz", *MACHINE],
        ["evaluate", micro, "--data", listed, *MACHINE],
        ["preprocess", str(whole.videos), f"{out}/arrays", *SIZES, "--workers", "1"],
        ["saliency", str(whole.videos), f"{out}/maps", *SIZES, "--workers", "1"],
        ["inspect", str(whole.videos), "--out", f"{out}/i.png", *SIZES, "--animation", "none"],
        ["reconstruct", micro, listed, "--out", out, "--animation", "none", *ONE_BY_ONE],
        ["convert", str(whole.folder / "hf"), f"{out}/c.pt", "--to", "savimae"],
        ["probe", micro, *both_sides(listed), "--no-baselines", "--out",
         f"{out}/probe", *MACHINE],
        ["plot", run, "--out", f"{out}/loss.png"], ["compare", run, run],
    ]  # fmt: skip


def both_sides(listed: str) -> list[str]:
    """Words of a command that trains and tests on the same list."""
    return ["--train", listed, "--test", listed, "--allow-overlap"]


def finetune_words(checkpoint: str, listed: str, run: str) -> list[str]:
    return ["finetune", checkpoint, *both_sides(listed), "--out", run, *TRAINING,
            *TESTING, *MACHINE]  # fmt: skip


# --------------------------------------------------------------------------------------- videos

# Names of fields and chunks, near which numbers matter.
MARKERS = {
    "avi": (
        b"avih", b"strh", b"strf", b"hdrl", b"strl", b"movi", b"idx1", b"00dc", b"RIFF", b"vids",
    ),
    "mp4": (
        b"ftyp", b"moov", b"mvhd", b"tkhd", b"mdhd", b"stsd", b"stts", b"stsz", b"stsc", b"stco",
        b"ctts", b"stss", b"elst", b"avcC", b"avc1", b"mp4v", b"esds", b"mdat", b"hvcC", b"av1C",
    ),
    # EBML ids: segment, info, tracks, pixel width and height, cluster, simple block, cues, codec
    "mkv": (
        b"\x18\x53\x80\x67", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\xb0", b"\xba",
        b"\x1f\x43\xb6\x75", b"\xa3", b"\x1c\x53\xbb\x6b", b"\x63\xa2", b"\x44\x89",
    ),
    "mpeg": (
        b"\0\0\1\xba", b"\0\0\1\xbb", b"\0\0\1\xe0", b"\0\0\1\xb3", b"\0\0\1\0", b"\0\0\1\x67",
        b"\x47\x40",
    ),
    "jpeg": (b"\xff\xc0", b"\xff\xc4", b"\xff\xda", b"\xff\xdb", b"\xff\xe0", b"\xff\xd8"),
    "png": (b"IHDR", b"IDAT", b"IEND"),
}  # fmt: skip
MARKERS["webm"] = MARKERS["mkv"]


def video_words(box: Box, source: Path, stem: str, n_frames: int) -> list[str]:
    """One of the commands that decode, on SOURCE, a file or folder in `videos`."""
    folder, out = str(source.parent), str(box.folder / "out")
    preprocess = ["preprocess", folder, out, *SIZES, "--workers", "1"]
    features = ["features", str(box.whole.micro), "--data", folder, "--out", out + ".npy",
                "--clips", "2", *MACHINE]  # fmt: skip
    evaluate = ["evaluate", str(box.whole.micro), "--data", folder, *MACHINE]
    inspect = ["inspect", str(source), "--out", out + ".png", *SIZES, "--animation", "none"]
    words = box.choose(
        preprocess, preprocess, preprocess, preprocess, preprocess, features, features, evaluate,
        ["saliency", folder, out, *SIZES, "--workers", "1"], inspect,
    )  # fmt: skip
    if words is preprocess:
        box.arrays[Path(out) / f"{stem}.npy"] = (source, n_frames)
    return list(words)


def video(kind: str) -> Kind:
    def make(box: Box) -> list[str]:
        files = box.whole.formats[kind]
        name, content, n_frames = box.rng.choice(files)
        others = [other for _, other, _ in files]
        content = box.bytes_(content, MARKERS[kind], others)
        path = box.write(f"videos/{name}", content, is_damaged=True)
        return video_words(box, path, path.stem, n_frames)

    return make


def images(kind: str) -> Kind:
    """A folder of four frames, of which one is damaged."""

    def make(box: Box) -> list[str]:
        frames = moving_frames(4)
        place = box.rng.randrange(4)
        mode = box.rng.choice(("RGB", "RGB", "L", "P", "1", "RGBA", "CMYK", "I;16"))
        if (kind == "jpeg" and mode not in ("RGB", "L", "CMYK")) or (
            kind == "png" and mode == "CMYK"
        ):
            mode = "RGB"
        for index, frame in enumerate(frames):
            image = Image.fromarray(frame)
            if mode == "I;16":
                image = Image.fromarray(frame[..., 0].astype(np.uint16) * 257)
            elif mode != "RGB":
                image = image.convert(mode)
            content = io.BytesIO()
            more = {"progressive": True} if kind == "jpeg" and box.rng.random() < 0.3 else {}
            image.save(content, kind.upper(), **more)
            whole = content.getvalue()
            if index == place and box.is_damaged:
                whole = damaged_image(box.rng, kind, whole)
            extension = "jpg" if kind == "jpeg" else kind
            box.write(f"videos/v/img_{index + 1:05}.{extension}", whole, index == place)
        return video_words(box, box.folder / "videos" / "v", "v", 4)

    return make


def damaged_image(rng: random.Random, kind: str, whole: bytes) -> bytes:
    """Damaged bytes; or a header with other sizes that is whole in itself."""
    if kind == "png" and rng.random() < 0.4:
        side = (0, 1, 47, 10_000, 20_000, 65_535, 10**9, 2**31 - 1, 2**31, 2**32 - 1)
        width, height = rng.choice(side), rng.choice(side)
        depth, color = rng.choice(((8, 2), (1, 0), (16, 0), (16, 6), (8, 3), (4, 7), (0, 0)))
        header = struct.pack(
            ">IIBBBBB", width, height, depth, color, 0, 0, rng.choice((0, 0, 1, 9))
        )
        pixels = whole[33:-12]
        if rng.random() < 0.3:  # a bomb: many pixels in few bytes
            pixels = chunk(b"IDAT", zlib.compress(bytes(min(width * height, 30_000_000)), 9))
        return whole[:8] + chunk(b"IHDR", header) + pixels + whole[-12:]
    if kind == "jpeg" and rng.random() < 0.2:
        start = max(whole.find(b"\xff\xc0"), whole.find(b"\xff\xc2")) + 5
        sides = struct.pack(">HH", *(rng.choice((0, 1, 7, 47, 65, 9000, 65535)) for _ in "hw"))
        return whole[:start] + sides + whole[start + 4 :]
    if rng.random() < 0.05:  # another kind of image under this name
        content = io.BytesIO()
        image = Image.fromarray(moving_frames(1)[0])
        image.save(content, rng.choice(("GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "PCX", "TGA")))
        return damaged_bytes(rng, content.getvalue())
    return damaged_bytes(rng, whole, MARKERS[kind])


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


# --------------------------------------------------------------------------------------- arrays

NPY_SHAPES = (
    "()", "(0,)", "(-1, 2, 2)", "(14, 2, 2)", "(14, 2)", "(14.0, 2, 2)", "(True, 2, 2)",
    "(0, 2, 2)",
    "(56,)", "(1000000000, 1000000000, 2)", "(4294967296, 4294967296, 2)", "(3000000000,)",
    "(1000000000, 2, 2)", "(99999999999999999999, 2, 2)", "(" + "9" * DIGITS + ", 2, 2)",
    "None", "14", "[14, 2, 2]", "(14, 2, 2", "(" * 150 + ")" * 150, "(" * 3000, "('a',)",
    "(1,) * 9",
    "(" + "1, " * 40 + ")",
)  # fmt: skip
NPY_TYPES = (
    "'|u1'", "'|O'", "'<f8'", "'>f4'", "'<c16'", "'<U2'", "'|S0'", "'<U1000000000'", "'|V8'",
    "'M8'",
    "[('a', '|u1'), ('b', '|O')]", "[('a', '<f8')]", "'|b1'", "'|i1'", "None", "''", "'u1,u1'",
    "'\\ud800'", "3", "'|u1'" * 9, "(('|u1', (2, 2)))",
)  # fmt: skip


def damaged_npy(rng: random.Random, whole: bytes) -> bytes:
    """Damaged bytes, or a header that claims another shape, dtype or order."""
    if rng.random() < 0.4:
        return damaged_bytes(rng, whole)
    found = np.load(io.BytesIO(whole))
    shape, dtype = str(found.shape), repr(found.dtype.str)
    if rng.random() < 0.7:
        shape = rng.choice(NPY_SHAPES)
    if rng.random() < 0.5:
        dtype = rng.choice(NPY_TYPES)
    order = rng.choice(("False", "False", "True", "None", "2"))
    header = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}"
    if rng.random() < 0.1:
        header = rng.choice(
            ("", "{}", "3", "{1: 2}", header + header, "[" * 5000, "\0", header[:-1])
        )
    version = rng.choice((1, 1, 1, 2, 3, 0, 255))
    text = header.encode("latin-1", "replace") + b" " * rng.choice((0, 20)) + b"\n"
    if version == 1 and len(text) > 65535:
        version = 2
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes((version, rng.choice((0, 0, 0, 1)))) + length + text + whole[128:]


def array(box: Box) -> list[str]:
    """An array of saliency, for training and for judging, and in the way of preprocessing."""
    root = box.copy(box.whole.folder / "arrays", "arrays")
    path = box.rng.choice(sorted(root.glob("*/*.npy")))
    whole = path.read_bytes()
    if box.is_damaged:
        path.write_bytes(damaged_npy(box.rng, whole))
    box.damaged.append(path)
    name = path.relative_to(root).with_suffix("")
    source = next(box.whole.videos.glob(f"{name}.*"))
    micro, videos = str(box.whole.micro), str(box.whole.videos)
    evaluate = ["evaluate", micro, "--data", videos, "--saliency-root", str(root), *MACHINE]
    preprocess = ["preprocess", videos, str(root), *SIZES, "--workers", "1"]
    reconstruct = ["reconstruct", micro, str(box.whole.listed), "--out", str(box.folder / "out"),
                   "--saliency-root", str(root), "--animation", "none", *ONE_BY_ONE]  # fmt: skip
    words = box.choose(evaluate, evaluate, evaluate, preprocess, reconstruct)
    if words is preprocess:
        box.arrays[path] = (source, len(np.load(io.BytesIO(whole))))
    return list(words)


def packed(box: Box) -> list[str]:
    """A part of a pack, for training and for judging, and in the way of another packing."""
    root = box.copy(box.whole.folder / "pack", "pack")
    path = box.rng.choice(sorted(root.glob("*.pack")))
    whole = path.read_bytes()
    path.write_bytes(box.bytes_(whole, (whole[-24:], whole[:128])))
    box.damaged.append(path)
    videos, arrays = str(box.whole.videos), str(box.whole.folder / "arrays")
    evaluate = ["evaluate", str(box.whole.micro), "--data", videos, "--saliency-root", str(root),
                *MACHINE]  # fmt: skip
    train = ["train", "--data", videos, "--saliency-root", str(root), "--out",
             str(box.folder / "run"), "--model", "tiny", "--encoder-depth", "1", *SIZES,
             "--num-frames", "4", *TRAINING, *MACHINE]  # fmt: skip
    pack = ["pack", arrays, str(root), "--shard", f"{int(path.name[:5])}/2"]
    return list(box.choose(evaluate, evaluate, train, pack))


# ---------------------------------------------------------------------------------------- lists


def list_file(box: Box) -> list[str]:
    """A list of videos; its relative root leads back to the whole videos."""
    box.names_others = True
    text = box.whole.listed.read_text().replace(
        '# root: "videos"', f"# root: {json.dumps(str(box.whole.videos))}"
    )
    path = str(box.write("list.txt", box.text(text), is_damaged=True))
    micro, out = str(box.whole.micro), str(box.folder / "out")
    fast = ["preprocess", path, out, *SIZES, "--check"]
    return list(box.choose(
        [*fast, "--allow-missing", "9"],
        ["preprocess", path, out, *SIZES, "--workers", "1"],
        ["evaluate", micro, "--data", path, *MACHINE],
        ["features", micro, "--data", path, "--out", out + ".npz", *MACHINE],
        ["index", str(box.whole.videos), out + ".txt", "--against", path],
        finetune_words(micro, path, out),
        ["slurm", "preprocess", path, out, "--shards", "2"],
    ))  # fmt: skip


def ucf101(box: Box) -> list[str]:
    names = sorted(f"{path.parent.name}/{path.name}" for path in box.whole.videos.glob("*/*"))
    files = {
        "classInd.txt": "1 c0\n2 c1\n",
        "trainlist01.txt": "".join(f"{name} {int(name[1]) + 1}\n" for name in names[::2]),
        "testlist01.txt": "".join(f"{name}\n" for name in names[1::2]),
    }
    return splits(box, files, "ucf101")


def hmdb51(box: Box) -> list[str]:
    files = {
        f"c{label}_test_split1.txt": "".join(
            f"{path.name} {1 + index} \n"
            for index, path in enumerate(sorted((box.whole.videos / f"c{label}").iterdir()))
        )
        for label in (0, 1)
    }
    return splits(box, files, "hmdb51")


def splits(box: Box, files: Mapping[str, str], dataset: str) -> list[str]:
    box.names_others = True
    victim = box.rng.choice(sorted(files))
    for name, text in files.items():
        content = box.text(text) if name == victim else text.encode()
        box.write(f"splits/{name}", content, name == victim)
    folder, videos = str(box.folder / "splits"), str(box.whole.videos)
    index = ["index", videos, str(box.folder / "list.txt"), "--splits", folder]
    finetune = ["finetune", str(box.whole.micro), "--dataset", dataset, "--train", videos,
                "--splits", folder, "--out", str(box.folder / "run"),
                *TRAINING, *TESTING, *MACHINE]  # fmt: skip
    return list(box.choose(index, [*index, "--part", "test"], finetune))


# ---------------------------------------------------------------------------------- checkpoints


def odd_tensors() -> list[Any]:
    """Values that may stand where weights do."""
    return [
        *VALUES[:22], torch.zeros(0), torch.zeros(()), torch.zeros(1), torch.zeros(12, 12),
        torch.full((12,), float("nan")), torch.full((12,), float("inf")),
        torch.zeros(12, dtype=torch.int64), torch.zeros(12, dtype=torch.bool),
        torch.zeros(12, dtype=torch.complex64), torch.zeros(12, dtype=torch.float8_e4m3fn),
        torch.zeros(1).expand(10**6, 10**6), torch.zeros(1).expand(2**31),
        torch.zeros(1).expand(10**5, 10**5, 10**5), torch.zeros(12, 12).to_sparse(),
        torch.zeros(12, 12).to_sparse_csr(), torch.zeros(12, device="meta"),
        torch.zeros(10**9, 10**6, device="meta"), "x" * 1000, {"a": torch.zeros(1)}, (1, 2), {1: 2},
        {None: torch.zeros(1)}, [torch.zeros(1)], 2**70, -(2**70), 1j, b"x",
    ]  # fmt: skip


def damaged_checkpoint(box: Box, content: dict[str, Any]) -> bytes:
    """Bytes of a file of torch.save with values, entries of the archive or bytes damaged."""
    rng = box.rng
    whole = saved(content, rng.random() < 0.85)
    if not box.is_damaged:
        return whole
    way = rng.random()
    if way < 0.5:
        values = odd_tensors()
        for _ in range(rng.choice((1, 1, 2))):
            content = odd_key(rng, damaged_value(rng, content, values))
        return saved(content, rng.random() < 0.85)
    if way < 0.7:
        return damaged_archive(rng, saved(content, True))
    return damaged_bytes(rng, whole, (b"PK", b"data.pkl", b"ctorch", b"X"))


def odd_key(rng: random.Random, content: Any) -> Any:
    """Now and then a key that is no text."""
    if not isinstance(content, dict) or rng.random() < 0.9:
        return content
    return {**content, rng.choice((0, None, (1, 2), 1.5, b"x", "\ud800")): rng.choice((1, "a"))}


def saved(content: Any, is_zip: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=is_zip)
    return file.getvalue()


def damaged_archive(rng: random.Random, whole: bytes) -> bytes:
    """A zip archive whose entries are damaged, missing, doubled or renamed, its checksums right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(out, "w") as target:
        names = source.namelist()
        pickles = [name for name in names if name.endswith("data.pkl")]
        victim = rng.choice(pickles if pickles and rng.random() < 0.6 else names)
        for name in names:
            content = source.read(name)
            if name == victim:
                way = rng.randrange(8)
                if way == 0:
                    continue
                if way == 1:
                    name = rng.choice((name + "x", "/" + name, "../" + name, "x", " "))
                elif way == 2:
                    content = content + content
                else:
                    content = damaged_bytes(rng, content)
            packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            target.writestr(name, content, packing)
    return out.getvalue()


def weights(name: str) -> Kind:
    """A checkpoint of this name, for all that reads weights."""

    def make(box: Box) -> list[str]:
        if name == "published.pt":
            content = {box.rng.choice(("model", "module")): box.whole.content(name)["model"]}
        else:
            content = box.whole.content(name)
        path = str(box.write("weights.pt", damaged_checkpoint(box, content), is_damaged=True))
        out, listed = str(box.folder / "out"), str(box.whole.listed)
        to = box.rng.choice(("savimae", "videomae", "huggingface"))
        shape = HEADS if name == "published.pt" else ()
        convert = ["convert", path, out, "--to", to, *shape]
        if name == "published.pt":
            return convert
        return list(box.choose(
            convert, convert, convert,
            ["features", path, "--data", listed, "--out", out + ".npz", *MACHINE],
            ["evaluate", path, "--data", listed, *MACHINE],
            ["reconstruct", path, listed, "--out", out, "--animation", "none", *ONE_BY_ONE],
            finetune_words(path, listed, out),
        ))  # fmt: skip

    return make


def copied_run(box: Box) -> Path:
    """A copy of the finished run, as its own command finds it again."""
    return box.copy(box.whole.run, "run")


def again(box: Box, run: Path) -> list[str]:
    """The command that goes on with the run, which then finds that all is done or what is left."""
    return finetune_words(str(box.whole.micro), str(box.whole.listed), str(run))


def training_checkpoint(box: Box) -> list[str]:
    """A run folder's checkpoint: resumed, and read as weights."""
    run = copied_run(box)
    content = box.whole.content("run/checkpoints/last.pt")
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    if box.rng.random() < 0.6:  # a step is left to do, or the test
        content.pop("is_tested", None)
        content["step"] -= box.rng.choice((0, 1))
        (run / "test.json").unlink()
    path = run / "checkpoints" / box.rng.choice(("last.pt", "step-00000001.pt"))
    box.write(str(path.relative_to(box.folder)), damaged_checkpoint(box, content), is_damaged=True)
    go_on = again(box, run)
    return list(box.choose(
        go_on, go_on, go_on,
        ["convert", str(run), str(box.folder / "out"), "--to", "savimae"],
        ["slurm", "status", str(run)],
    ))  # fmt: skip


# --------------------------------------------------------------------------------- Hugging Face


def damaged_safetensors(rng: random.Random, whole: bytes) -> bytes:
    if rng.random() < 0.4:
        return damaged_bytes(rng, whole, (b"dtype", b"shape", b"data_offsets"))
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    text = damaged_json(rng, header, None)
    claimed = (
        len(text) if rng.random() < 0.8 else rng.choice((0, 1, 10**8, 10**9, 2**63, 2**64 - 1))
    )
    return struct.pack("<Q", claimed) + text + data


def hugging_face(victim: str) -> Kind:
    def make(box: Box) -> list[str]:
        folder = box.copy(box.whole.folder / box.rng.choice(("hf", "hf-classifier")), "hf")
        path = folder / victim
        if box.is_damaged and victim == "config.json":
            path.write_bytes(damaged_json(box.rng, json.loads(path.read_bytes())))
        elif box.is_damaged:
            path.write_bytes(damaged_safetensors(box.rng, path.read_bytes()))
        box.damaged += [path, folder]
        to = box.rng.choice(("savimae", "videomae"))
        return ["convert", str(folder), str(box.folder / "out.pt"), "--to", to]

    return make


# ------------------------------------------------------------------------------- what runs leave


def config_of_run(box: Box) -> list[str]:
    run = copied_run(box)
    whole = json.loads((run / "config.json").read_bytes())
    box.write("run/config.json", box.json(whole), is_damaged=True)
    compare = ["compare", str(run), str(box.whole.run)]
    plot = ["plot", str(run), "--out", str(box.folder / "loss.png")]
    return list(box.choose(compare, again(box, run), ["slurm", "status", str(run)], plot))


def config_of_arrays(box: Box) -> list[str]:
    root = box.copy(box.whole.folder / "arrays", "arrays")
    whole = json.loads((root / "config.json").read_bytes())
    box.write("arrays/config.json", box.json(whole), is_damaged=True)
    box.write("arrays/slurm/preprocess.json", json.dumps(array_note(box, root)).encode())
    preprocess = ["preprocess", str(box.whole.videos), str(root), *SIZES]
    return list(box.choose(
        ["slurm", "status", str(root)], preprocess, [*preprocess, "--check"],
        ["slurm", *preprocess[:3], "--shards", "2", "--", *SIZES],
        ["train", "--data", str(box.whole.videos), "--saliency-root", str(root), "--out",
         str(box.folder / "run"), "--model", "tiny", *SIZES, "--num-frames", "4",
         *TRAINING, *MACHINE],
    )) if box.is_damaged else ["slurm", "status", str(root)]  # fmt: skip


def log(box: Box) -> list[str]:
    run = copied_run(box)
    lines = (run / "log.jsonl").read_text().splitlines()
    if box.rng.random() < 0.4:
        content = box.text("\n".join(lines) + "\n")
    else:
        place = box.rng.randrange(len(lines))
        content = b"\n".join(
            box.json(json.loads(line), None) if index == place else line.encode()
            for index, line in enumerate(lines)
        ) + b"\n"  # fmt: skip
    box.write("run/log.jsonl", content, is_damaged=True)
    if box.rng.random() < 0.5:  # a test is left to do, and the log to be continued
        whole = box.whole.content("run/checkpoints/last.pt")
        del whole["is_tested"]
        torch.save(whole, run / "checkpoints" / "last.pt")
    compare, status = ["compare", str(run), str(box.whole.run)], ["slurm", "status", str(run)]
    plot = ["plot", str(run), "--out", str(box.folder / "loss.png")]
    return list(box.choose(compare, compare, status, status, again(box, run), plot))


def partial_test(box: Box) -> list[str]:
    """What a test leaves that was stopped; the run goes on with it."""
    run = copied_run(box)
    content = box.whole.content("run/checkpoints/last.pt")
    del content["is_tested"]
    torch.save(content, run / "checkpoints" / "last.pt")
    settings = json.loads((run / "config.json").read_bytes())
    whole = {
        "step": content["step"], "test_videos": settings["test_videos"], "test_clips": 1,
        "test_crops": None, "predictions": [[0, 1], [1, 0]],
    }  # fmt: skip
    box.write("run/test.partial.json", box.json(whole), is_damaged=True)
    return again(box, run)


# ------------------------------------------------------------------------------------- features


def damaged_npz(rng: random.Random, whole: bytes) -> bytes:
    """Damaged bytes or entries, or whole entries of other values."""
    way = rng.random()
    if way < 0.3:
        return damaged_bytes(rng, whole, (b"PK", b"NUMPY", b"descr"))
    if way < 0.45:
        return damaged_archive(rng, whole)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(out, "w") as target:
        names = source.namelist()
        victim = rng.choice(names)
        for name in names:
            content = source.read(name)
            if name == victim and rng.random() < 0.4:
                content = damaged_npy(rng, content)
            elif name == victim:
                value = np.load(io.BytesIO(content))
                if name.startswith("settings"):
                    text = damaged_json(rng, json.loads(str(value)), None).decode(
                        "utf-8", "replace"
                    )
                    changed = np.array(text)
                else:
                    changed = rng.choice(odd_arrays(value))
                file = io.BytesIO()
                np.save(file, changed, allow_pickle=True)
                content = file.getvalue()
            target.writestr(name, content, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return out.getvalue()


def odd_arrays(value: np.ndarray) -> list[np.ndarray]:
    """Arrays of other shapes, dtypes and values in place of `value`."""
    numbers = value if value.dtype.kind in "iuf" else np.zeros(len(value))
    return [
        value[:0], value[:1], np.concatenate([value, value]), value[..., None], value.ravel(),
        np.array(3), np.array("a"), np.array([None, 1]), numbers.astype(np.float64) + 0.5,
        numbers.astype(np.complex64), numbers.astype("U5"), -numbers - 1, numbers + 10**6,
        numbers.astype(bool), np.full_like(numbers, 2**31), numbers.astype(">f4"),
        np.full(numbers.shape, np.nan), np.full(numbers.shape, np.inf), numbers * 1e300,
        np.zeros((0, 3)), np.zeros((3, 0)), np.zeros_like(numbers), numbers.astype("M8[s]"),
    ]  # fmt: skip


def features_words(box: Box, path: Path) -> list[str]:
    return ["features", str(box.whole.micro), "--data", str(box.whole.listed), "--out", str(path),
            *MACHINE]  # fmt: skip


def features_npz(box: Box) -> list[str]:
    whole = box.whole.read("f.npz")
    content = damaged_npz(box.rng, whole) if box.is_damaged else whole
    probing = box.choose(False, False, False, True)
    if not probing:
        return features_words(box, box.write("f.npz", content, is_damaged=True))
    name = f"probe/pretrained-{box.rng.choice(('train', 'test'))}.npz"
    box.write(name, content, is_damaged=True)
    listed = str(box.whole.listed)
    return ["probe", str(box.whole.micro), *both_sides(listed), "--no-baselines",
            "--out", str(box.folder / "probe"), *MACHINE]  # fmt: skip


def features_npy(box: Box) -> list[str]:
    whole = box.whole.read("f.npy")
    box.write("f.json", box.whole.read("f.json"))
    content = whole
    if box.is_damaged and box.rng.random() < 0.5:
        file = io.BytesIO()
        changed = box.rng.choice(odd_arrays(np.load(io.BytesIO(whole))))
        np.save(file, changed, allow_pickle=True)
        content = file.getvalue()
    elif box.is_damaged:
        content = damaged_npy(box.rng, whole)
    return features_words(box, box.write("f.npy", content, is_damaged=True))


def features_json(box: Box) -> list[str]:
    path = box.write("f.npy", box.whole.read("f.npy"))
    box.damaged.append(path)
    box.write("f.json", box.json(json.loads(box.whole.read("f.json"))), is_damaged=True)
    return features_words(box, path)


def chunk_of_features(box: Box) -> list[str]:
    """One or two chunks of a features file under way."""
    with np.load(io.BytesIO(box.whole.read("f.npz"))) as found:
        values, settings = found["values"], json.loads(str(found["settings"]))
    n_chunks = 1
    content = io.BytesIO()
    np.savez(content, indices=np.arange(len(values)), values=values)
    whole = content.getvalue()
    place = box.rng.randrange(n_chunks)
    for number in range(n_chunks):
        damage = number == place and box.is_damaged
        name = f"f.npz.partial/chunk-{number:06}.npz"
        box.write(name, damaged_npz(box.rng, whole) if damage else whole, number == place)
    box.write("f.npz.partial/config.json", json.dumps({**settings, "batch_size": 8}).encode())
    return features_words(box, box.folder / "f.npz")


# ---------------------------------------------------------------------------------------- Slurm


PROFILE = """[all]
account = lab
partition = cpu
stop-before = 60
setup =
    module load python
    source venv/bin/activate
sbatch = --reservation=x
program = python -m savimae
[train]
nodes = 2
time = 2-00:00:00
[preprocess]
cpus-per-task = 4
throttle = 8
"""
INI_TOKENS = (
    "nodes = 0", "nodes = -1", "nodes = 1e9", "nodes = " + "9" * DIGITS, "time = 0", "time = x",
    "time = 9999999999-00:00:00", "time = " + "9" * DIGITS, "mem = -1G", "unknown = 3", "account",
    "account = a\tb", "account = \x1b", "account = 'a b'", "partition = ;", "setup = $(x", "setup",
    "    )", "sbatch = x", "sbatch = --array=1", "program = 'x", "program =", "templates = /",
    "templates = ~", "throttle = 0", "stop-before = 999999999999", "[DEFAULT]", "[]", "[all]",
    "[x]",
    "[\x00]", "%(x)s", "key : value", "= value", ": value", ";", "#", " indented", "\ufeff[all]",
    "mail-type = WRONG", "dependency = x y", "gpus-per-node = 4", "account = \udcff",
    "account = \0",
    "setup = é", "x" * 100_000, "account = " + "y" * 100_000, "nodes = ٣", "nodes = 1_000",
)  # fmt: skip


def profile(box: Box) -> list[str]:
    content = box.text(PROFILE, INI_TOKENS)
    path = str(box.write("slurm.ini", content, is_damaged=True))
    videos, out = str(box.whole.videos), str(box.folder / "run")
    of_all = ["--profile", path]
    if box.rng.random() < 0.5:
        of_all += ["--output", str(box.folder / "job.sh")]
    return list(box.choose(
        ["slurm", "train", "--data", videos, "--out", out, *of_all, "--", "--model", "tiny"],
        ["slurm", "preprocess", videos, out, "--shards", "2", *of_all],
        ["slurm", "pipeline", videos, "--saliency-root", str(box.folder / "arrays"), "--out", out,
         "--shards", "2", "--profile", path],
    ))  # fmt: skip


def array_note(box: Box, root: Path) -> dict[str, Any]:
    return {
        "script": str(root / "slurm" / "preprocess.sh"), "name": "savimae-x",
        "logs": str(root / "slurm" / "logs"), "shards": 2, "throttle": 1,
        "source": str(box.whole.videos), "root": None, "limit": None,
    }  # fmt: skip


def note(box: Box) -> list[str]:
    """The note of a job, of arrays or of a training."""
    box.names_others = True
    if box.choose(True, False):
        folder = box.copy(box.whole.folder / "arrays", "arrays")
        content, kind = array_note(box, folder), "preprocess"
    else:
        folder = copied_run(box)
        content = {**array_note(box, folder), "source": None, "shards": None, "throttle": None}
        kind = "train"
    box.write(f"{folder.name}/slurm/{kind}.json", box.json(content), is_damaged=True)
    box.write(f"{folder.name}/slurm/logs/preprocess-1_0.log", b"ended\n")
    more = ["--resubmit"] if box.is_damaged and box.rng.random() < 0.3 else []
    return ["slurm", "status", str(folder), *more]


def failures(box: Box) -> list[str]:
    """What preprocessing noted of failed videos."""
    root = box.copy(box.whole.folder / "arrays", "arrays")
    next(root.glob("*/*.npy")).unlink()
    box.write("arrays/slurm/preprocess.json", json.dumps(array_note(box, root)).encode())
    entries = [
        {"path": str(path), "reason": "damaged", "time": "2026-01-01T00:00:00+0000"}
        for path in sorted(box.whole.videos.glob("*/*"))
    ]
    place = box.rng.randrange(len(entries))
    lines = [
        box.json(entry, None) if index == place else json.dumps(entry).encode()
        for index, entry in enumerate(entries)
    ]
    box.write("arrays/failures.jsonl", b"\n".join(lines) + b"\n", is_damaged=True)
    return ["slurm", "status", str(root)]


KINDS: dict[str, Kind] = {
    **{name: video(name) for name in ("avi", "mp4", "mkv", "webm", "mpeg")},
    "jpeg": images("jpeg"),
    "png": images("png"),
    "array": array,
    "pack": packed,
    "list": list_file,
    "split-ucf101": ucf101,
    "split-hmdb51": hmdb51,
    "checkpoint-ours": weights("micro.pt"),
    "checkpoint-published": weights("published.pt"),
    "checkpoint-training": training_checkpoint,
    "safetensors": hugging_face("model.safetensors"),
    "config-huggingface": hugging_face("config.json"),
    "config-run": config_of_run,
    "config-arrays": config_of_arrays,
    "log": log,
    "features-npz": features_npz,
    "features-npy": features_npy,
    "features-json": features_json,
    "features-chunk": chunk_of_features,
    "test-partial": partial_test,
    "slurm-profile": profile,
    "slurm-note": note,
    "failures": failures,
}
