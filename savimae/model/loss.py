"""The loss of pretraining: squared errors of reconstructed tokens, as a step of autograd.

On CPUs a kernel reads pixels and predictions once and never writes a target; elsewhere, and where
pixels are no uint8, the same is written out in torch.
"""

from __future__ import annotations

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from savimae.model.config import CHANNELS, VideoMAEConfig

TARGET_EPS = 1e-6
ROWS_OF_A_THREAD = 256  # tokens below which a second thread is not worth waking


def normalize_tokens(pixels: Tensor) -> Tensor:
    """`(x - mean) / (sqrt(unbiased variance) + 1e-6)` per channel of float `[M, pixels, C]`."""
    variance, mean = torch.var_mean(pixels, dim=1, keepdim=True)
    return (pixels - mean) / (variance.sqrt() + TARGET_EPS)


def means_alone(n: int) -> float:
    """The loss of predicting but the mean of each token of n pixels, if targets are normalised.

    A channel is divided by the root of its unbiased variance, so that the squares of what the mean
    leaves add up to n - 1: less in flat tokens only, by TARGET_EPS.
    """
    return 1 - 1 / n


def targets(tokens: Tensor, is_normalized: bool, channels: int = CHANNELS) -> Tensor:
    """What tokens `[M, t*P*P*C]` are predicted as: pixels in 0 to 1, float32, maybe normalised."""
    pixels = unit_float(tokens).view(len(tokens), -1, channels)
    return (normalize_tokens(pixels) if is_normalized else pixels).flatten(1)


def unit_float(tokens: Tensor) -> Tensor:
    """Pixel values as float32 in 0 to 1."""
    return tokens.float() / 255 if tokens.dtype == torch.uint8 else tokens.float()


def token_losses(
    tokens: Tensor, wanted: Tensor, prediction: Tensor, n_predicted: int, config: VideoMAEConfig
) -> tuple[Tensor, Tensor]:
    """Errors of the first `n_predicted` rows of a prediction.

    Args:
        tokens: pixels of a batch `[B * N, t*P*P*C]`, uint8 or float in 0 to 1.
        wanted: int64 `[>= M]`, which of them each row of the prediction is about.
        prediction: float32 or bfloat16 `[>= M, t*P*P*C]`; rows behind the first M are filler.

    Returns:
        The sum of squared errors, a scalar with a gradient, and the mean squared error of each
        token, float32 `[M]` without one.
    """
    if _has_kernel(tokens, prediction):
        losses = torch.empty(n_predicted)
        channels = config.channels
        arguments = (config.patch_size * channels, config.norm_target, channels)
        total = _KernelLoss.apply(prediction, tokens, wanted, losses, *arguments)
        return total, losses
    errors = (
        prediction.float() - targets(tokens[wanted], config.norm_target, config.channels)
    ).square()
    return errors[:n_predicted].sum(), errors[:n_predicted].detach().mean(1)


def _has_kernel(tokens: Tensor, prediction: Tensor) -> bool:
    is_known = prediction.dtype in (torch.float32, torch.bfloat16)
    return tokens.dtype == torch.uint8 and prediction.device.type == "cpu" and is_known


class _KernelLoss(torch.autograd.Function):
    """The sum of squared errors by the kernels of `kernels.token_loss`."""

    @staticmethod
    def forward(
        ctx: Any,
        prediction: Tensor,
        tokens: Tensor,
        wanted: Tensor,
        losses: Tensor,
        row_values: int,
        is_normalized: bool,
        channels: int,
    ) -> Tensor:
        """Fills `losses` `[M]`; returns their sum over all values."""
        from savimae.kernels.token_loss import token_losses as kernel

        arrays = tokens.numpy(), wanted.numpy(), _as_array(prediction)
        of_tokens = losses.numpy()
        _share_rows(
            len(losses),
            lambda first, last: kernel(
                *arrays, row_values, is_normalized, first, last, of_tokens, channels
            ),
        )
        ctx.save_for_backward(prediction, tokens, wanted)
        ctx.arguments = (len(losses), row_values, is_normalized, channels)
        n_values = tokens.shape[1]
        return (losses.sum(dtype=torch.float64) * n_values).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from savimae.kernels.token_loss import token_gradients as kernel

        prediction, tokens, wanted = ctx.saved_tensors
        n_predicted, row_values, is_normalized, channels = ctx.arguments
        gradient = torch.empty_like(prediction)
        gradient[n_predicted:] = 0
        arrays = tokens.numpy(), wanted.numpy(), _as_array(prediction)
        factor, out = np.float32(2 * float(gradients[0])), _as_array(gradient)
        _share_rows(
            n_predicted,
            lambda first, last: kernel(
                *arrays, row_values, is_normalized, first, last, factor, out, channels
            ),
        )
        return gradient, None, None, None, None, None, None


def _as_array(values: Tensor) -> np.ndarray:
    """The memory of a tensor on the CPU; bfloat16 as uint16."""
    values = values.detach()
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()


def _share_rows(n: int, work: Any) -> None:
    """Call `work(first, last)` for parts of n rows, on as many threads as torch computes with."""
    n_parts = max(1, min(torch.get_num_threads(), n // ROWS_OF_A_THREAD))
    if n_parts == 1:
        work(0, n)
        return
    borders = [n * part // n_parts for part in range(n_parts + 1)]
    others = [
        _threads(n_parts - 1).submit(work, first, last)
        for first, last in itertools.pairwise(borders[1:])
    ]
    work(0, borders[1])
    for other in others:
        other.result()


@functools.lru_cache(1)
def _threads(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, "loss")
