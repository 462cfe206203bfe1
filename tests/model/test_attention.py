"""The attention that tokens receive, against the same by hand in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models import clips_for, small_model

from savimae.model import attention
from savimae.model.classifier import VideoClassifier
from savimae.model.config import CHANNELS
from savimae.model.videomae import IMAGENET_MEAN, IMAGENET_STD, VideoMAE


def sharp_model() -> VideoMAE:
    """A model whose heads look at some tokens much more than at others."""
    model = small_model().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in model.encoder.blocks:
            block.attn.qkv.weight *= 4
            for name in ("q_bias", "v_bias"):
                bias = getattr(block.attn, name)
                bias += torch.randn(bias.shape, generator=generator)
            block.norm1.bias += 0.1 * torch.randn(block.norm1.bias.shape, generator=generator)
    return model


def norm(x: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def by_hand(model: VideoMAE, clip: np.ndarray, layer: int) -> np.ndarray:
    """Received attention `[heads, N]` of a clip uint8 `[T, S, S, 3]`, float64, token by token."""
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}
    c = model.config
    t, p, dim, heads = c.tubelet_size, c.patch_size, c.encoder_dim, c.encoder_heads
    pixels = (clip / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    kernel = state["encoder.patch_embed.proj.weight"]  # [D, 3, t, P, P]
    hidden = []
    for time in range(c.time_steps):
        for row in range(c.grid.height):
            for column in range(c.grid.width):
                part = pixels[t * time :, p * row :, p * column :][:t, :p, :p]
                assert part.shape == (t, p, p, CHANNELS)
                hidden.append(np.einsum("dcthw,thwc->d", kernel, part))
    x = np.stack(hidden) + state["encoder.patch_embed.proj.bias"]
    for place, each in enumerate(x):
        for j in range(dim):
            angle = place / 10000 ** (2 * (j // 2) / dim)
            each[j] += math.cos(angle) if j % 2 else math.sin(angle)
    erf = np.vectorize(math.erf)
    for number in range(layer):
        of = f"encoder.blocks.{number}."
        bias = [state[of + "attn.q_bias"], np.zeros(dim), state[of + "attn.v_bias"]]
        qkv = norm(x, state, of + "norm1") @ state[of + "attn.qkv.weight"].T + np.concatenate(bias)
        weights, mixed = [], []
        for head in range(heads):
            d = dim // heads
            q, k, v = (qkv[:, part * dim + head * d :][:, :d] for part in range(3))
            exponent = q @ k.T / math.sqrt(d)
            a = np.exp(exponent - exponent.max(1, keepdims=True))
            a /= a.sum(1, keepdims=True)
            weights.append(a)
            mixed.append(a @ v)
        out = np.concatenate(mixed, 1) @ state[of + "attn.proj.weight"].T
        x = x + out + state[of + "attn.proj.bias"]
        inner = norm(x, state, of + "norm2") @ state[of + "mlp.fc1.weight"].T
        inner += state[of + "mlp.fc1.bias"]
        inner = inner * (1 + erf(inner / math.sqrt(2))) / 2
        x = x + inner @ state[of + "mlp.fc2.weight"].T + state[of + "mlp.fc2.bias"]
    return np.stack(weights).mean(1)  # [heads, queries, keys] -> [heads, keys]


@pytest.mark.parametrize("layer", [1, 2, None])
def test_received_attention_is_what_the_weights_say(layer, monkeypatch):
    monkeypatch.setattr(attention, "RECEIVED_ROWS", 25)  # 64 tokens: the last part is a short one
    model = sharp_model()
    clips = clips_for(model.config, 2)
    with torch.no_grad():
        found = model.encoder.received_attention(clips, layer)
    assert found.shape == (2, 4, 64)
    assert found.dtype == torch.float32
    for clip, received in zip(clips.numpy(), found.numpy(), strict=True):
        expected = by_hand(model, clip, layer or 2)
        assert expected.max() > 4 / 64  # far from the same for all tokens
        # float32 through two blocks.
        np.testing.assert_allclose(received, expected, rtol=2e-4, atol=1e-7)
        np.testing.assert_allclose(received.sum(1), 1, rtol=1e-6)


def test_a_classifiers_encoder_looks_at_the_same():
    model = sharp_model()
    clips = clips_for(model.config, 1)
    classifier = VideoClassifier(model.config, 3)
    classifier.load_encoder(model.state_dict())
    with torch.no_grad():
        ours = model.encoder.received_attention(clips)
        assert torch.equal(classifier.encoder.received_attention(clips), ours)


def test_scores_are_float32_under_autocast():
    """In bf16 the weights of a row add up to 1 within some 1e-3 only."""
    qkv = torch.randn(300, 3 * 32, generator=torch.Generator().manual_seed(0))
    exact = attention.received(qkv, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention.received(qkv, 2), exact)
        rounded = attention.received(qkv.bfloat16(), 2)
    np.testing.assert_allclose(rounded.sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("layer", [0, 3])
def test_other_layers_are_refused(layer):
    model = small_model()
    with pytest.raises(ValueError, match=f"layer {layer} is not one of 1 to 2"):
        model.encoder.received_attention(clips_for(model.config, 1), layer)
