"""RGB weights as gray ones.

Legend: D width of the encoder, d of the decoder, t tubelet size, P patch size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from savimae.model.config import GRAY, VideoMAEConfig
from savimae.model.layouts import State
from savimae.model.videomae import pixel_statistics

_EMBEDDING = "encoder.patch_embed.proj."
_HEAD = "decoder.head."


def gray_config(config: VideoMAEConfig) -> VideoMAEConfig:
    """The same shape with one channel and the default statistics of gray pixels."""
    return dataclasses.replace(config, channels=GRAY, pixel_mean=None, pixel_std=None)


def gray_weights(state: Mapping[str, Tensor], config: VideoMAEConfig) -> State:
    """The parameters of an RGB model, pretrained or a classifier, as those of `gray_config`.

    The patch embedding of a frame whose channels all hold the gray level g is

        b + sum_c W_c (g - m_c) / s_c  =  b' + W' (g - m) / s
        W' = s sum_c W_c / s_c,  b' = b + sum_c (m - m_c) / s_c * (sum of W_c over t, P, P)

    with means m_c and deviations s_c of the RGB model and m, s of the gray one: the weights are
    summed over channels, and both make the same features of a gray video. (Where all statistics are
    alike, W' is the plain sum and b' is b.) The decoder's head predicts three values of a pixel;
    the gray one predicts their mean. It has W `[D, 3, t, P, P]` -> `[D, 1, t, P, P]`, head
    `[t*P*P*3, d]` -> `[t*P*P, d]`.

    Args:
        config: of the RGB model.
    """
    theirs = [torch.tensor(each, dtype=torch.float64) for each in pixel_statistics(config)]
    (mean, std), ((gray_mean,), (gray_std,)) = theirs, pixel_statistics(gray_config(config))
    weight = state[_EMBEDDING + "weight"].double() / std[:, None, None, None]
    shift = (weight.sum((2, 3, 4)) * (gray_mean - mean)).sum(1)
    gray = dict(state)
    changed = {
        _EMBEDDING + "weight": gray_std * weight.sum(1, keepdim=True),
        _EMBEDDING + "bias": state[_EMBEDDING + "bias"].double() + shift,
    }
    for name in (_HEAD + "weight", _HEAD + "bias"):
        if name in state:  # a classifier has none
            changed[name] = state[name].double().unflatten(0, (-1, config.channels)).mean(1)
    return gray | {name: value.to(state[name].dtype) for name, value in changed.items()}
