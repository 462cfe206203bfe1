"""Clips: which frames, which part of them, and which of their patches are salient.

Legend: T frames of a video, H, W sides of the input, C channels (3, RGB; 1, gray), H_p = H / patch
size, W_p = W / patch size, N tokens of a clip.

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
from savimae.data.fitting import (
    FITS,
    PAD,
    PRESS,
    Box,
    Placement,
    largest_part,
    padded_patches,
    place_frame,
    place_part,
)
from savimae.data.lists import Video
from savimae.data.video import ChooseFrames, GrayPlane, open_video
from savimae.kernels.resize import resize_buffers
from savimae.kernels.rgb import luma_rgb, resize_gray, resize_rgb
from savimae.saliency.array_source import ArraySource, cut_name, open_arrays
from savimae.saliency.config import CHANGE, SaliencyConfig
from savimae.saliency.frames import FrameChange, FrameSaliency, frame_saliency
from savimae.samples.masking import most_salient, token_saliency, token_scores
from savimae.samples.randomness import CLIP_START, CROP, FLIP, integer_below, uniform
from savimae.system.errors import SavimaeError, shown
from savimae.system.sizes import FrameSize, Sides, frame_size, recorded_size, sides

AUGMENTATIONS = ("none", "multiscale")
# Multi-scale cropping (Wang et al., 2016, "Temporal Segment Networks", section 3.2, with the scales
# of VideoMAE): width and height are drawn from these shares of the largest part of the frame that
# has the input's shape (of a square, of the frame's short side), at most one step apart, ...
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
    input_size: FrameSize = 224  # of the frames that the model sees, in pixels
    augment: str = "none"
    hflip: bool = False  # mirror every other clip
    channels: int = RGB  # of pixels; GRAY: luma, as saliency sees it
    fit: str = PRESS  # how whole frames of another shape become such ones
    patch_size: int = 16  # padding is whole patches

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_size", frame_size(self.input_size))
        for name in ("num_frames", "sampling_rate", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.augment not in AUGMENTATIONS:
            raise ValueError(f"augment {self.augment!r} is not one of {', '.join(AUGMENTATIONS)}")
        if self.channels not in (GRAY, RGB):
            raise ValueError(f"channels must be {GRAY} or {RGB}, not {self.channels}")
        if self.fit not in FITS:
            raise ValueError(f"--fit {self.fit!r} is not one of {', '.join(FITS)}")
        refuse_fitted_crops(None if self.fit == PRESS else self.fit, self.augment)

    def recorded(self) -> dict[str, Any]:
        """All fields, as outputs record them; older ones lack channels and fit."""
        fields = {**dataclasses.asdict(self), "input_size": recorded_size(self.input_size)}
        if self.channels == RGB:
            del fields["channels"]
        if self.fit == PRESS:
            del fields["fit"]
        if self.fit != PAD:
            del fields["patch_size"]
        return fields

    @property
    def sides(self) -> Sides:
        """Of the frames that the model sees: H, W in pixels."""
        return sides(self.input_size)

    @property
    def span(self) -> int:
        """Frames of the video from the clip's first to its last."""
        return (self.num_frames - 1) * self.sampling_rate + 1


def refuse_fitted_crops(fit: str | None, augment: str) -> None:
    """Raises ValueError for a fit that was given and has no effect; None: none was given."""
    if fit is not None and augment != "none":
        raise ValueError(
            f"--fit {fit} is for whole frames; --augment {augment} cuts parts of the input's shape "
            "out of them, leave one of both out"
        )


