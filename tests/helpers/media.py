"""Small videos, frame folders and damaged files for the tests."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import av
import numpy as np
from PIL import Image
from skimage import data

from savimae.cli import main
from savimae.commands import demo, judging, study, training


def moving_frames(n_frames: int = 12, width: int = 64, height: int = 48) -> np.ndarray:
    """A window that moves over a photograph: uint8 [n_frames, height, width, 3]."""
    photograph = data.astronaut()
    corners = [100 + 5 * index % (400 - width) for index in range(n_frames)]
    return np.stack([photograph[100 : 100 + height, x : x + width] for x in corners])


def encode(
    path: Path,
    frames: np.ndarray,
    codec: str = "mpeg4",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    in_format: str = "rgb24",
) -> Path:
    """Encode frames with PyAV into the container that the extension of `path` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.options = options or {}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=in_format)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def write_frames(folder: Path, frames: np.ndarray, extension: str = ".jpg", first: int = 1) -> Path:
    """Write img_00001.jpg and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"img_{index + first:05}{extension}", quality=95)
    return folder


def touch(root: Path, *names: str) -> Path:
    """Empty files below `root`."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def truncate(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def random_bytes(path: Path, n_bytes: int = 5000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(7).bytes(n_bytes))
    return path


def savimae(
    *arguments: str | Path, cwd: str | Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, on one core: a new one spends seconds on imports.

    The allocator of this process, which tests measure, is left as it is.
    """
    words = [*map(os.fspath, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as changes:
        for module in (demo, judging, study, training):
            changes.enter_context(mock.patch.object(module, "keep_memory"))
        changes.enter_context(mock.patch.object(sys, "argv", ["savimae", *words]))
        changes.enter_context(mock.patch.dict(os.environ, {"SLURM_CPUS_PER_TASK": "1"}))
        changes.enter_context(contextlib.redirect_stdout(out))
        changes.enter_context(contextlib.redirect_stderr(err))
        if cwd is not None:
            changes.callback(os.chdir, os.getcwd())
            os.chdir(cwd)
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def savimae_process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "savimae", *map(os.fspath, arguments)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
