"""Clips: which frames, which part of them, and which of their patches are salient.

Legend: T frames of a video, S input size, C channels (3, RGB; 1, gray), H_p = W_p = S / patch
size, N tokens of a clip.

A clip's frames are chosen once; pixels and saliency both follow them, through crop and flip. What
is drawn depends on the key of the sample alone (see `randomness`).
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from typing import Any, NamedTuple

import numpy as np

from savimae.data.decoded import GRAY, RGB
from savimae.data.lists import Video
from savimae.data.video import ChooseFrames, GrayPlane, open_video
from savimae.kernels.resize import resize_buffers
from savimae.kernels.rgb import luma_rgb, resize_gray, resize_rgb
from savimae.saliency.array_source import ArraySource, cut_name, open_arrays
from savimae.saliency.config import CHANGE, SaliencyConfig
from savimae.saliency.frames import FrameSaliency, frame_saliency
from savimae.samples.masking import most_salient, token_saliency, token_scores
from savimae.samples.randomness import CLIP_START, CROP, FLIP, integer_below, uniform
from savimae.system.errors import SavimaeError, shown

AUGMENTATIONS = ("none", "multiscale")
# Multi-scale cropping (Wang et al., 2016, "Temporal Segment Networks", section 3.2, with the scales
# of VideoMAE): width and height are drawn from these shares of the frame's short side, at most one
# step apart, ...
SCALES = (1.0, 0.875, 0.75, 0.66)
# ... and the corner from 13 fixed places: quarters of the free room (x, y).
CORNERS = (
    (0, 0), (2, 0), (4, 0), (0, 2), (2, 2), (4, 2), (0, 4), (2, 4), (4, 4),
    (1, 1), (3, 1), (1, 3), (3, 3),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """How a clip is cut from a video."""

    num_frames: int = 16
    sampling_rate: int = 4  # the clip's frames are so many frames of the video apart
    input_size: int = 224  # side of the frames that the model sees, in pixels
    augment: str = "none"
    hflip: bool = False  # mirror every other clip
    channels: int = RGB  # of pixels; GRAY: luma, as saliency sees it

    def __post_init__(self) -> None:
        for name in ("num_frames", "sampling_rate", "input_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.augment not in AUGMENTATIONS:
            raise ValueError(f"augment {self.augment!r} is not one of {', '.join(AUGMENTATIONS)}")
        if self.channels not in (GRAY, RGB):
            raise ValueError(f"channels must be {GRAY} or {RGB}, not {self.channels}")

    def recorded(self) -> dict[str, Any]:
        """All fields, as outputs record them; older ones lack channels, which were 3."""
        fields = dataclasses.asdict(self)
        if self.channels == RGB:
            del fields["channels"]
        return fields

    @property
    def span(self) -> int:
        """Frames of the video from the clip's first to its last."""
        return (self.num_frames - 1) * self.sampling_rate + 1


