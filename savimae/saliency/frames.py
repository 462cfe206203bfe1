"""Saliency of whole videos: maps, salient patches or scores of change, and the array of a video."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from savimae.data.video import AnyVideo, GrayPlane
from savimae.kernels import change
from savimae.kernels import patches as kernels
from savimae.kernels.resize import resize, resize_buffers
from savimae.saliency.config import CHANGE, SaliencyConfig

CHUNK_FRAMES = 256  # frames kept at once: an hour-long video needs no more memory than a second


class _Resizing:
    """Resizes gray planes, with buffers that are made anew only when the size of frames changes."""

    def __init__(self, config: SaliencyConfig):
        self.config = config
        self._size = (1, 1)  # height and width of frames that the buffers are for
        self._buffers = resize_buffers(1, 1, config.input_size)
        self._arguments = tuple(self._buffers)

    def _fit(self, gray: GrayPlane) -> None:
        if self._size != (gray.height, gray.width):
            self._size = (gray.height, gray.width)
            self._buffers = resize_buffers(gray.height, gray.width, self.config.input_size)
            self._arguments = tuple(self._buffers)

    def _resize(self, gray: GrayPlane) -> np.ndarray:
        self._fit(gray)
        resize(*gray, self._arguments)
        return self._buffers.gray


class FrameSaliency(_Resizing):
    """Turns gray planes into salient patches or saliency maps, by distance from the frame's mean.

    Not for use by several threads at once: one instance a thread.
    """

    looks_back = False

    def __init__(self, config: SaliencyConfig):
        super().__init__(config)
        self.smallest_level = kernels.smallest_salient_level(config.threshold)

    def patches(self, gray: GrayPlane, out: np.ndarray) -> None:
        """Salient patches of a frame, the fused way; writes out uint8 `[H_p, W_p]` of 0 and 1."""
        self._fit(gray)
        kernels.frame_patches(
            *gray, self._arguments, self.config.patch_size, self.smallest_level, out
        )

    def saliency_map(self, gray: GrayPlane) -> np.ndarray:
        """Saliency map of a frame, uint8 `[S, S]`."""
        size = self.config.input_size
        out = np.empty((size, size), np.uint8)
        kernels.saliency_map(self._resize(gray), size, out)
        return out

    def map_patches(self, saliency: GrayPlane, out: np.ndarray) -> None:
        """Salient patches of a saliency map of any size; writes out uint8 `[H_p, W_p]`."""
        kernels.map_patches(
            self._resize(saliency), self.config.input_size, self.config.patch_size,
            self.smallest_level, out,
        )  # fmt: skip


class FrameChange(_Resizing):
    """Turns the gray planes of a video, one after the other, into scores of change or differences.

    The first plane has nothing to differ from, so it gets zeros; see `patch_chunks`. One instance
    a video.
    """

    looks_back = True

    def __init__(self, config: SaliencyConfig):
        super().__init__(config)
        self._previous = np.zeros_like(self._buffers.gray)
        self._is_first = True

    def patches(self, gray: GrayPlane, out: np.ndarray) -> None:
        """Scores of a frame, the fused way; writes out uint8 `[H_p, W_p]`."""
        self._fit(gray)
        change.frame_changes(*gray, self._arguments, self._previous, self.config.patch_size, out)
        self._clear_first(out)

    def saliency_map(self, gray: GrayPlane) -> np.ndarray:
        """Difference from the frame before, uint8 `[S, S]`."""
        size = self.config.input_size
        out = np.empty((size, size), np.uint8)
        change.difference(self._resize(gray), self._previous, size, out)
        self._clear_first(out)
        return out

    def map_patches(self, saliency: GrayPlane, out: np.ndarray) -> None:
        """Scores of a frame whose difference is given; writes out uint8 `[H_p, W_p]`."""
        change.map_scores(self._resize(saliency), self.config.patch_size, out)

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
    n = config.grid_size
    chunk = np.empty((CHUNK_FRAMES, n, n), np.uint8)
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
    """Saliency maps of every frame in order, uint8 `[S, S]`; frame 0 as in `patch_chunks`.

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
