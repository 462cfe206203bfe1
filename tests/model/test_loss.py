"""The loss of pretraining: the kernels' and torch's, and their gradients by hand in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from models import SMALL, clips_for, decoded_for, masks_for, small_model

from savimae.model import loss as module
from savimae.model.config import VideoMAEConfig
from savimae.model.loss import targets, token_losses

ONE_PIXEL_PATCHES = VideoMAEConfig(
    input_size=8, num_frames=2, patch_size=2, tubelet_size=1,
    encoder_dim=16, encoder_depth=1, encoder_heads=2, decoder_dim=8, decoder_depth=1,
    decoder_heads=2,
)  # fmt: skip


def by_hand(tokens, prediction, is_normalized):
    """Sum of squared errors and its gradient in float64."""
    pixels = tokens.double().view(len(tokens), -1, 3) / 255
    if is_normalized:
        variance, mean = torch.var_mean(pixels, 1, keepdim=True)
        pixels = (pixels - mean) / (variance.sqrt() + 1e-6)
    errors = prediction.double() - pixels.flatten(1)
    return errors.square().sum(), 2 * errors, errors.square().mean(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_normalized", [True, False])
@pytest.mark.parametrize(
    "n", [1, 2, module.ROWS_OF_A_THREAD, 2 * module.ROWS_OF_A_THREAD + 1], ids=str
)
def test_loss_and_gradient_by_hand(dtype, is_normalized, n, monkeypatch):
    config = dataclasses.replace(ONE_PIXEL_PATCHES, norm_target=is_normalized)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    generator = torch.Generator().manual_seed(n)
    tokens = torch.randint(0, 256, (n + 5, config.token_values), generator=generator).byte()
    wanted = torch.randint(0, n + 5, (n + 3,), generator=generator)  # three are filler
    prediction = torch.randn(n + 3, config.token_values, generator=generator).to(dtype)
    prediction.requires_grad_()
    total, losses = token_losses(tokens, wanted, prediction, n, config)
    (0.125 * total).backward()
    expected, gradient, of_tokens = by_hand(
        tokens[wanted[:n]], prediction.detach()[:n], is_normalized
    )
    assert float(total.detach()) == pytest.approx(float(expected), rel=1e-6)
    torch.testing.assert_close(losses.double(), of_tokens, rtol=2e-6, atol=1e-9)
    # bfloat16 keeps 8 bits; predictions and targets are up to 5, in float32.
    torch.testing.assert_close(
        prediction.grad[:n].double(), 0.125 * gradient,
        rtol=2**-8 if dtype == torch.bfloat16 else 1e-6, atol=0.25 * 5 * 2**-23,
    )  # fmt: skip
    assert not prediction.grad[n:].any()
    assert not losses.requires_grad


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_training_and_reconstruction_have_the_same_loss(ratio):
    clips, mask = clips_for(SMALL, 3), masks_for(SMALL, 3)
    decoded = decoded_for(SMALL, mask, ratio)
    model, other = small_model(), small_model()
    output = model(clips, mask, decoded)
    output.loss_sum.backward()
    total, losses = other.losses(clips, mask, decoded)
    total.backward()
    assert float(total.detach()) == pytest.approx(float(output.loss_sum.detach()), rel=1e-6)
    torch.testing.assert_close(losses, output.token_losses, rtol=2e-6, atol=1e-7)
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        scale = float(ours.grad.abs().max())
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=0, atol=2e-6 * scale, msg=name)


def test_pixels_that_are_no_bytes_take_the_way_of_torch():
    clips, mask = clips_for(SMALL, 2), masks_for(SMALL, 2)
    model = small_model()
    of_bytes, _ = model.losses(clips, mask)
    of_floats, _ = model.losses(clips.float() / 255, mask)
    assert float(of_floats.detach()) == pytest.approx(float(of_bytes.detach()), rel=1e-6)
    assert targets(torch.full((1, 24), 51).byte(), False).unique().tolist() == [pytest.approx(0.2)]


def test_the_same_bits_with_any_number_of_threads(monkeypatch):
    config = ONE_PIXEL_PATCHES
    n = 4 * module.ROWS_OF_A_THREAD
    tokens = torch.randint(0, 256, (n, config.token_values)).byte()
    prediction = torch.randn(n, config.token_values)
    results = []
    for threads in (1, 2, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        given = prediction.clone().requires_grad_()
        total, losses = token_losses(tokens, torch.arange(n), given, n, config)
        total.backward()
        results.append((total.detach(), losses, given.grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
