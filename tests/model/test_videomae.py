"""The model: parity with the published one, exactness of packed batches, errors."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from models import SMALL, clips_for, decoded_for, masks_for, small_model

from savimae.model.attention import FUSED, WAYS, Packing, attend, filled
from savimae.model.config import VideoMAEConfig, model_config, step_flops
from savimae.model.loss import normalize_tokens
from savimae.model.videomae import VideoMAE, build_model, sinusoid_positions
from savimae.samples.masking import MaskSpec, draw_masks
from savimae.samples.randomness import sample_keys

# --------------------------------------------------------------------------- published numbers


@pytest.mark.parametrize("way", WAYS)
def test_parity_with_the_published_model(golden, way):
    numbers = np.load(golden / "videomae_tiny.npz")
    shape = json.loads(str(numbers["config"]))
    config = VideoMAEConfig(
        shape["image_size"], shape["num_frames"], shape["patch_size"], shape["tubelet_size"],
        *shape["encoder"], *shape["decoder"],
    )  # fmt: skip
    model = VideoMAE(config)
    state = {
        name.removeprefix("state/"): torch.from_numpy(numbers[name])
        for name in numbers.files
        if name.startswith("state/")
    }
    model.load_state_dict(state)  # strict: every name and shape
    model.encoder.attention = model.decoder.attention = way
    clips, mask = torch.from_numpy(numbers["frames"]), torch.from_numpy(numbers["mask"])
    output = model(clips, mask)
    for name in ("prediction", "target"):
        ours = getattr(output, name).detach().numpy().reshape(numbers[name].shape)
        np.testing.assert_allclose(ours, numbers[name], rtol=0, atol=2e-5)
    assert output.loss.item() == pytest.approx(float(numbers["loss"]), abs=1e-5)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        expected = float(numbers[f"grad_norm/{name}"])
        assert parameter.grad.norm().item() == pytest.approx(expected, rel=1e-4, abs=1e-6), name
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0)
    for expected in numbers["losses_adamw"]:
        optimizer.zero_grad()
        loss = model(clips, mask).loss
        assert loss.item() == pytest.approx(float(expected), abs=1e-5)
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "millions", "heads"),
    [
        ("tiny", None, 3),
        ("small", None, 6),
        ("base", 94.21, 12),
        ("large", None, 16),
        ("huge", None, 16),
    ],
)
def test_sizes(name, millions, heads):
    with torch.device("meta"):
        model = build_model(name)
    assert model.config.encoder_heads == heads
    assert model.config.decoder_depth == 4
    if millions:
        n = sum(parameter.numel() for parameter in model.parameters())
        assert round(n / 1e6, 2) == millions


def test_published_names():
    assert model_config("pretrain_videomae_base_patch16_224") == model_config("base")
    huge = model_config("pretrain_videomae_huge_patch14_224", decoder_depth=12)
    assert (huge.patch_size, huge.encoder_dim, huge.decoder_depth) == (14, 1280, 12)
    for name in ("giant", "pretrain_videomae_base", "pretrain_videomae_base_patchx_224"):
        with pytest.raises(ValueError, match=f"unknown model '{name}'; choose one of tiny, small"):
            model_config(name)


def test_positions_by_hand():
    positions = sinusoid_positions(1568, 768)
    # j = 5: the pair 4, 5 has exponent 4 / 768; odd, so cosine.
    assert positions[1000, 5].item() == pytest.approx(math.cos(1000 / 10000 ** (4 / 768)), abs=1e-6)
    assert positions[1000, 4].item() == pytest.approx(math.sin(1000 / 10000 ** (4 / 768)), abs=1e-6)
    assert positions[0].tolist() == [0.0, 1.0] * 384


def test_initialisation():
    torch.manual_seed(0)
    model = build_model("tiny")
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        elif name == "mask_token":
            assert 0.015 < parameter.std().item() < 0.025
        else:
            bound = math.sqrt(6 / (parameter[0].numel() + len(parameter)))
            assert 0.9 * bound < parameter.abs().max().item() <= bound * 1.000001


# ------------------------------------------------------------------------- tokens and targets


def test_tokens_are_time_row_column_and_hold_time_row_column_channel():
    model = small_model()
    clips = clips_for(SMALL, 2)
    tokens = model.patchify(clips).view(2, 4, 4, 4, 2, 16, 16, 3)
    for clip, time, row, column in ((0, 0, 0, 0), (1, 3, 2, 1), (0, 2, 3, 3)):
        part = clips[
            clip, 2 * time : 2 * time + 2,
            16 * row : 16 * row + 16, 16 * column : 16 * column + 16,
        ]  # fmt: skip
        assert torch.equal(tokens[clip, time, row, column], part)


def test_normalised_targets_by_hand():
    pixels = torch.rand(5, 512, 3)
    ours = normalize_tokens(pixels)
    token = pixels[2, :, 1].double()
    expected = (token - token.mean()) / (token.std() + 1e-6)  # std is unbiased
    assert torch.allclose(ours[2, :, 1].double(), expected, atol=1e-6)
    constant = normalize_tokens(torch.full((1, 512, 3), 0.3))
    assert constant.abs().max() < 1.0  # no division by zero


def test_plain_targets_are_pixels():
    model = small_model(norm_target=False)
    clips, mask = clips_for(SMALL, 2), masks_for(SMALL, 2)
    target = model(clips, mask).target
    tokens = model.patchify(clips).view(2, SMALL.n_tokens, -1)[mask]
    assert torch.equal(target, tokens / 255)


def test_float_clips_equal_uint8_clips():
    model = small_model()
    clips, mask = clips_for(SMALL, 2), masks_for(SMALL, 2)
    a, b = model(clips, mask), model(clips / 255, mask)
    assert torch.allclose(a.prediction, b.prediction, atol=1e-6)
    assert torch.allclose(a.target, b.target, atol=1e-6)


# --------------------------------------------------------------------------- packed batches


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["savi", "tube"])
@pytest.mark.parametrize("decoder_mask_ratio", [0.0, 0.5])
def test_a_clip_is_predicted_alike_alone_and_in_any_batch(kind, decoder_mask_ratio, way):
    model = small_model()
    model.encoder.attention = model.decoder.attention = way
    clips, mask = clips_for(SMALL, 5), masks_for(SMALL, 5, kind)
    decoded = decoded_for(SMALL, mask, decoder_mask_ratio)
    lengths = (~mask).sum(1).tolist()
    assert (len(set(lengths)) > 2) == (kind == "savi")
    together = model(clips, mask, decoded)
    parts = together.prediction.split(decoded.sum(1).tolist())
    for index in range(5):
        one = slice(index, index + 1)
        alone = model(clips[one], mask[one], decoded[one])
        assert torch.allclose(alone.prediction, parts[index], atol=1e-5, rtol=0)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = model(clips[order], mask[order], decoded[order])
    expected = torch.cat([parts[index] for index in order])
    assert torch.allclose(shuffled.prediction, expected, atol=1e-5, rtol=0)


def test_gradients_of_a_batch_are_those_of_its_clips():
    # Adding up loss_sum and n_values weighs every token alike, however clips are grouped.
    model = small_model()
    clips, mask = clips_for(SMALL, 4), masks_for(SMALL, 4)
    whole = model(clips, mask)
    whole.loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for rows in ([0], [1, 2, 3]):
        (model(clips[rows], mask[rows]).loss_sum / whole.n_values).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


def test_the_output_adds_up():
    output = small_model()(clips_for(SMALL, 3), masks_for(SMALL, 3))
    assert output.n_values == output.target.numel() == int(output.decoded.sum()) * 1536
    mse = torch.nn.functional.mse_loss(output.prediction, output.target)
    assert output.loss.item() == pytest.approx(mse.item(), rel=1e-6)
    assert output.token_losses.mean().item() == pytest.approx(mse.item(), rel=1e-5)
    assert not output.token_losses.requires_grad


def test_masked_pixels_do_not_reach_the_prediction():
    model = small_model()
    clips, mask = clips_for(SMALL, 2), masks_for(SMALL, 2)
    tokens = model.patchify(clips).view(2, SMALL.n_tokens, -1)
    other = tokens.clone()
    other[mask] = 255 - other[mask]
    # tokens -> clips, the inverse of patchify
    back = other.view(2, 4, 4, 4, 2, 16, 16, 3).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(clips.shape)
    assert not torch.equal(back, clips)
    a, b = model(clips, mask), model(back, mask)
    assert torch.equal(a.prediction, b.prediction)
    assert not torch.allclose(a.target, b.target)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [7, 1, 12, 3], [64, 64], [33, 70]])
def test_attention_and_its_gradients_by_hand(lengths, way):
    """Against float64, clip by clip, with filler behind the last clip."""
    heads, width, n_filler = 2, 6, 5
    rows = sum(lengths) + n_filler
    generator = torch.Generator().manual_seed(1)
    qkv, upper = (torch.randn(rows, n * heads * width, generator=generator) for n in (3, 1))
    upper[sum(lengths) :] = 0  # nobody asks for filler
    expected, qkv64 = [], qkv.double().requires_grad_()
    for clip in qkv64[: sum(lengths)].split(lengths):
        query, key, value = clip.view(-1, 3, heads, width).permute(1, 2, 0, 3)
        weights = torch.exp(torch.einsum("hid,hjd->hij", query, key) / width**0.5)
        mixed = torch.einsum("hij,hjd->hid", weights / weights.sum(-1, keepdim=True), value)
        expected.append(mixed.transpose(0, 1).flatten(1))
    torch.cat(expected).backward(upper[: sum(lengths)].double())
    ours = qkv.clone().requires_grad_()
    mixed = attend(ours, heads, Packing.of(torch.tensor(lengths), rows, way))
    mixed.backward(upper)
    assert torch.allclose(mixed[: sum(lengths)].double(), torch.cat(expected), atol=2e-6, rtol=0)
    assert torch.allclose(ours.grad.double(), qkv64.grad, atol=5e-6, rtol=0)
    assert not ours.grad[sum(lengths) :].any()


def test_the_way_of_attention_is_what_computes_it(monkeypatch):
    model, parts = small_model(), []
    clips, mask = clips_for(SMALL, 4), masks_for(SMALL, 4)
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention",
        lambda query, *rest, **named: parts.append(query.shape[-1]) or fused(query, *rest, **named),
    )  # fmt: skip
    model(clips, mask)
    assert parts == []
    model.decoder.attention = FUSED
    model(clips, mask)
    assert parts == [SMALL.decoder_dim // SMALL.decoder_heads] * SMALL.decoder_depth


def test_checkpointing_changes_nothing():
    clips, mask = clips_for(SMALL, 2), masks_for(SMALL, 2)
    gradients = []
    for value in (False, True):
        model = small_model(checkpoint_activations=value)
        loss = model(clips, mask).loss
        loss.backward()
        gradients.append([loss.detach()] + [parameter.grad for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_bf16_autocast_is_close():
    model = small_model()
    clips, mask = clips_for(SMALL, 2), masks_for(SMALL, 2)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(clips, mask)
    assert half.prediction.dtype == half.loss.dtype == torch.float32
    assert half.loss.item() == pytest.approx(model(clips, mask).loss.item(), rel=5e-3)


# ------------------------------------------------------------------------------ other shapes


@pytest.mark.parametrize(
    "changes",
    [
        {"num_frames": 2, "input_size": 32},
        {"num_frames": 12, "tubelet_size": 4},
        {"num_frames": 5, "tubelet_size": 1, "patch_size": 8},
        {"input_size": 48, "patch_size": 24},
    ],
)
def test_any_frames_size_and_tubelet(changes):
    model = small_model(**changes)
    config = model.config
    mask = masks_for(config, 2, "random")
    output = model(clips_for(config, 2), mask)
    assert output.prediction.shape == (int(mask.sum()), config.token_values)
    tokens, pooled = model.encode(clips_for(config, 2))
    assert tokens.shape == (2, config.n_tokens, 48)
    assert torch.allclose(pooled, tokens.mean(1))


def test_features_of_unmasked_clips():
    # Showing every token to the encoder by way of the training path gives the same features.
    model = small_model()
    clips = clips_for(SMALL, 3)
    tokens, pooled = model.encode(clips)
    everything = torch.arange(3 * SMALL.n_tokens)
    lengths = torch.full((3,), SMALL.n_tokens)
    packed = model.encoder(model.patchify(clips), everything % SMALL.n_tokens, lengths)
    assert torch.allclose(tokens, packed.view(3, SMALL.n_tokens, -1))
    one, _ = model.encode(clips[1:2])
    assert torch.allclose(tokens[1:2], one, atol=1e-5)
    assert pooled.shape == (3, 48)


def test_features_of_an_inner_layer():
    model = small_model().eval()
    clips, seen = clips_for(SMALL, 2), []
    model.encoder.blocks[0].register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    tokens, mean = model.encode(clips, layer=1)
    assert torch.equal(tokens.flatten(0, 1), seen[0])
    assert torch.equal(mean, tokens.mean(1))
    last = model.encode(clips, layer=SMALL.encoder_depth)[0]
    assert torch.equal(model.encoder.norm(last), model.encode(clips)[0])
    for layer in (0, 3):
        with pytest.raises(ValueError, match=f"layer {layer} is not one of 1 to 2"):
            model.encode(clips, layer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_size": 65}, "input_size 65 is not a multiple of patch_size 16"),
        ({"num_frames": 7}, "num_frames 7 is not a multiple of tubelet_size 2"),
        ({"encoder_dim": 50}, "encoder_dim 50 is not a multiple of encoder_heads 4"),
        ({"encoder_depth": 0}, "encoder_depth must be at least 1"),
    ],
)
def test_bad_shapes(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_clips_and_masks_that_do_not_fit():
    model = small_model()
    clips, mask = clips_for(SMALL, 2), masks_for(SMALL, 2)
    with pytest.raises(ValueError, match=r"clips are \[2, 7, 64, 64, 3\], the model wants"):
        model(clips[:, :7], mask)
    with pytest.raises(ValueError, match=r"mask is torch.int64 \[2, 64\], the model wants bool"):
        model(clips, mask.long())
    with pytest.raises(ValueError, match=r"wants bool \[2, 64\]"):
        model(clips, mask[:1])
    with pytest.raises(ValueError, match="shows no token"):
        model(clips, torch.ones_like(mask))
    with pytest.raises(ValueError, match="nothing to reconstruct"):
        model(clips, torch.zeros_like(mask))
    for decoded in (~mask, torch.zeros_like(mask)):
        with pytest.raises(ValueError, match="decoded tokens must be masked ones"):
            model(clips, mask, decoded)


# --------------------------------------------------------------------------- decoded tokens


def test_only_decoded_tokens_are_reconstructed_and_counted():
    model = small_model()
    clips, mask = clips_for(SMALL, 3), masks_for(SMALL, 3)
    decoded = decoded_for(SMALL, mask, 0.5)
    output = model(clips, mask, decoded)
    assert torch.equal(output.decoded, decoded)
    assert output.n_values == int(decoded.sum()) * 1536
    full = model(clips, mask)
    assert torch.equal(full.decoded, mask)
    # The decoded targets are those of the full pass at the same tokens.
    chosen = decoded[mask]
    assert torch.equal(output.target, full.target[chosen])
    assert output.loss_sum.item() == pytest.approx(
        (output.prediction - output.target).square().sum().item(), rel=1e-6
    )


# ---------------------------------------------------------------------------------- filler


def test_shorter_clips_are_those_of_a_model_of_their_length():
    long, short = small_model(), small_model(num_frames=4)
    short.load_state_dict(long.state_dict())
    clips = clips_for(short.config, 3)
    mask = masks_for(short.config, 3)
    for found, expected in zip(long.losses(clips, mask), short.losses(clips, mask), strict=True):
        assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"clips are \[3, 3, 64, 64, 3\], the model wants"):
        long.losses(clips[:, :3], mask)
    with pytest.raises(ValueError, match=r"mask is .* the model wants bool \[3, 32\]"):
        long.losses(clips, masks_for(long.config, 3))
    with pytest.raises(ValueError, match=r"the model wants \[B, \*\[8, 64, 64, 3\]\]"):
        long.encode(clips)


def test_filler_rounds_rows_to_few_sizes():
    places = torch.arange(1, 70)
    rounded = filled(places, 12544)
    assert len(rounded) == 128  # the greatest power of two below 12544 / 64
    assert torch.equal(rounded[:69], places)
    assert (rounded[69:] == 1).all()  # the first place again
    assert len(filled(places, 100)) == 72  # a multiple of 8
    assert len(filled(places[:64], 100)) == 64


def test_batches_of_savi_masks_have_few_sizes():
    """Each size is a set of memory blocks that the allocator keeps."""
    config = model_config("tiny", input_size=112)
    spec = MaskSpec("savi", config.time_steps, config.grid)
    rng, plain, rounded = np.random.default_rng(0), set(), set()
    for epoch in range(40):
        salient = rng.random((32, spec.n_tokens)) < rng.uniform(0.2, 0.8, (32, 1))
        mask = torch.from_numpy(draw_masks(spec, sample_keys(0, epoch, np.arange(32)), salient))
        sizes = []
        for tokens in (~mask, mask):
            places = tokens.flatten().nonzero()[:, 0]
            sizes.append((len(places), len(filled(places, mask.numel()))))
        longest = int((~mask).sum(1).max())
        packing = Packing.of((~mask).sum(1), sizes[0][1])
        plain.add((sizes[0][0], sizes[1][0], longest))
        rounded.add((sizes[0][1], sizes[1][1], packing.longest))
    assert len(plain) > 35  # of 40
    assert len(rounded) <= 8


def test_linear_layers_see_few_sizes():
    """oneDNN keeps what it compiles for each size of a product, between blocks that are free."""
    model = small_model(input_size=112, patch_size=8)  # 784 tokens a clip
    sizes, n_visible = set(), set()
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda _, x, __, n=name: sizes.add((n, len(x[0]))))
    for seed in range(12):
        spec = MaskSpec("savi", model.config.time_steps, model.config.grid)
        rng = np.random.default_rng(seed)
        salient = rng.random((4, spec.n_tokens)) < rng.uniform(0.3, 0.5)
        mask = torch.from_numpy(draw_masks(spec, sample_keys(seed, 0, np.arange(4)), salient))
        n_visible.add(int((~mask).sum()))
        with torch.no_grad():
            model(clips_for(model.config, 4), mask)
    assert len(n_visible) > 8
    per_layer = {name: {n for other, n in sizes if other == name} for name, _ in sizes}
    assert "encoder_to_decoder" in per_layer
    assert max(map(len, per_layer.values())) <= 3


@pytest.mark.parametrize(
    ("kind", "decoder_mask_ratio", "n"), [("savi", 0.5, 5), ("savi", 0.0, 1), ("tube", 0.0, 3)]
)
def test_filler_changes_neither_losses_nor_gradients(monkeypatch, kind, decoder_mask_ratio, n):
    clips, mask = clips_for(SMALL, n), masks_for(SMALL, n, kind)
    decoded = decoded_for(SMALL, mask, decoder_mask_ratio)
    found = []
    for fill in (filled, lambda places, *_: places):
        monkeypatch.setattr("savimae.model.videomae.filled", fill)
        model = small_model()
        output = model(clips, mask, decoded)
        output.loss.backward()
        found.append((output, [each.grad for each in model.parameters()]))
    (ours, gradients), (plain, expected) = found
    assert ours.prediction.shape == plain.prediction.shape
    assert torch.allclose(ours.token_losses, plain.token_losses, atol=1e-6)
    for ours_of_one, expected_of_one in zip(gradients, expected, strict=True):
        assert torch.allclose(ours_of_one, expected_of_one, atol=1e-6)


# -------------------------------------------------------------------------------- arithmetic


def test_flops_of_base():
    # Multiply-adds forward at 160 visible tokens, in G: patch embedding 0.19, encoder 13.59 linear
    # and 0.47 attention, projection 0.05, decoder 11.10 and 7.55, head 0.83. Backward twice that.
    flops = step_flops(model_config("base"), [160], [1408])
    assert flops == pytest.approx(
        6e9 * (0.19 + 13.59 + 0.47 + 0.05 + 11.10 + 7.55 + 0.83), rel=1e-3
    )
    assert step_flops(model_config("base"), [160, 160], [1408, 1408]) == 2 * flops
