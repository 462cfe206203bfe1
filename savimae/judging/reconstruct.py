"""Pictures of what a model makes of hidden patches, and how near that comes to the truth.

Legend: T frames, t tubelet size, P patch size, S input size, N tokens of a clip, M masked ones.

With normalised targets the model predicts a token's pixels up to their mean and deviation. The
picture says whose mean and deviation brought them back to pixels: those of visible tokens nearby
("visible"), or those of the hidden pixels themselves ("target"), which is what is commonly shown
and which leaks the answer.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, NamedTuple

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from savimae.data.lists import distinct_videos, find_readable_videos
from savimae.data.video import open_video
from savimae.judging.evaluate import mask_words
from savimae.judging.load import (
    ClipOptions,
    Machine,
    MaskedClips,
    MaskOptions,
    Pretrained,
    find_arrays,
    load_pretrained,
)
from savimae.judging.pictures import (
    FRAMES_PER_S,
    draw_reconstruction,
    write_animation,
    write_picture,
)
from savimae.model.config import CHANNELS, VideoMAEConfig
from savimae.model.loss import TARGET_EPS
from savimae.model.videomae import VideoMAE
from savimae.samples.clips import Clip
from savimae.system.errors import SavimaeError, UsageError, shown
from savimae.system.files import refuse_file, write_json
from savimae.system.progress import Progress

FROM = {  # how normalised predictions came back to pixels, as the pictures say it
    "visible": "mean and contrast from visible patches nearby",
    "target": "mean and contrast from the hidden pixels themselves: they leak the answer",
}
STATISTICS = ("visible", "target")
NEAREST = 4  # visible tokens whose statistics a hidden one is given


@dataclasses.dataclass(frozen=True)
class Drawings:
    """What is drawn of the reconstructions."""

    n_videos: int = 4  # the first ones
    animation: str = "mp4"  # mp4, gif or none
    statistics: str | None = None  # of STATISTICS; None: visible


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What was drawn."""

    written: list[str]
    records: list[dict[str, Any]]  # one a clip, as in reconstruction.json


def draw_reconstructions(
    checkpoint: str,
    source: str,
    out: str,
    machine: Machine,
    masks: MaskOptions,
    clips: ClipOptions,
    drawings: Drawings,
) -> Drawn:
    """Draw one clip of each of the first videos: `OUT/Class/video.png` and an animation beside it.

    `OUT/reconstruction.json` has, for each clip, its frames, mask, loss, and PSNR and SSIM of the
    hidden pixels: of the prediction, and of the means alone that it was put upon.

    Args:
        checkpoint: of any layout.
        source: a list, a folder or a video.

    Raises:
        UsageError: options that do not fit the model, or `out` is a file.
        SavimaeError: a checkpoint, video or array that cannot be read.
    """
    refuse_file(out)
    videos = distinct_videos(find_readable_videos(source, clips.root).videos)[: drawings.n_videos]
    cut = find_arrays(clips.saliency_root, videos)
    pretrained = load_pretrained(checkpoint, machine.device)
    masked_clips = pretrained.masked_clips(videos, clips, masks, cut)
    if drawings.statistics is not None and not pretrained.model.config.norm_target:
        raise UsageError(
            f"{shown(checkpoint)} predicts pixels as they are, so --statistics has no effect; "
            "leave it out"
        )
    drawn = Drawn([], [])
    with Progress("drawing", delay_s=1.0) as progress:
        for index in range(len(videos)):
            progress.show(index / len(videos), f"{index}/{len(videos)} clips")
            written, record = _draw(pretrained, masked_clips, index, out, machine, drawings)
            drawn.written.extend(written)
            drawn.records.append(record)
    path = os.path.join(out, "reconstruction.json")
    write_json(path, drawn.records)
    drawn.written.append(path)
    return drawn