def clip_indices(n_frames: int, config: ClipConfig, key: np.uint64) -> np.ndarray:
    """Frames of a clip in a video of T = `n_frames`: ascending int64 `[num_frames]`.

    The start is uniform in [0, T - span]; a shorter video repeats its last reachable frame.
    """
    offsets = np.arange(config.num_frames, dtype=np.int64) * config.sampling_rate
    if n_frames < config.span:
        return np.minimum(offsets, (n_frames - 1) // config.sampling_rate * config.sampling_rate)
    return offsets + integer_below(n_frames - config.span + 1, key, CLIP_START)


def crop_box(height: int, width: int, config: ClipConfig, key: np.uint64) -> Box:
    """The part of the frames that a multi-scale crop shows."""
    most = largest_part(height, width, config.sides)
    heights, widths = (
        [_scaled(side, scale, wanted) for scale in SCALES]
        for side, wanted in zip(most, config.sides, strict=True)
    )
    pairs = [(w, h) for i, w in enumerate(widths) for j, h in enumerate(heights) if abs(i - j) <= 1]
    pair_draw, corner_draw = uniform(key, CROP, 2)
    crop_width, crop_height = pairs[int(pair_draw * len(pairs))]
    x, y = CORNERS[int(corner_draw * len(CORNERS))]
    left, top = x * ((width - crop_width) // 4), y * ((height - crop_height) // 4)
    return Box(left, top, crop_width, crop_height)


def _scaled(side: int, scale: float, wanted: int) -> int:
    """A share of a side; one that nearly is that of the input is it, which saves the resizing."""
    scaled = max(1, int(side * scale))
    return min(wanted if abs(scaled - wanted) < 3 else scaled, side)


def is_flipped(config: ClipConfig, key: np.uint64) -> bool:
    """Whether the clip is mirrored."""
    return config.hflip and uniform(key, FLIP)[0] < 0.5


class Clip(NamedTuple):
    """What the model gets for one sample."""

    pixels: np.ndarray  # uint8 [num_frames, H, W, C]
    saliency: np.ndarray  # bool [N], the salient tokens
    frame_indices: np.ndarray  # int64 [num_frames], in the video
    padding: np.ndarray | None = None  # bool [N], tokens beside the video; None: there are none

    @property
    def padded(self) -> np.ndarray:
        """Tokens beside the video: bool `[N]`."""
        return np.zeros(len(self.saliency), bool) if self.padding is None else self.padding


class FrameResizer:
    """Crops, resizes and mirrors frames, with buffers it reuses. One instance a thread."""

    def __init__(self, channels: int = RGB):
        self.channels = channels
        self._resize = resize_gray if channels == GRAY else resize_rgb
        self._fitted = (0, 0, 0, 0)  # sides of the parts, and of what they become
        self._buffers: tuple[np.ndarray, ...] = ()
        self._planes = np.empty((channels, 0, 0), np.uint8)

    def resize(self, frame: np.ndarray, box: Box, mirrored: bool, out: np.ndarray) -> None:
        """The part `box` of a frame uint8 `[h, w, C]`; writes out uint8 `[H, W, C]`."""
        sizes = (box.height, box.width, *out.shape[:2])
        if sizes[:2] == sizes[2:]:
            part = box.of(frame)
            out[:] = part[:, ::-1] if mirrored else part
            return
        if self._fitted != sizes:
            self._fitted = sizes
            self._buffers = tuple(resize_buffers(*sizes))
            self._planes = np.empty((self.channels, box.height, box.width), np.uint8)
        pixels = frame.view()
        pixels.flags.writeable = False  # one kind of argument: one compiled kernel
        self._resize(
            pixels, box.top, box.left, box.height, box.width, mirrored,
            self._buffers, self._planes, out,
        )  # fmt: skip

    def place(
        self, frame: np.ndarray, placement: Placement, mirrored: bool, out: np.ndarray
    ) -> None:
        """As `resize`, but part and place as `placement` says; what is beside it becomes 0."""
        part, place = placement
        if (place.height, place.width) == out.shape[:2]:
            self.resize(frame, part, mirrored, out)
            return
        resized = np.empty((place.height, place.width, self.channels), np.uint8)
        self.resize(frame, part, mirrored, resized)
        out[:] = 0
        place.of(out)[:] = resized


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

    Raises:
        ValueError: clips and saliency are fitted in different ways.
    """

    def __init__(
        self,
        config: ClipConfig,
        saliency: SaliencyConfig,
        tubelet_size: int = 2,
        saliency_root: str | None = None,
        array_cut: int = 0,
    ):
        if config.fit != saliency.fit:
            raise ValueError(
                f"clips are fitted by {config.fit} and saliency by {saliency.fit}; give one --fit"
            )
        if config.fit == PAD and config.patch_size != saliency.patch_size:
            raise ValueError(
                f"padding in patches of {config.patch_size} and saliency in those of "
                f"{saliency.patch_size} pixels; give one patch size"
            )
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
        pixels, places = self._pixels(frames, key, flipped)
        if array is None:
            patches = self._computed(pixels, places)
        else:
            patches = array[indices][:, :, ::-1] if flipped else array[indices]
            if self.saliency.kind != CHANGE and ((patches != 0) & (patches != patches.max())).any():
                raise SavimaeError(
                    f"{self._where(video)}: holds scores, and not which patches are "
                    "salient; if they are scores of change, say --saliency change"
                )
        salient, padding = self._salient_tokens(patches, key), self._padding(places)
        if padding is not None:
            salient &= ~padding
        return Clip(pixels, salient, indices, padding)

    def _padding(self, places: list[Box]) -> np.ndarray | None:
        """Tokens of which a frame has a patch beside its place: bool `[N]`; None: no patch has."""
        size = self.config.sides
        if all((place.height, place.width) == size for place in places):
            return None
        unit = self.saliency.patch_size
        patches = np.stack([padded_patches(place, size, unit) for place in places])
        return token_saliency(patches, self.tubelet_size)

    def _salient_tokens(self, patches: np.ndarray, key: np.uint64) -> np.ndarray:
        """Of a clip's patches, `[num_frames, H_p, W_p]`: bool `[N]`."""
        if self.saliency.kind != CHANGE:
            return token_saliency(patches, self.tubelet_size)
        scores = token_scores(patches, self.tubelet_size)
        return most_salient(scores, self.saliency.share, key)

    def _pixels(
        self, frames: list[np.ndarray], key: np.uint64, flipped: bool
    ) -> tuple[np.ndarray, list[Box]]:
        """Frames of any size, cropped or fitted, resized, mirrored; and where each of them is.

        Returns:
            uint8 `[num_frames, H, W, C]`, and a place in it for each frame.
        """
        config = self.config
        size = config.sides
        pixels = np.empty((len(frames), *size, config.channels), np.uint8)
        places: list[Box] = []
        resizer = self._kernels().resizer

        @functools.cache
        def placement(height: int, width: int) -> Placement:
            if config.augment != "none":
                part = crop_box(height, width, config, key)
                return place_part(part, size, config.patch_size, config.fit)
            placed = place_frame(height, width, size, config.patch_size, config.fit)
            return placed.mirrored(size) if flipped else placed

        for index, frame in enumerate(frames):
            if index and frame is frames[index - 1]:
                pixels[index] = pixels[index - 1]
                places.append(places[-1])
            else:
                placed = placement(*frame.shape[:2])
                resizer.place(frame, placed, flipped, pixels[index])
                places.append(placed.place)
        return pixels, places

    def _computed(self, pixels: np.ndarray, places: list[Box]) -> np.ndarray:
        """Patches of the frames that the model sees: uint8 `[num_frames, H_p, W_p]`.

        Change is that between the clip's own frames, however far apart they are.
        """
        patches = np.zeros((len(pixels), *self.saliency.grid), np.uint8)
        seen = Sides(0, 0)
        for frame, place, out in zip(pixels, places, patches, strict=True):
            if (place.height, place.width) != seen:
                seen = Sides(place.height, place.width)
                saliency = self._saliency_of(seen)
                gray = np.empty(seen, np.uint8)
                plane = gray.view()
                plane.flags.writeable = False  # as the planes of decoders are
            if self.config.channels == GRAY:
                gray[:] = place.of(frame)[..., 0]
            else:
                luma_rgb(np.ascontiguousarray(place.of(frame)), gray)
            part = place.per(self.saliency.patch_size)
            found = np.empty((part.height, part.width), np.uint8)
            saliency.patches(GrayPlane(plane, *seen), found)
            part.of(out)[:] = found
        if self.saliency.kind == CHANGE and len(patches) > 1:
            patches[0] = patches[1]
        return patches

    def _saliency_of(self, seen: Sides) -> FrameSaliency | FrameChange:
        """What turns frames of this size, which the model sees, into saliency."""
        if seen != self.saliency.sides:
            part = dataclasses.replace(self.saliency, input_size=seen, fit=PRESS)
            return frame_saliency(part)
        if self.saliency.kind == CHANGE:
            return frame_saliency(self.saliency)
        return self._kernels().saliency

    def _kernels(self) -> _Kernels:
        """The kernels of this thread."""
        if not hasattr(self._of_thread, "kernels"):
            self._of_thread.kernels = _Kernels(
                FrameResizer(self.config.channels),
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
        rows, columns = grid = self.saliency.grid
        if array.ndim != 3 or array.shape[1:] != grid or len(array) == 0:
            raise SavimaeError(
                f"{self._where(video)}: holds {list(array.shape)}, the model wants [T, {rows}, "
                f"{columns}]; preprocess again with the model's --input-size and --patch-size"
            )
        if self.saliency.kind == CHANGE and array.dtype != np.uint8:
            raise SavimaeError(
                f"{self._where(video)}: holds {array.dtype}, scores of change are uint8; "
                "preprocess again"
            )
        return array
