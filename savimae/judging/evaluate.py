"""How well models reconstruct what masks hide: the loss of training, with fixed masks, on any data.

The masks depend on the seed, the place of the video in the list and the mask's type and ratios, so
models with the same grid of tokens are asked the same questions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from savimae.data.lists import find_readable_videos
from savimae.judging.load import (
    ClipOptions,
    Machine,
    MaskedClips,
    MaskOptions,
    Pretrained,
    find_arrays,
    load_pretrained,
)
from savimae.model.config import VideoMAEConfig
from savimae.samples.masking import MaskSpec, without_padding
from savimae.system.errors import shown
from savimae.system.tables import table


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result for one model. Losses are means over tokens; None if there were no such tokens."""

    checkpoint: str
    mask: str  # type and ratio in words
    clips: int
    visible_tokens: float  # of a clip, on average
    loss: float
    loss_salient: float | None
    loss_other: float | None
    loss_of_mean: float  # of a prediction of nothing but each token's mean


def evaluate(
    checkpoints: Sequence[str],
    data: str,
    machine: Machine,
    masks: MaskOptions,
    clips: ClipOptions,
    clips_per_video: int = 1,
) -> list[Evaluation]:
    """Evaluate models on the same clips.

    Args:
        checkpoints: of any layout.
        data: a list or a folder of videos.
        clips_per_video: clips with starts, and masks, of their own.

    Raises:
        UsageError: options that do not fit the models.
        SavimaeError: a checkpoint, video or array that cannot be read.
    """
    videos = find_readable_videos(data, clips.root).videos
    cut = find_arrays(clips.saliency_root, videos)
    results = []
    for path in checkpoints:
        pretrained = load_pretrained(path, machine.device)
        masked_clips = pretrained.masked_clips(videos, clips, masks, cut)
        results.append(_evaluate(pretrained, masked_clips, machine, clips_per_video))
    return results


def _evaluate(
    pretrained: Pretrained, clips: MaskedClips, machine: Machine, clips_per_video: int
) -> Evaluation:
    model = pretrained.model
    sums = np.zeros(4)  # squared errors of salient and other tokens, squared targets, visible
    counts = np.zeros(3, np.int64)  # salient tokens, others, clips
    title = f"evaluating {shown(pretrained.path)}"
    for samples in machine.batches(len(clips.videos), clips.read, title, clips_per_video):
        salient = np.stack([clip.saliency for clip, _ in samples])
        mask = np.stack([mask for _, mask in samples])
        decoded = mask
        if any(clip.padding is not None for clip, _ in samples):
            decoded = without_padding(mask, np.stack([clip.padded for clip, _ in samples]))
        with torch.no_grad(), machine.autocast():
            pixels = torch.from_numpy(np.stack([clip.pixels for clip, _ in samples]))
            hidden, rebuilt = (torch.from_numpy(e).to(machine.device) for e in (mask, decoded))
            output = model(pixels.to(machine.device), hidden, rebuilt)
        is_salient = torch.from_numpy(salient[decoded]).to(machine.device)
        losses = output.token_losses.double()
        sums += [
            float(losses[is_salient].sum()),
            float(losses[~is_salient].sum()),
            float(_centered(output.target, model.config).square().mean(1).sum()),
            float((~mask).sum()),
        ]
        n_salient = int(is_salient.sum())
        counts += [n_salient, len(losses) - n_salient, len(samples)]
    of_salient, of_others, of_means, visible = sums.tolist()
    n_salient, n_others, n_clips = counts.tolist()
    n_tokens = n_salient + n_others
    return Evaluation(
        pretrained.path,
        mask_words(clips.masks),
        n_clips,
        visible / n_clips,
        (of_salient + of_others) / n_tokens,
        of_salient / n_salient if n_salient else None,
        of_others / n_others if n_others else None,
        of_means / n_tokens,
    )


def evaluation_table(results: Sequence[Evaluation]) -> str:
    """A row for each model."""
    rows = [["checkpoint", "mask", "clips", "visible", "loss", "salient", "other", "means alone"]]
    for result in results:
        losses = (result.loss, result.loss_salient, result.loss_other, result.loss_of_mean)
        rows.append([
            shown(result.checkpoint), result.mask, str(result.clips),
            f"{result.visible_tokens:.1f}",
            *("-" if loss is None else f"{loss:.4f}" for loss in losses),
        ])  # fmt: skip
    return table(rows, n_left=2)


def _centered(target: torch.Tensor, config: VideoMAEConfig) -> torch.Tensor:
    """Targets float `[M, values]` less each token's mean for each channel."""
    if config.norm_target:
        return target.double()
    pixels = target.double().unflatten(1, (-1, config.channels))
    return (pixels - pixels.mean(1, keepdim=True)).flatten(1)


def mask_words(spec: MaskSpec) -> str:
    """A mask's type and ratios in a few words."""
    if spec.uses_saliency:
        return f"{spec.mask_type} {spec.salient_mask_ratio:g}/{spec.nonsalient_mask_ratio:g}"
    return f"{spec.mask_type} {spec.mask_ratio:g}"