def clip_indices(n_frames: int, config: ClipConfig, key: np.uint64) -> np.ndarray:
    """Frames of a clip in a video of T = `n_frames`: ascending int64 `[num_frames]`.

    The start is uniform in [0, T - span]; a shorter video repeats its last reachable frame.
    """
    offsets = np.arange(config.num_frames, dtype=np.int64) * config.sampling_rate
    if n_frames < config.span:
        return np.minimum(offsets, (n_frames - 1) // config.sampling_rate * config.sampling_rate)
    return offsets + integer_below(n_frames - config.span + 1, key, CLIP_START)


class Box(NamedTuple):
    """A part of a frame, in pixels."""

    left: int
    top: int
    width: int
    height: int


def crop_box(height: int, width: int, config: ClipConfig, key: np.uint64) -> Box:
    """The part of the frames that the clip shows: all of it, or a multi-scale crop."""
    if config.augment == "none":
        return Box(0, 0, width, height)
    sides = [max(1, int(min(height, width) * scale)) for scale in SCALES]
    # A side that nearly is the input size is taken for it, which saves the resizing.
    sides = [config.input_size if abs(side - config.input_size) < 3 else side for side in sides]
    sides = [min(side, height, width) for side in sides]
    pairs = [(w, h) for i, w in enumerate(sides) for j, h in enumerate(sides) if abs(i - j) <= 1]
    pair_draw, corner_draw = uniform(key, CROP, 2)
    crop_width, crop_height = pairs[int(pair_draw * len(pairs))]
    x, y = CORNERS[int(corner_draw * len(CORNERS))]
    left, top = x * ((width - crop_width) // 4), y * ((height - crop_height) // 4)
    return Box(left, top, crop_width, crop_height)


def is_flipped(config: ClipConfig, key: np.uint64) -> bool:
    """Whether the clip is mirrored."""
    return config.hflip and uniform(key, FLIP)[0] < 0.5


class Clip(NamedTuple):
    """What the model gets for one sample."""

    pixels: np.ndarray  # uint8 [num_frames, S, S, C]
    saliency: np.ndarray  # bool [N], the salient tokens
    frame_indices: np.ndarray  # int64 [num_frames], in the video


class FrameResizer:
    """Crops, resizes and mirrors frames, with buffers it reuses. One instance a thread."""

    def __init__(self, size: int, channels: int = RGB):
        self.size = size
        self.channels = channels
        self._resize = resize_gray if channels == GRAY else resize_rgb
        self._fitted = (0, 0)  # height and width of the parts that the buffers are for
        self._buffers: tuple[np.ndarray, ...] = ()
        self._planes = np.empty((channels, 0, 0), np.uint8)

    def resize(self, frame: np.ndarray, box: Box, mirrored: bool, out: np.ndarray) -> None:
        """The part `box` of a frame uint8 `[H, W, C]`; writes out uint8 `[S, S, C]`."""
        if (box.height, box.width) == (self.size, self.size):
            part = frame[box.top : box.top + self.size, box.left : box.left + self.size]
            out[:] = part[:, ::-1] if mirrored else part
            return
        if self._fitted != (box.height, box.width):
            self._fitted = (box.height, box.width)
            self._buffers = tuple(resize_buffers(box.height, box.width, self.size))
            self._planes = np.empty((self.channels, box.height, box.width), np.uint8)
        pixels = frame.view()
        pixels.flags.writeable = False  # one kind of argument: one compiled kernel
        self._resize(
            pixels, box.top, box.left, box.height, box.width, mirrored,
            self._buffers, self._planes, out,
        )  # fmt: skip


class _Kernels(NamedTuple):
    """The kernels of one thread, with their buffers."""

    resizer: FrameResizer
    saliency: FrameSaliency


class ClipReader:
    """Reads clips and their saliency; several threads may use it at once, and other processes.

    Args:
        config: how clips are cut.
        saliency: how patches become salient; its sizes are those of the model's input.
        tubelet_size: consecutive frames of a token.
        saliency_root: arrays of `savimae preprocess`, or a pack of them. Without it, or where
            crops move the grid of patches, saliency is computed from the pixels that the model
            sees.
        array_cut: folders that the arrays' names lack; see `array_source.find_cut`.
    """

    def __init__(
        self,
        config: ClipConfig,
        saliency: SaliencyConfig,
        tubelet_size: int = 2,
        saliency_root: str | None = None,
        array_cut: int = 0,
    ):
        self.config = config
        self.saliency = saliency
        self.tubelet_size = tubelet_size
        self.saliency_root = saliency_root if config.augment == "none" else None
        self.array_cut = array_cut
        self._source: ArraySource | None = None  # opened when it is first read
        self._of_thread = threading.local()  # kernels keep buffers

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name != "_of_thread"}
        return {**state, "_source": None}  # every process opens its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._of_thread = threading.local()

    def read(
        self,
        video: Video,
        key: np.uint64,
        frames_of: ChooseFrames | None = None,
        num_frames: int | None = None,
    ) -> Clip:
        """The clip of `video` that is drawn with `key`.

        Args:
            frames_of: which frames a clip of a video has, ascending int64 `[num_frames]`; None:
                drawn as well, see `clip_indices`.
            num_frames: how many are drawn; None: those of the config.

        Raises:
            VideoError: the video cannot be decoded.
            SavimaeError: its array is missing, damaged, or of another video or grid.
        """
        array = None if self.saliency_root is None else self._array(video)
        n_frames = None if array is None else len(array)
        config = self.config
        if num_frames is not None:
            config = dataclasses.replace(config, num_frames=num_frames)

        def choose(n_found: int) -> np.ndarray:
            if n_frames not in (None, n_found):
                raise SavimaeError(
                    f"{self._where(video)}: has {n_frames} frames, "
                    f"{shown(video.path)} has {n_found}; preprocess this video again"
                )
            return clip_indices(n_found, config, key) if frames_of is None else frames_of(n_found)

        frames, indices = open_video(video.path).read_clip(choose, n_frames, self.config.channels)
        flipped = is_flipped(self.config, key)
        pixels = self._pixels(frames, key, flipped)
        if array is None:
            patches = self._computed(pixels)
        else:
            patches = array[indices][:, :, ::-1] if flipped else array[indices]
            if self.saliency.kind != CHANGE and ((patches != 0) & (patches != patches.max())).any():
                raise SavimaeError(
                    f"{self._where(video)}: holds scores, and not which patches are "
                    "salient; if they are scores of change, say --saliency change"
                )
        return Clip(pixels, self._salient_tokens(patches, key), indices)

    def _salient_tokens(self, patches: np.ndarray, key: np.uint64) -> np.ndarray:
        """Of a clip's patches, `[num_frames, H_p, W_p]`: bool `[N]`."""
        if self.saliency.kind != CHANGE:
            return token_saliency(patches, self.tubelet_size)
        scores = token_scores(patches, self.tubelet_size)
        return most_salient(scores, self.saliency.share, key)

    def _pixels(self, frames: list[np.ndarray], key: np.uint64, flipped: bool) -> np.ndarray:
        """Frames of any size -> uint8 `[num_frames, S, S, C]`, cropped, resized, mirrored."""
        size = self.config.input_size
        pixels = np.empty((len(frames), size, size, self.config.channels), np.uint8)
        resizer = self._kernels().resizer
        box_of = functools.cache(lambda height, width: crop_box(height, width, self.config, key))
        for index, frame in enumerate(frames):
            if index and frame is frames[index - 1]:
                pixels[index] = pixels[index - 1]
            else:
                box = box_of(*frame.shape[:2])
                resizer.resize(frame, box, flipped, pixels[index])
        return pixels

    def _computed(self, pixels: np.ndarray) -> np.ndarray:
        """Patches of the frames that the model sees: uint8 `[num_frames, H_p, W_p]`.

        Change is that between the clip's own frames, however far apart they are.
        """
        n = self.saliency.grid_size
        patches = np.empty((len(pixels), n, n), np.uint8)
        gray = np.empty(pixels.shape[1:3], np.uint8)
        plane = gray.view()
        plane.flags.writeable = False  # as the planes of decoders are
        whole = GrayPlane(plane, *pixels.shape[1:3])
        is_change = self.saliency.kind == CHANGE
        saliency = frame_saliency(self.saliency) if is_change else self._kernels().saliency
        for frame, out in zip(pixels, patches, strict=True):
            if self.config.channels == GRAY:
                gray[:] = frame[..., 0]
            else:
                luma_rgb(frame, gray)
            saliency.patches(whole, out)
        if is_change and len(patches) > 1:
            patches[0] = patches[1]
        return patches

    def _kernels(self) -> _Kernels:
        """The kernels of this thread."""
        if not hasattr(self._of_thread, "kernels"):
            self._of_thread.kernels = _Kernels(
                FrameResizer(self.config.input_size, self.config.channels),
                FrameSaliency(self.saliency),
            )
        kernels: _Kernels = self._of_thread.kernels
        return kernels

    @property
    def arrays(self) -> ArraySource:
        """Where arrays are read, with a saliency root."""
        if self._source is None:
            self._source = open_arrays(self.saliency_root or "")
        return self._source

    def _where(self, video: Video) -> str:
        return self.arrays.where(cut_name(video.name, self.array_cut))

    def _array(self, video: Video) -> np.ndarray:
        array = self.arrays.load(cut_name(video.name, self.array_cut))
        n = self.saliency.grid_size
        if array.ndim != 3 or array.shape[1:] != (n, n) or len(array) == 0:
            raise SavimaeError(
                f"{self._where(video)}: holds {list(array.shape)}, the model wants [T, {n}, {n}]; "
                "preprocess again with the model's --input-size and --patch-size"
            )
        if self.saliency.kind == CHANGE and array.dtype != np.uint8:
            raise SavimaeError(
                f"{self._where(video)}: holds {array.dtype}, scores of change are uint8; "
                "preprocess again"
            )
        return array