def _draw(
    pretrained: Pretrained,
    clips: MaskedClips,
    index: int,
    out: str,
    machine: Machine,
    drawings: Drawings,
) -> tuple[list[str], dict[str, Any]]:
    """Draw the clip of one video: the files that were written, and its record."""
    shape, video = pretrained.model.config, clips.videos[index]
    of_clip = reconstruct_clip(pretrained, clips, index, machine, drawings.statistics)
    picture, frames = draw_reconstruction(
        of_clip.clip, of_clip.result.pixels, of_clip.result.masked, shape.patch_size,
        shape.tubelet_size, shown(os.path.basename(video.name)), of_clip.title,
    )  # fmt: skip
    written = [os.path.join(out, f"{video.name}.png")]
    write_picture(written[0], picture)
    if drawings.animation != "none":
        written.append(os.path.join(out, f"{video.name}.{drawings.animation}"))
        rate = open_video(video.path).frames_per_s or FRAMES_PER_S
        write_animation(written[1], frames, rate / clips.reader.config.sampling_rate)
    return written, of_clip.record


class ReconstructedClip(NamedTuple):
    """What became of one masked clip."""

    clip: Clip
    result: Reconstruction
    title: str  # mask, loss and error in words
    record: dict[str, Any]  # as in reconstruction.json


def reconstruct_clip(
    pretrained: Pretrained,
    clips: MaskedClips,
    index: int,
    machine: Machine,
    statistics: str | None = None,
) -> ReconstructedClip:
    """Reconstruct the clip of one video, and measure how near that comes.

    Args:
        statistics: see `reconstruct`; None: visible.

    Raises:
        SavimaeError: a video or array that cannot be read, or predictions that are no finite
            numbers.
    """
    shape, video = pretrained.model.config, clips.videos[index]
    statistics = statistics or "visible"
    clip, mask = clips.read(index, 0)
    with machine.autocast():
        result = reconstruct(pretrained.model, clip.pixels, mask, statistics)
    if not np.isfinite(result.pixels).all():
        raise SavimaeError(
            f"{shown(pretrained.path)}: its predictions are no finite numbers; the weights are "
            "damaged, or try --precision fp32"
        )
    original = clip.pixels.astype(np.float32) / 255
    ours = quality(original, result.pixels, result.masked)
    means = quality(original, result.filled, result.masked)
    title = (
        f"{mask_words(clips.masks)} mask, {mask.mean():.0%} hidden   "
        f"loss {result.loss:.3f}, PSNR {ours.psnr_db:.1f} dB (means alone "
        f"{means.psnr_db:.1f})   {FROM[statistics] if shape.norm_target else 'pixels as predicted'}"
    )
    return ReconstructedClip(clip, result, title, {
        "video": video.path,
        "frames": clip.frame_indices.tolist(),
        "mask": mask_words(clips.masks),
        "masked_share": round(float(mask.mean()), 4),
        "loss": round(result.loss, 4),
        "statistics": statistics if shape.norm_target else "none needed",
        "psnr_db": round(ours.psnr_db, 3),
        "ssim": round(ours.ssim, 4),
        "psnr_db_of_means": round(means.psnr_db, 3),
        "ssim_of_means": round(means.ssim, 4),
    })  # fmt: skip


# ----------------------------------------------------------------------------- back to pixels


class Reconstruction(NamedTuple):
    """A clip and what the model made of its hidden tokens."""

    pixels: np.ndarray  # float32 [T, S, S, 3] in 0 to 1; the clip's own where it was visible
    filled: (
        np.ndarray
    )  # the same with only a mean in each hidden token: what comes without any model
    masked: np.ndarray  # bool [T, S, S], True = hidden from the encoder
    loss: float  # mean squared error of the prediction, as in training


