"""One channel: gray models, and RGB weights as theirs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from models import SMALL, clips_for, decoded_for, masks_for, small_model

from savimae.model.channels import gray_config, gray_weights
from savimae.model.classifier import VideoClassifier
from savimae.model.config import VideoMAEConfig, step_flops
from savimae.model.layouts import our_config
from savimae.model.videomae import (
    GRAY_MEAN,
    GRAY_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    VideoMAE,
    pixel_statistics,
)
from savimae.system.errors import SavimaeError

GRAY = dataclasses.replace(SMALL, channels=1)
OWN = {"pixel_mean": (0.1, 0.2, 0.3), "pixel_std": (0.05, 0.4, 0.2)}


def randomized(model):
    """With biases that are not 0."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def gray_clips(n: int) -> torch.Tensor:
    return clips_for(SMALL, n)[..., :1]


def test_gray_defaults_are_imagenet_weighted_like_luma():
    luma = (0.299, 0.587, 0.114)
    assert (round(float(np.dot(luma, IMAGENET_MEAN)), 3),) == GRAY_MEAN
    assert (round(float(np.dot(luma, IMAGENET_STD)), 3),) == GRAY_STD
    assert pixel_statistics(SMALL) == (IMAGENET_MEAN, IMAGENET_STD)
    assert pixel_statistics(GRAY) == (GRAY_MEAN, GRAY_STD)
    own = dataclasses.replace(GRAY, pixel_mean=[0.3], pixel_std=[1])
    assert pixel_statistics(own) == ((0.3,), (1.0,))


def test_a_third_of_the_work_of_embedding_and_head():
    visible, decoded = [10, 20], [50, 40]
    values = SMALL.tubelet_size * SMALL.patch_size**2
    work = 30 * SMALL.encoder_dim + 90 * SMALL.decoder_dim  # a multiply-add for each value
    difference = step_flops(SMALL, visible, decoded) - step_flops(GRAY, visible, decoded)
    assert difference == 2 * 3 * 2 * values * work
    rgb, gray = VideoMAE(SMALL), VideoMAE(GRAY)
    assert gray.encoder.patch_embed.proj.weight.shape == (48, 1, 2, 16, 16)
    assert 3 * gray.decoder.head.weight.numel() == rgb.decoder.head.weight.numel()


@pytest.mark.parametrize("statistics", [{}, OWN], ids=["ImageNet's", "own"])
def test_rgb_weights_see_the_same_in_gray_videos(statistics):
    model = randomized(small_model(**statistics))
    with torch.no_grad():  # three channels that differ as much as they can
        model.encoder.patch_embed.proj.weight.copy_(
            torch.randn_like(model.encoder.patch_embed.proj.weight) / 20
        )
    gray = VideoMAE(gray_config(model.config)).eval()
    gray.load_state_dict(gray_weights(model.state_dict(), model.config))
    clips = gray_clips(3)
    with torch.no_grad():
        ours, _ = gray.encode(clips)
        theirs, _ = model.encode(clips.expand(-1, -1, -1, -1, 3))
        plain, _ = gray.encode(clips.flip(1))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (ours - plain).abs().max() > 0.1
    # The head's prediction is the mean over the channels of theirs.
    mask = masks_for(SMALL, 3)
    with torch.no_grad():
        prediction = gray(clips, mask).prediction
        of_channels = model(clips.expand(-1, -1, -1, -1, 3), mask).prediction.unflatten(1, (-1, 3))
    torch.testing.assert_close(prediction, of_channels.mean(-1), rtol=0, atol=1e-5)


def test_a_classifier_sees_the_same_in_gray_videos():
    torch.manual_seed(0)
    model = randomized(VideoClassifier(SMALL, 5, head_scale=1.0))
    gray = VideoClassifier(GRAY, 5).eval()
    gray.load_state_dict(gray_weights(model.state_dict(), SMALL))
    clips = gray_clips(2)
    with torch.no_grad():
        torch.testing.assert_close(
            gray(clips), model(clips.expand(-1, -1, -1, -1, 3)), rtol=0, atol=1e-5
        )


def test_where_statistics_are_alike_weights_are_summed():
    alike = {"pixel_mean": GRAY_MEAN * 3, "pixel_std": GRAY_STD * 3}
    model = small_model(**alike)
    state = gray_weights(model.state_dict(), model.config)
    name = "encoder.patch_embed.proj.weight"
    summed = model.state_dict()[name].sum(1, keepdim=True)
    torch.testing.assert_close(state[name], summed, rtol=1e-6, atol=1e-7)
    bias = "encoder.patch_embed.proj.bias"
    assert torch.equal(state[bias], model.state_dict()[bias])


@pytest.mark.parametrize("norm_target", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=["kernel", "torch"])
def test_losses_of_gray_tokens(norm_target, dtype):
    model = small_model(channels=1, norm_target=norm_target).eval()
    clips, mask = gray_clips(2), masks_for(SMALL, 2)
    decoded = decoded_for(SMALL, mask, 0.5)
    given = clips if dtype == torch.uint8 else clips.float() / 255
    total, losses = model.losses(given, mask, decoded)
    output = model(clips, mask, decoded)
    tokens = model.patchify(clips)[decoded.flatten()].double() / 255  # [M, t*P*P]
    if norm_target:
        std = tokens.std(1, keepdim=True)  # unbiased
        tokens = (tokens - tokens.mean(1, keepdim=True)) / (std + 1e-6)
    torch.testing.assert_close(output.target.double(), tokens, rtol=1e-5, atol=1e-5)
    expected = (output.prediction.double() - tokens).square()
    torch.testing.assert_close(losses.double(), expected.mean(1), rtol=1e-5, atol=1e-7)
    assert float(total.detach()) == pytest.approx(float(expected.detach().sum()), rel=1e-5)
    assert output.prediction.shape == (int(decoded.sum()), 2 * 16 * 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 2}, "channels must be 1 or 3, not 2"),
        ({"pixel_mean": (0.1, 0.2, 0.3)}, "pixel_mean and pixel_std go together"),
        ({"channels": 1, **OWN}, "pixel_mean 0.1,0.2,0.3: 1 numbers of 0 to 1 are wanted"),
        ({**OWN, "pixel_std": (0.1, 0.0, 0.1)}, "pixel_std .*: 3 numbers above 0 and at most 1"),
        ({**OWN, "pixel_mean": (0.1, 0.2, float("nan"))}, "pixel_mean .*nan: 3 numbers of 0 to 1"),
        ({**OWN, "pixel_std": (59.0, 57.0, 58.0)}, "pixel_std 59.0,57.0,58.0: 3 numbers above 0"),
    ],
)
def test_statistics_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        VideoMAEConfig(**changes)


def test_fields_are_recorded_where_they_are_not_the_default():
    assert not {"channels", "pixel_mean", "pixel_std"} & set(SMALL.recorded())
    own = dataclasses.replace(SMALL, **OWN)
    assert own.recorded()["pixel_std"] == [0.05, 0.4, 0.2]
    assert our_config("x", own.recorded()) == own
    assert our_config("x", GRAY.recorded()) == GRAY
    with pytest.raises(SavimaeError, match=r"x: its config does not fit: .*pixel_mean is str"):
        our_config("x", {**own.recorded(), "pixel_mean": "0.1"})


def test_clips_of_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"clips are \[1, 8, 64, 64, 3\], .* 64, 1\]"):
        small_model(channels=1).encode(clips_for(SMALL, 1))
