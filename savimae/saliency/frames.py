"""Saliency of whole videos: maps, salient patches, and the array of a video."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from savimae.data.video import FrameFolder, GrayPlane, VideoFile
from savimae.kernels import patches as kernels
from savimae.kernels.resize import resize_buffers
from savimae.saliency.config import SaliencyConfig

CHUNK_FRAMES = 256  # frames kept at once: an hour-long video needs no more memory than a second


class FrameSaliency:
    """Turns gray planes into salient patches or saliency maps, with buffers it reuses.

    Buffers are made anew only when the size of the frames changes. Not for use by several threads
    at once: one instance a thread.
    """

    def __init__(self, config: SaliencyConfig):
        self.config = config
        self.smallest_level = kernels.smallest_salient_level(config.threshold)
        self._size = (1, 1)  # height and width of frames that the buffers are for
        self._buffers = resize_buffers(1, 1, config.input_size)
        self._arguments = tuple(self._buffers)

    def _fit(self, height: int, width: int) -> None:
        if self._size != (height, width):
            self._size = (height, width)
            self._buffers = resize_buffers(height, width, self.config.input_size)
            self._arguments = tuple(self._buffers)

    def patches(self, gray: GrayPlane, out: np.ndarray) -> None:
        """Salient patches of a frame, the fused way; writes out uint8 `[H_p, W_p]` of 0 and 1."""
        self._fit(gray.height, gray.width)
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

    def _resize(self, gray: GrayPlane) -> np.ndarray:
        self._fit(gray.height, gray.width)
        kernels.resize(*gray, self._arguments)
        return self._buffers.gray


def patch_chunks(
    video: VideoFile | FrameFolder, saliency: FrameSaliency, from_maps: bool = False
) -> Iterator[np.ndarray]:
    """Salient patches of every frame in order, in chunks uint8 `[<= 256, H_p, W_p]` of 0 and 1.

    A chunk is overwritten by the next. With `from_maps` the frames are saliency maps already.

    Raises:
        VideoError: a frame cannot be decoded.
    """
    n = saliency.config.grid_size
    chunk = np.empty((CHUNK_FRAMES, n, n), np.uint8)
    to_patches = saliency.map_patches if from_maps else saliency.patches
    filled = 0
    for gray in video.gray_planes():
        to_patches(gray, chunk[filled])
        filled += 1
        if filled == CHUNK_FRAMES:
            yield chunk
            filled = 0
    if filled:
        yield chunk[:filled]


def video_patches(video: VideoFile | FrameFolder, config: SaliencyConfig) -> np.ndarray:
    """The array of a video: uint8 `[T, H_p, W_p]`, 1 where the patch is salient.

    Raises:
        VideoError: a frame cannot be decoded.
    """
    return np.concatenate([chunk.copy() for chunk in patch_chunks(video, FrameSaliency(config))])
