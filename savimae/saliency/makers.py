"""What is made of one video: an array, the folder of its saliency maps, or that of its frames."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from typing import Any

import imageio.v3 as imageio
import numpy as np

from savimae.data.fitting import PAD, PRESS
from savimae.data.jpeg import QUALITY, encode_jpeg
from savimae.data.lists import ARRAYS, Video
from savimae.data.video import AnyVideo, open_video
from savimae.saliency.arrays import array_frames, array_path, write_array
from savimae.saliency.config import CHANGE, SaliencyConfig
from savimae.saliency.frames import frame_maps, patch_chunks
from savimae.system.files import atomic_folder
from savimae.system.sizes import recorded_size
from savimae.system.workers import counter


@dataclasses.dataclass(frozen=True)
class Done:
    """The result for one video."""

    frames: int
    salient_share: float | None  # of its patches; None where no patches were made


@dataclasses.dataclass(frozen=True)
class ArrayMaker:
    """Frames (or, with `from_maps`, saliency maps) -> `OUT/Class/video.npy`."""

    saliency: SaliencyConfig
    dtype: str = "uint8"
    from_maps: bool = False
    verb = "preprocess"
    outputs = "arrays"
    uses_kernels = True

    def settings(self) -> dict[str, Any]:
        return {
            "output": ARRAYS,
            "source": "maps" if self.from_maps else "frames",
            **self.saliency.of_arrays,
            "dtype": self.dtype,
        }

    def target(self, out: str, video: Video) -> str:
        return array_path(out, video.name)

    def is_done(self, target: str) -> bool:
        return array_frames(target, self.saliency.grid, self.dtype) is not None

    def make(self, video: Video, target: str) -> Done:
        frames = open_video(video.path, fills_range=self.from_maps)
        chunks = patch_chunks(frames, self.saliency, self.from_maps)
        rows, columns = grid = self.saliency.grid
        n_frames, n_salient = write_array(target, _counted(chunks, frames), grid, self.dtype)
        is_scored = self.saliency.kind == CHANGE  # what is salient is decided for each clip
        return Done(n_frames, None if is_scored else n_salient / (n_frames * rows * columns))


class _FolderMaker:
    """Frames -> `OUT/Class/video/`, a folder with one file for each frame."""

    def target(self, out: str, video: Video) -> str:
        return os.path.join(out, video.name)

    def is_done(self, target: str) -> bool:
        return os.path.isdir(target)  # made under another name and renamed when complete

    def _fill(
        self,
        target: str,
        frames: AnyVideo,
        contents: Iterable[bytes],
        extension: str,
    ) -> Done:
        """Write what each frame becomes, in order; the files are called as the frames are."""
        n_frames = 0
        with atomic_folder(target) as folder:
            for index, content in enumerate(contents):
                with open(os.path.join(folder, frames.frame_name(index) + extension), "wb") as file:
                    file.write(content)
                n_frames = index + 1
                _count(1, n_frames, frames.expected_frames)
        return Done(n_frames, None)


@dataclasses.dataclass(frozen=True)
class MapMaker(_FolderMaker):
    """Frames -> `OUT/Class/video/img_00001.png`, ...: the saliency maps."""

    saliency: SaliencyConfig
    verb = "saliency"
    outputs = "folders of maps"
    uses_kernels = True

    def settings(self) -> dict[str, Any]:
        saliency = self.saliency
        return {
            "output": "maps",
            "input_size": recorded_size(saliency.input_size),
            **({"fit": saliency.fit} if saliency.fit != PRESS else {}),
            **({"patch_size": saliency.patch_size} if saliency.fit == PAD else {}),
            **({"saliency": CHANGE} if saliency.kind == CHANGE else {}),
        }

    def make(self, video: Video, target: str) -> Done:
        frames = open_video(video.path)
        maps = frame_maps(frames, self.saliency)
        contents = (imageio.imwrite("<bytes>", each, extension=".png") for each in maps)
        return self._fill(target, frames, contents, ".png")


@dataclasses.dataclass(frozen=True)
class FrameMaker(_FolderMaker):
    """Frames -> `OUT/Class/video/img_00001.jpg`, ...: the frames themselves."""

    short_side: int | None = None  # in pixels; None: as they are
    quality: int = QUALITY
    verb = "frames"
    outputs = "folders of frames"
    uses_kernels = False

    def settings(self) -> dict[str, Any]:
        return {"output": "frames", "short_side": self.short_side, "quality": self.quality}

    def make(self, video: Video, target: str) -> Done:
        frames = open_video(video.path)
        contents = (
            encode_jpeg(frame, self.quality, self.short_side) for frame in frames.rgb_frames()
        )
        return self._fill(target, frames, contents, ".jpg")


Maker = ArrayMaker | MapMaker | FrameMaker


def _counted(chunks: Iterator[np.ndarray], frames: Any) -> Iterator[np.ndarray]:
    """Pass chunks on and tell this worker's counter."""
    n_frames = 0
    for chunk in chunks:
        n_frames += len(chunk)
        _count(len(chunk), n_frames, frames.expected_frames)
        yield chunk


def _count(new: int, total: int, expected: int) -> None:
    counter().add(new, total / expected if expected else 0.0)
