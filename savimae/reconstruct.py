"""From the model's prediction back to pixels.

Legend: T frames, t tubelet size, P patch size, S input size, N tokens of a clip, M masked ones.

With normalised targets the model predicts a token's pixels up to their mean and deviation. Which
ones bring them back to pixels must be said: those of the hidden pixels themselves, which is what is
commonly shown and leaks the answer ("target"), or those of visible tokens nearby ("visible").
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from savimae.model import CHANNELS, TARGET_EPS, VideoMAE, VideoMAEConfig

STATISTICS = ("visible", "target")
NEAREST = 4  # visible tokens whose statistics a hidden one is given


class Reconstruction(NamedTuple):
    """A clip and what the model made of its hidden tokens."""

    pixels: np.ndarray  # float32 [T, S, S, 3] in 0 to 1; the clip's own where it was visible
    filled: np.ndarray  # the same with nothing but means where it was hidden: what no model gives
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
