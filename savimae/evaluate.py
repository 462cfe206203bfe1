"""How well models reconstruct what masks hide: the loss of training, with fixed masks, on any data.

The masks depend on the seed, the place of the video in the list and the mask's type and ratios, so
models with the same grid of tokens are asked the same questions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from savimae.clips import Clip, ClipReader
from savimae.errors import SavimaeError, UsageError, shown
from savimae.lists import Video
from savimae.masking import MaskSpec, draw_masks
from savimae.pretrained import (
    Machine,
    MaskOptions,
    Pretrained,
    find_arrays,
    find_readable_videos,
    load_pretrained,
    stacked,
)
from savimae.randomness import sample_keys
from savimae.tables import table
from savimae.video import VideoError


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What came of one model. Losses are means over tokens; None where there were none."""

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
    *,
    clips_per_video: int = 1,
    seed: int = 0,
    root: str | None = None,
    sampling_rate: int | None = None,
    saliency_root: str | None = None,
    saliency_threshold: float | None = None,
) -> list[Evaluation]:
    """Evaluate models on the same clips.

    Args:
        checkpoints: of any layout.
        data: a list or a folder of videos.
        clips_per_video: clips with starts, and masks, of their own.
        saliency_root: arrays of `savimae preprocess`; else saliency is computed from the clips.

    Raises:
        UsageError: options that do not fit the models.
        SavimaeError: a checkpoint, video or array that cannot be read.
    """
    videos = find_readable_videos(data, root).videos
    cut = find_arrays(saliency_root, videos)
    results = []
    for path in checkpoints:
        pretrained = load_pretrained(path, machine.device)
        try:
            reader = pretrained.reader(sampling_rate, saliency_root, saliency_threshold, cut)
            spec = pretrained.masks(masks)
        except ValueError as error:
            raise UsageError(f"{shown(path)}: {error}") from None
        results.append(_evaluate(pretrained, spec, reader, videos, machine, clips_per_video, seed))
    return results


def _evaluate(
    pretrained: Pretrained,
    spec: MaskSpec,
    reader: ClipReader,
    videos: Sequence[Video],
    machine: Machine,
    clips_per_video: int,
    seed: int,
) -> Evaluation:
    def load(index: int, number: int) -> tuple[np.uint64, Clip]:
        key = sample_keys(seed, number, np.array([index]))[0]
        return key, read_clip(reader, videos[index], key)

    model = pretrained.model
    sums = np.zeros(4)  # squared errors of salient and other tokens, squared targets, visible
    counts = np.zeros(3, np.int64)  # salient tokens, others, clips
    title = f"evaluating {shown(pretrained.path)}"
    for samples in machine.batches(len(videos), load, title, clips_per_video):
        salient = np.stack([clip.saliency for _, clip in samples])
        mask = draw_masks(spec, np.array([key for key, _ in samples]), salient)
        with torch.no_grad(), machine.autocast():
            pixels = stacked([clip.pixels for _, clip in samples], machine.device)
            output = model(pixels, torch.from_numpy(mask).to(machine.device))
        is_salient = torch.from_numpy(salient[mask]).to(machine.device)
        losses = output.token_losses.double()
        sums += [
            float(losses[is_salient].sum()),
            float(losses[~is_salient].sum()),
            float(_centered(output.target, model.config.norm_target).square().mean(1).sum()),
            float((~mask).sum()),
        ]
        n_salient = int(is_salient.sum())
        counts += [n_salient, len(losses) - n_salient, len(samples)]
    of_salient, of_others, of_means, visible = sums.tolist()
    n_salient, n_others, n_clips = counts.tolist()
    n_tokens = n_salient + n_others
    return Evaluation(
        pretrained.path,
        mask_words(spec),
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


def _centered(target: torch.Tensor, is_normalized: bool) -> torch.Tensor:
    """Targets float `[M, values]` less each token's mean for each channel."""
    if is_normalized:
        return target.double()
    pixels = target.double().unflatten(1, (-1, 3))
    return (pixels - pixels.mean(1, keepdim=True)).flatten(1)


def read_clip(reader: ClipReader, video: Video, key: np.uint64) -> Clip:
    """The clip of `key`. Raises SavimaeError, with the video's name, if it cannot be decoded."""
    try:
        return reader.read(video, key)
    except VideoError as error:
        raise SavimaeError(
            f"{shown(video.path)}: {error}; mend it, or take it off the list"
        ) from error


def mask_words(spec: MaskSpec) -> str:
    """A mask's type and ratios in a few words."""
    if spec.uses_saliency:
        return f"{spec.kind} {spec.salient_ratio:g}/{spec.nonsalient_ratio:g}"
    return f"{spec.kind} {spec.ratio:g}"
