"""Saliency of whole videos: maps, salient patches or scores of change, and the array of a video."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from savimae.data.fitting import Box, place_frame
from savimae.data.video import AnyVideo, GrayPlane
from savimae.kernels import change
from savimae.kernels import patches as kernels
from savimae.kernels.resize import ResizeBuffers, resize, resize_buffers
from savimae.saliency.config import CHANGE, SaliencyConfig

CHUNK_FRAMES = 256  # frames kept at once: an hour-long video needs no more memory than a second


class _Fitting:
    """Resizes gray planes, with buffers that are made anew only when the size of frames changes."""

    def __init__(self, config: SaliencyConfig):
        self.config = config
        self._size = (0, 0)  # height and width of frames that the buffers are for
        self._part = self._place = Box(0, 0, 0, 0)
        self._buffers: ResizeBuffers
        self._arguments: tuple[np.ndarray, ...] = ()

    def _fit(self, gray: GrayPlane) -> GrayPlane:
        """The part of a plane that is seen; buffers are those for it."""
        if self._size != (gray.height, gray.width):
            self._size = (gray.height, gray.width)
            config = self.config
            before = self._place
            self._part, self._place = place_frame(
                *self._size, config.sides, config.patch_size, config.fit
            )
            self._buffers = resize_buffers(
                self._part.height, self._part.width, self._place.height, self._place.width
            )
            self._arguments = tuple(self._buffers)
            if self._place != before:
                self._start()
        if self._part[2:] == (gray.width, gray.height):
            return gray
        plane = np.ascontiguousarray(self._part.of(gray.plane))
        plane.flags.writeable = False  # as the planes of decoders are
        return GrayPlane(plane, *plane.shape)

    def _start(self) -> None:
        """Called when frames take another place: what was kept of the one before does not fit."""

    def _resize(self, gray: GrayPlane) -> np.ndarray:
        resize(*self._fit(gray), self._arguments)
        return self._buffers.gray

    def _write(self, out: np.ndarray, unit: int, kernel: Callable[[np.ndarray], None]) -> None:
        """Write what `kernel` writes where the frame is, and 0 in the padding beside it.

        Args:
            out: uint8, of the whole frame.
            unit: pixels of one value of `out`, across and down.
        """
        place = self._place.per(unit)
        if (place.height, place.width) == out.shape:
            kernel(out)
            return
        part = np.empty((place.height, place.width), np.uint8)
        kernel(part)
        out[:] = 0
        place.of(out)[:] = part


class FrameSaliency(_Fitting):
    """Turns gray planes into salient patches or saliency maps, by distance from the frame's mean.

    Not for use by several threads at once: one instance a thread.
    """

    looks_back = False

    def __init__(self, config: SaliencyConfig):
        super().__init__(config)
        self.smallest_level = kernels.smallest_salient_level(config.threshold)

    def patches(self, gray: GrayPlane, out: np.ndarray) -> None:
        """Salient patches of a frame, the fused way; writes out uint8 `[H_p, W_p]` of 0 and 1."""
        seen, patch_size = self._fit(gray), self.config.patch_size
        self._write(
            out, patch_size,
            lambda part: kernels.frame_patches(
                *seen, self._arguments, patch_size, self.smallest_level, part
            ),
        )  # fmt: skip

    def saliency_map(self, gray: GrayPlane) -> np.ndarray:
        """Saliency map of a frame, uint8 `[H, W]`."""
        resized = self._resize(gray)
        out = np.empty(self.config.sides, np.uint8)
        self._write(out, 1, lambda part: kernels.saliency_map(resized, part))
        return out

    def map_patches(self, saliency: GrayPlane, out: np.ndarray) -> None:
        """Salient patches of a saliency map of any size; writes out uint8 `[H_p, W_p]`."""
        resized, patch_size = self._resize(saliency), self.config.patch_size
        self._write(
            out, patch_size,
            lambda part: kernels.map_patches(resized, patch_size, self.smallest_level, part),
        )  # fmt: skip


class FrameChange(_Fitting):
    """Turns the gray planes of a video, one after the other, into scores of change or differences.

    The first plane has nothing to differ from, so it gets zeros; see `patch_chunks`. One instance
    a video.
    """

    looks_back = True

    def __init__(self, config: SaliencyConfig):
        super().__init__(config)
        self._previous = np.empty((0, 0), np.uint8)
        self._is_first = True

    def _start(self) -> None:
        self._previous = np.zeros_like(self._buffers.gray)
        self._is_first = True

    def patches(self, gray: GrayPlane, out: np.ndarray) -> None:
        """Scores of a frame, the fused way; writes out uint8 `[H_p, W_p]`."""
        seen, patch_size = self._fit(gray), self.config.patch_size
        self._write(
            out, patch_size,
            lambda part: change.frame_changes(
                *seen, self._arguments, self._previous, patch_size, part
            ),
        )  # fmt: skip
        self._clear_first(out)

    def saliency_map(self, gray: GrayPlane) -> np.ndarray:
        """Difference from the frame before, uint8 `[H, W]`."""
        resized = self._resize(gray)
        out = np.empty(self.config.sides, np.uint8)
        self._write(out, 1, lambda part: change.difference(resized, self._previous, part))
        self._clear_first(out)
        return out

    def map_patches(self, saliency: GrayPlane, out: np.ndarray) -> None:
        """Scores of a frame whose difference is given; writes out uint8 `[H_p, W_p]`."""
        resized, patch_size = self._resize(saliency), self.config.patch_size
        self._write(out, patch_size, lambda part: change.map_scores(resized, patch_size, part))

    def _clear_first(self, out: np.ndarray) -> None:
        if self._is_first:
            out[:] = 0
            self._is_first = False


def frame_saliency(config: SaliencyConfig) -> FrameSaliency | FrameChange:
    """What turns the frames of one video into saliency of this kind."""
    return FrameChange(config) if config.kind == CHANGE else FrameSaliency(config)


def patch_chunks(
    video: AnyVideo, config: SaliencyConfig, from_maps: bool = False
) -> Iterator[np.ndarray]:
    """Patches of every frame in order, in chunks uint8 `[<= 256, H_p, W_p]`: 0 and 1, or scores.

    A chunk is overwritten by the next. With `from_maps` the frames are saliency maps already. Of
    change, frame 0 takes the scores of frame 1.

    Raises:
        VideoError: a frame cannot be decoded.
    """
    chunk = np.empty((CHUNK_FRAMES, *config.grid), np.uint8)
    saliency = frame_saliency(config)
    to_patches = saliency.map_patches if from_maps else saliency.patches
    copies_second = saliency.looks_back and not from_maps
    filled = 0
    for gray in video.gray_planes():
        to_patches(gray, chunk[filled])
        filled += 1
        if copies_second and filled == 2:
            chunk[0] = chunk[1]
            copies_second = False
        if filled == CHUNK_FRAMES:
            yield chunk
            filled = 0
    if filled:
        yield chunk[:filled]


def frame_maps(video: AnyVideo, config: SaliencyConfig) -> Iterator[np.ndarray]:
    """Saliency maps of every frame in order, uint8 `[H, W]`; frame 0 as in `patch_chunks`.

    Raises:
        VideoError: a frame cannot be decoded.
    """
    saliency = frame_saliency(config)
    first = None
    for number, gray in enumerate(video.gray_planes()):
        current = saliency.saliency_map(gray)
        if saliency.looks_back and number == 0:
            first = current
            continue
        if first is not None:
            yield current
            first = None
        yield current
    if first is not None:
        yield first


def video_patches(video: AnyVideo, config: SaliencyConfig) -> np.ndarray:
    """The array of a video: uint8 `[T, H_p, W_p]`, 1 where the patch is salient, or scores.

    Raises:
        VideoError: a frame cannot be decoded.
    """
    return np.concatenate([chunk.copy() for chunk in patch_chunks(video, config)])