def reconstruct(
    model: VideoMAE, clip: np.ndarray, mask: np.ndarray, statistics: str = "visible"
) -> Reconstruction:
    """Reconstruct the masked tokens of one clip.

    Args:
        model: in evaluation mode, on any device.
        clip: uint8 `[T, S, S, 3]`.
        mask: bool `[N]`, True = masked.
        statistics: whose mean and deviation the pixels get, "visible" or "target".

    Raises:
        ValueError: other statistics, or a clip or mask that does not fit the model.
    """
    if statistics not in STATISTICS:
        raise ValueError(f"statistics {statistics!r} is not one of {', '.join(STATISTICS)}")
    device = model.mask_token.device
    clips = torch.from_numpy(clip)[None].to(device)
    hidden = torch.from_numpy(mask)
    with torch.no_grad():
        output = model(clips, hidden[None].to(device))
        tokens = model.patchify(clips).cpu().float() / 255  # [N, t*P*P*3]
    prediction = output.prediction.cpu().unflatten(1, (-1, CHANNELS))  # [M, t*P*P, 3]
    mean, deviation = _statistics(tokens, hidden, model.config, statistics)
    if model.config.norm_target:
        prediction = prediction * deviation + mean
    filled = tokens.clone()
    filled[hidden] = mean.expand_as(prediction).flatten(1)
    tokens[hidden] = prediction.clamp(0, 1).flatten(1)
    shown = hidden[:, None].expand(-1, model.config.token_values)
    return Reconstruction(
        unpatchify(tokens, model.config).numpy(),
        unpatchify(filled, model.config).numpy(),
        unpatchify(shown, model.config)[..., 0].numpy(),
        float(output.loss),
    )


class Quality(NamedTuple):
    """How near pixels are to the original, where they were hidden."""

    psnr_db: float  # peak signal-to-noise ratio
    ssim: float  # structural similarity (Wang et al., 2004), -1 to 1


def quality(original: np.ndarray, pixels: np.ndarray, masked: np.ndarray) -> Quality:
    """Compare two clips float `[T, S, S, 3]` in 0 to 1 where `masked` bool `[T, S, S]` is true.

    SSIM is computed frame by frame, with the visible pixels around, and averaged over hidden ones.
    """
    psnr = peak_signal_noise_ratio(original[masked], pixels[masked], data_range=1.0)
    maps = [
        structural_similarity(a, b, channel_axis=-1, data_range=1.0, full=True)[1].mean(-1)
        for a, b in zip(original, pixels, strict=True)
    ]
    return Quality(float(psnr), float(np.stack(maps)[masked].mean()))


def _statistics(
    tokens: Tensor, hidden: Tensor, config: VideoMAEConfig, statistics: str
) -> tuple[Tensor, Tensor]:
    """Mean and deviation for each hidden token, float32 `[M, 1, 3]` each."""
    variance, mean = torch.var_mean(tokens.unflatten(1, (-1, CHANNELS)), dim=1, keepdim=True)
    deviation = variance.sqrt() + TARGET_EPS
    if statistics == "target":
        return mean[hidden], deviation[hidden]
    # Places (time, row, column) of tokens; the nearest visible ones, weighted by 1 / distance.
    n, grid = config.n_tokens, config.grid_size
    index = torch.arange(n)
    places = torch.stack([index // grid**2, index // grid % grid, index % grid], 1).float()
    distances = torch.cdist(places[hidden], places[~hidden])  # [M, V]
    nearest = distances.topk(min(NEAREST, distances.shape[1]), largest=False)
    weights = 1 / nearest.values
    weights = (weights / weights.sum(1, keepdim=True))[:, :, None, None]  # [M, nearest, 1, 1]
    return tuple(
        (values[~hidden][nearest.indices] * weights).sum(1) for values in (mean, deviation)
    )  # type: ignore[return-value]


def unpatchify(tokens: Tensor, config: VideoMAEConfig) -> Tensor:
    """The inverse of `VideoMAE.patchify` for one clip: `[N, t*P*P*3]` -> `[T, S, S, 3]`."""
    t, p, grid = config.tubelet_size, config.patch_size, config.grid_size
    # [N, t*P*P*3] -> [T/t, H/P, W/P, t, P, P, 3] -> [T/t, t, H/P, P, W/P, P, 3]
    parts = tokens.reshape(-1, grid, grid, t, p, p, CHANNELS).permute(0, 3, 1, 4, 2, 5, 6)
    return parts.reshape(config.num_frames, config.image_size, config.image_size, CHANNELS)
