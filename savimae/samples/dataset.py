"""Clips with saliency and masks as a data set of PyTorch, for training loops of one's own.

Legend: T frames of a clip, H, W sides of the input, N tokens of a clip.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from savimae.data.fitting import PAD
from savimae.data.lists import find_readable_videos
from savimae.data.video import naming_video
from savimae.saliency.array_source import find_cut
from savimae.saliency.config import choose_saliency
from savimae.samples.clips import ClipConfig, ClipReader, refuse_fitted_crops
from savimae.samples.masking import MaskSpec, draw_masks, refuse_idle_ratios
from savimae.samples.randomness import sample_keys
from savimae.system.sizes import frame_size, sides


class VideoClips(Dataset[dict[str, Any]]):
    """A clip of every video, with its salient tokens and its mask, as `savimae train` gets them.

    What is drawn for sample i of an epoch depends on (seed, epoch, i) alone: not on the order, the
    batch, or the processes of a DataLoader. Arguments are the options of `savimae train`.

    Args:
        data: a list, a folder of videos or of frame folders, or one video.
        root: where a list's relative paths start.
        input_size: side of a square, or height and width.
        saliency: "frame-mean" or "change"; None: that of the arrays, else frame-mean.
        saliency_root: arrays of `savimae preprocess`; None: computed from the clips.
        fit: "press", "crop" or "pad" whole frames; None: as the arrays were made, else press.
        mask_type: "savi", "savi-tube", "tube" or "random"; None: no masks.

    Attributes:
        videos: path, name and label of each sample.
        classes: names of the labels, where they have names.

    Raises:
        ValueError: an argument out of range or without effect.
        SavimaeError: no videos, or arrays that are missing.
    """

    def __init__(
        self,
        data: str | os.PathLike[str],
        *,
        root: str | None = None,
        num_frames: int = 16,
        sampling_rate: int = 4,
        input_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        tubelet_size: int = 2,
        saliency: str | None = None,
        saliency_root: str | None = None,
        saliency_threshold: float | None = None,
        salient_share: float | None = None,
        mask_type: str | None = "savi",
        mask_ratio: float | None = None,
        salient_mask_ratio: float | None = None,
        nonsalient_mask_ratio: float | None = None,
        visible_tokens: int | None = None,
        augment: str = "none",
        hflip: bool = False,
        channels: int = 3,
        fit: str | None = None,
        seed: int = 0,
    ):
        size = frame_size(input_size)
        refuse_fitted_crops(fit, augment)
        if num_frames % tubelet_size or any(side % patch_size for side in sides(size)):
            raise ValueError("num_frames and input_size are multiples of tubelet and patch size")
        of_saliency = choose_saliency(
            size, patch_size, saliency, saliency_root, saliency_threshold, salient_share, fit,
            augment != "none",
        )  # fmt: skip
        clips = ClipConfig(
            num_frames, sampling_rate, size, augment, hflip, channels, of_saliency.fit, patch_size
        )
        ratios = {
            "mask_ratio": mask_ratio,
            "salient_mask_ratio": salient_mask_ratio,
            "nonsalient_mask_ratio": nonsalient_mask_ratio,
        }
        given: dict[str, Any] = {name: value for name, value in ratios.items() if value is not None}
        self.masks: MaskSpec | None = None
        if mask_type is not None:
            refuse_idle_ratios(mask_type, mask_ratio, salient_mask_ratio, nonsalient_mask_ratio)
            self.masks = MaskSpec(
                mask_type, num_frames // tubelet_size, of_saliency.grid,
                visible_tokens=visible_tokens, **given,
            )  # fmt: skip
        elif given or visible_tokens is not None:
            raise ValueError("mask ratios and visible tokens have no effect without masks")
        found = find_readable_videos(os.fspath(data), root, quiet=True)
        self.videos = found.videos
        self.classes = found.classes
        self.seed = seed
        cut = 0
        if saliency_root is not None and augment == "none":
            cut = find_cut(saliency_root, [video.name for video in found.videos])
        self._reader = ClipReader(clips, of_saliency, tubelet_size, saliency_root, cut)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # with worker processes

    def set_epoch(self, epoch: int) -> None:
        """Draw clips and masks of this epoch from now on, in the processes of a DataLoader too.

        Raises:
            ValueError: below 0.
        """
        if epoch < 0:
            raise ValueError(f"epoch {epoch} is below 0")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample `index` of the epoch.

        Returns:
            `pixels` uint8 `[T, H, W, channels]`; `salient` bool `[N]`, the salient tokens; `mask`
            bool `[N]`, True = masked (absent without masks); `padding` bool `[N]`, what is beside
            the video (with fit "pad" only); `label`, -1 for none; `index`.

        Raises:
            IndexError: below 0, or beyond the last video.
            SavimaeError: the video, or its array, cannot be read; names it.
        """
        if not 0 <= index < len(self.videos):
            raise IndexError(f"{index} is not one of {len(self.videos)} videos")
        video = self.videos[index]
        keys = sample_keys(self.seed, int(self._epoch), np.array([index]))
        with naming_video(video.path):
            clip = self._reader.read(video, keys[0])
        sample: dict[str, Tensor | int] = {
            "pixels": torch.from_numpy(clip.pixels),
            "salient": torch.from_numpy(clip.saliency),
            "label": -1 if video.label is None else video.label,
            "index": index,
        }
        if self._reader.config.fit == PAD:
            sample["padding"] = torch.from_numpy(clip.padded)
        if self.masks is not None:
            mask = draw_masks(self.masks, keys, clip.saliency[None])[0]
            sample["mask"] = torch.from_numpy(mask)
        return sample
