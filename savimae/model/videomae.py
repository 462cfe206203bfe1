"""VideoMAE in plain PyTorch (Tong et al., 2022, arXiv:2203.12602; V2: Wang et al., 2023).

Legend: B clips, T frames, t tubelet size, P patch size, N = T/t * (H/P) * (W/P) tokens of a clip in
(time, row, column) order, D width, C channels of a pixel: 3, RGB, or 1, gray. M masked tokens and
V visible tokens of the whole batch.
Masks are bool `[B, N]`, True = masked: hidden from the encoder, to be reconstructed.

Visible tokens of a batch are kept in one packed `[V, D]`, clip after clip, so clips may show
different numbers of tokens and no linear layer works on padding between them. Only attention needs
them apart; see `attend`. A few filler rows behind the last clip round V and M up; see `filled`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from savimae.model.attention import PRODUCTS, Packing, attend, filled, received
from savimae.model.config import GRAY, VideoMAEConfig, model_config
from savimae.model.loss import targets, token_losses, unit_float

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Of gray: ImageNet's weighted like luma, 0.299 R + 0.587 G + 0.114 B. The mean is exact; the
# deviation is that of channels that change together, the most it can be.
GRAY_MEAN = (0.459,)  # 0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406 = 0.4590
GRAY_STD = (0.226,)  # 0.299 * 0.229 + 0.587 * 0.224 + 0.114 * 0.225 = 0.2256
LAYER_NORM_EPS = 1e-6


@dataclasses.dataclass
class VideoMAEOutput:
    """The result of a forward pass. M tokens were reconstructed, in (clip, token) order.

    `loss` is the mean of this batch. A mean over several batches (accumulation steps, ranks) weighs
    every token alike if it adds up `loss_sum` and `n_values` and divides once.
    """

    prediction: Tensor  # float32 [M, t*P*P*C]
    target: Tensor  # float32 [M, t*P*P*C]
    token_losses: Tensor  # float32 [M], mean squared error of each token
    decoded: Tensor  # bool [B, N], the reconstructed tokens
    loss_sum: Tensor  # sum of squared errors, a scalar with a gradient
    n_values: int  # values in the sum

    @property
    def loss(self) -> Tensor:
        """Mean squared error over all reconstructed tokens of this batch."""
        return self.loss_sum / self.n_values


class VideoMAE(nn.Module):
    """Encoder of the visible tokens, decoder of the masked ones.

    Parameter names are those of published checkpoints; positions are fixed and not stored.
    """

    decoder_positions: Tensor

    def __init__(self, config: VideoMAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.encoder_to_decoder = nn.Linear(config.encoder_dim, config.decoder_dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_dim))
        self.decoder = Decoder(config)
        positions = sinusoid_positions(config.n_tokens, config.decoder_dim)
        self.register_buffer("decoder_positions", positions, persistent=False)
        self.apply(initialize)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, clips: Tensor, mask: Tensor, decoded: Tensor | None = None) -> VideoMAEOutput:
        """Reconstruct masked tokens of a batch. Training needs less; see `losses`.

        Args:
            clips: `[B, T, H, W, C]`, uint8 (0 to 255) or float (0 to 1). T may be less than the
                model's, a multiple of the tubelet size: N is less then, and positions are those of
                the first tokens.
            mask: bool `[B, N]`, True = masked; at least one visible token a clip.
            decoded: bool `[B, N]`, the masked tokens that are reconstructed; None: all of them.

        Raises:
            ValueError: clips or masks do not fit the model.
        """
        decoded = mask if decoded is None else decoded
        tokens, wanted, predicted = self._predict(clips, mask, decoded)
        m = int(decoded.sum())
        prediction = predicted.float()
        target = targets(tokens[wanted], self.config.norm_target, self.config.channels)
        errors = (prediction - target).square()
        return VideoMAEOutput(
            prediction[:m], target[:m], errors.detach().mean(1)[:m], decoded,
            errors[:m].sum(), m * self.config.token_values,
        )  # fmt: skip

    def losses(
        self, clips: Tensor, mask: Tensor, decoded: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same without the pictures: what a training step needs, faster. Arguments as above.

        Returns:
            The sum of squared errors, a scalar with a gradient, and the mean squared error of each
            reconstructed token, float32 `[M]`, in (clip, token) order.
        """
        decoded = mask if decoded is None else decoded
        tokens, wanted, predicted = self._predict(clips, mask, decoded)
        return token_losses(tokens, wanted, predicted, int(decoded.sum()), self.config)

    def _predict(
        self, clips: Tensor, mask: Tensor, decoded: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels of all tokens `[B * N, t*P*P*C]`, int64 `[rows]` which of them were predicted, and
        the predictions `[rows, t*P*P*C]`. Rows behind the M decoded tokens are filler.
        """
        n = tokens_of(clips, self.config)
        self._check(n, clips, mask, decoded)
        tokens = self.patchify(clips)

        visible = (~mask).flatten().nonzero()[:, 0]  # [V], in (clip, token) order
        lengths = (~mask).sum(1)
        rounded = filled(visible, mask.numel())
        encoded = self.encoder(tokens[rounded], rounded % n, lengths)
        projected = self.encoder_to_decoder(encoded)[: len(visible)]
        projected = projected + self.decoder_positions[visible % n].to(projected.dtype)

        # Decoder input in token order: visible tokens where they belong, mask tokens elsewhere.
        in_decoder = ~mask | decoded
        n_in_decoder = in_decoder.sum(1)
        places = in_decoder.flatten().nonzero()[:, 0]
        if len(places) < mask.numel():  # the decoder masks too
            places = filled(places, mask.numel())
        hidden = (self.mask_token[0] + self.decoder_positions[places % n]).to(projected.dtype)
        row_of = torch.cumsum(in_decoder.flatten(), 0) - 1  # token -> its row in `hidden`
        hidden = hidden.index_copy(0, row_of[visible], projected)

        wanted = decoded.flatten().nonzero()[:, 0]  # [M]
        wanted = filled(wanted, mask.numel())
        return tokens, wanted, self.decoder(hidden, n_in_decoder, row_of[wanted])

    def encode(self, clips: Tensor, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Features of unmasked clips: tokens float `[B, N, D]` and their mean `[B, D]`.

        Args:
            clips: `[B, T, H, W, C]`, uint8 or float in 0 to 1.
            layer: what comes out of block 1 to L, before any norm; None: of the last norm.

        Raises:
            ValueError: clips that do not fit the model, or no such block.
        """
        features = self.encoder.whole(clips, layer=layer)
        return features, features.mean(1)

    def patchify(self, clips: Tensor) -> Tensor:
        """Clips -> tokens of the same dtype: `[B, T, H, W, C]` -> `[B * N, t*P*P*C]`."""
        return patchify(clips, self.config)

    def _check(self, n: int, clips: Tensor, mask: Tensor, decoded: Tensor) -> None:
        for name, given in (("mask", mask), ("decoded", decoded)):
            if given.dtype != torch.bool or tuple(given.shape) != (len(clips), n):
                raise ValueError(
                    f"{name} is {given.dtype} {list(given.shape)}, the model wants bool "
                    f"[{len(clips)}, {n}]"
                )
        if not (~mask).any(1).all():
            raise ValueError("a clip of this batch shows no token")
        if not mask.any():
            raise ValueError("this batch masks no token: there is nothing to reconstruct")
        if (decoded & ~mask).any() or not decoded.any():
            raise ValueError("decoded tokens must be masked ones, at least one of a batch")


class Encoder(nn.Module):
    """Patch embedding, transformer blocks, norm.

    Args:
        has_norm: without, the last norm is left to what follows, as in fine-tuned models.

    Attributes:
        attention: how attention is computed on CPUs, one of `attention.WAYS`.
    """

    positions: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: VideoMAEConfig, has_norm: bool = True):
        super().__init__()
        self.config = config
        self.attention = PRODUCTS
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(
            Block(config.encoder_dim, config.encoder_heads) for _ in range(config.encoder_depth)
        )
        norm = nn.LayerNorm(config.encoder_dim, eps=LAYER_NORM_EPS)
        self.norm: nn.Module = norm if has_norm else nn.Identity()
        for name, value in (
            ("positions", sinusoid_positions(config.n_tokens, config.encoder_dim)),
            ("pixel_mean", torch.tensor(pixel_statistics(config)[0])),
            ("pixel_std", torch.tensor(pixel_statistics(config)[1])),
        ):
            self.register_buffer(name, value, persistent=False)

    def freeze(self, n_blocks: int) -> None:
        """Let the patch embedding and the first blocks keep their weights; 0 blocks: nothing.

        No gradient is asked for up to there, so that nothing is kept for a backward pass either:
        frozen blocks cost what they cost in a test.

        Raises:
            ValueError: more blocks than there are.
        """
        if not 0 <= n_blocks <= len(self.blocks):
            raise ValueError(f"{n_blocks} frozen blocks; the encoder has {len(self.blocks)}")
        for module in (self.patch_embed, *self.blocks[:n_blocks]) if n_blocks else ():
            module.requires_grad_(False)

    def forward(
        self,
        tokens: Tensor,
        places: Tensor,
        lengths: Tensor,
        branches: Tensor | None = None,
        layer: int | None = None,
    ) -> Tensor:
        """Packed tokens of clips with these lengths `[B]` -> features `[V, D]`.

        Rows behind the last clip are filler: their results mean nothing.

        Args:
            tokens: pixels `[V, t*P*P*C]`, uint8 or float in 0 to 1.
            places: of the tokens in their clip, int `[V]`, 0 to N - 1.
            branches: float `[depth, 2, B]`, what the residual branches (attention, MLP) of each
                block are multiplied with for each clip: stochastic depth. None: 1.
            layer: stop after so many blocks, without the norm; None: after all, with it.
        """
        hidden = self._embed(tokens)
        hidden = hidden + self.positions[places].to(hidden.dtype)
        packing = Packing.of(lengths, len(hidden), self.attention)
        if branches is not None:  # [depth, 2, B] -> [depth, 2, rows]
            branches = branches.repeat_interleave(lengths, 2)
        return self._encode(hidden, packing, branches, layer)

    def _embed(self, tokens: Tensor) -> Tensor:
        """Pixels `[V, t*P*P*C]` -> `[V, D]`, without positions."""
        pixels = unit_float(tokens).view(-1, self.config.channels)
        pixels = ((pixels - self.pixel_mean) / self.pixel_std).view(tokens.shape[0], -1)
        embedded: Tensor = self.patch_embed(pixels)
        return embedded

    def _encode(
        self, hidden: Tensor, packing: Packing, branches: Tensor | None, layer: int | None
    ) -> Tensor:
        """Packed `[V, D]` through the blocks, and the norm; `branches` `[depth, 2, V]`."""
        if branches is not None:
            branches = branches[..., None].to(hidden.dtype)
        blocks = self.blocks if layer is None else self.blocks[:layer]
        hidden = _run_blocks(blocks, hidden, packing, self.config.checkpoint_activations, branches)
        return self.norm(hidden) if layer is None else hidden

    def whole(
        self, clips: Tensor, branches: Tensor | None = None, layer: int | None = None
    ) -> Tensor:
        """Features of all tokens of unmasked clips `[B, T, H, W, C]`: float32 `[B, N, D]`.

        Raises:
            ValueError: clips that do not fit the model, or no such block.
        """
        self._check_layer(layer)
        return self._whole(clips, branches, layer)

    def received_attention(self, clips: Tensor, layer: int | None = None) -> Tensor:
        """What the encoder looks at in unmasked clips `[B, T, H, W, C]`: float32 `[B, heads, N]`.

        The attention that a token receives in each head of block `layer` (None: the last), the mean
        over the queries of its clip; see `attention.received`. A clip's mean over tokens is 1 / N.

        Raises:
            ValueError: as `whole`.
        """
        self._check_layer(layer)
        before = (layer or len(self.blocks)) - 1
        block: Any = self.blocks[before]
        hidden = self._whole(clips, layer=before)
        qkv = block.attn.project(block.norm1(hidden))
        return torch.stack([received(each, block.attn.heads) for each in qkv])

    def _check_layer(self, layer: int | None) -> None:
        if layer is not None and not 1 <= layer <= len(self.blocks):
            raise ValueError(f"layer {layer} is not one of 1 to {len(self.blocks)}")

    def _whole(
        self, clips: Tensor, branches: Tensor | None = None, layer: int | None = None
    ) -> Tensor:
        """As `whole`; layer 0 is what goes into the first block."""
        check_clips(clips, self.config)
        n_clips, n = clips.shape[0], self.config.n_tokens  # `len` would fix it in an export
        hidden = self._embed(patchify(clips, self.config)).unflatten(0, (n_clips, n))
        hidden = (hidden + self.positions.to(hidden.dtype)).flatten(0, 1)
        if branches is not None:  # [depth, 2, B] -> [depth, 2, B * N]
            branches = branches.repeat_interleave(n, 2)
        packing = Packing.whole(n_clips, n, self.attention)
        encoded = self._encode(hidden, packing, branches, layer)
        return encoded.unflatten(0, (n_clips, n)).float()


class Decoder(nn.Module):
    """Transformer blocks, norm, and a linear layer to pixels.

    Attributes:
        attention: how attention is computed on CPUs, one of `attention.WAYS`.
    """

    def __init__(self, config: VideoMAEConfig):
        super().__init__()
        self.attention = PRODUCTS
        self.blocks = nn.ModuleList(
            Block(config.decoder_dim, config.decoder_heads) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(config.decoder_dim, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(config.decoder_dim, config.token_values)
        self.checkpoint_activations = config.checkpoint_activations

    def forward(self, hidden: Tensor, lengths: Tensor, wanted: Tensor) -> Tensor:
        """Packed tokens `[rows, D]` -> pixels `[M, t*P*P*C]` of the rows `wanted` `[M]`."""
        packing = Packing.of(lengths, len(hidden), self.attention)
        hidden = _run_blocks(self.blocks, hidden, packing, self.checkpoint_activations)
        return self.head(self.norm(hidden.index_select(0, wanted)))


class PatchEmbed(nn.Module):
    """The published convolution over tubelets, as a linear layer on tokens."""

    def __init__(self, config: VideoMAEConfig):
        super().__init__()
        size = (config.tubelet_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.channels, config.encoder_dim, size, stride=size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[V, t*P*P*C]` in (t, row, column, channel) order -> `[V, D]`."""
        # [D, C, t, P, P] -> [D, t, P, P, C] -> [D, t*P*P*C]
        weight = self.proj.weight.permute(0, 2, 3, 4, 1).flatten(1)
        return F.linear(tokens, weight, self.proj.bias)


class Block(nn.Module):
    """Pre-norm transformer block on packed tokens."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = MLP(dim)

    def forward(self, hidden: Tensor, packing: Packing, branches: Tensor | None) -> Tensor:
        """Packed tokens `[rows, D]`; `branches` `[2, rows, 1]` multiplies attention and MLP."""
        if branches is None:
            hidden = hidden + self.attn(self.norm1(hidden), packing)
            return hidden + self.mlp(self.norm2(hidden))
        hidden = hidden + branches[0] * self.attn(self.norm1(hidden), packing)
        return hidden + branches[1] * self.mlp(self.norm2(hidden))


class Attention(nn.Module):
    """Multi-head self-attention within each clip; the key projection has no bias."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, hidden: Tensor, packing: Packing) -> Tensor:
        return self.proj(attend(self.project(hidden), self.heads, packing))

    def project(self, hidden: Tensor) -> Tensor:
        """Queries, keys and values: `[…, D]` -> `[…, 3D]`."""
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        return F.linear(hidden, self.qkv.weight, bias)


class MLP(nn.Module):
    """Two linear layers with GELU (erf) between, four times as wide inside."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden)))


# ---------------------------------------------------------------------------------- attention


def _run_blocks(
    blocks: nn.ModuleList,
    hidden: Tensor,
    packing: Packing,
    checkpoint_activations: bool,
    branches: Tensor | None = None,
) -> Tensor:
    for index, block in enumerate(blocks):
        rows = None if branches is None else branches[index]
        if checkpoint_activations and hidden.requires_grad:
            hidden = checkpoint(block, hidden, packing, rows, use_reentrant=False)
        else:
            hidden = block(hidden, packing, rows)
    return hidden


# -------------------------------------------------------------------------------- definitions


def patchify(clips: Tensor, config: VideoMAEConfig) -> Tensor:
    """Clips -> tokens of the same dtype: `[B, T, H, W, C]` -> `[B * N, t*P*P*C]`."""
    t, p = config.tubelet_size, config.patch_size
    rows, columns = config.grid
    # [B, T, H, W, C] -> [B, T/t, t, H/P, P, W/P, P, C] -> [B, T/t, H/P, W/P, t, P, P, C]
    parts = clips.reshape(clips.shape[0], -1, t, rows, p, columns, p, config.channels)
    return parts.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, config.token_values)


def pixel_statistics(config: VideoMAEConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixels in 0 to 1 for each channel, that the input is normalised with.

    Those of the config, else ImageNet's, of gray by its luma.
    """
    if config.pixel_mean is not None and config.pixel_std is not None:
        return config.pixel_mean, config.pixel_std
    return (GRAY_MEAN, GRAY_STD) if config.channels == GRAY else (IMAGENET_MEAN, IMAGENET_STD)


def time_means(tokens: Tensor, steps: int) -> Tensor:
    """Means of a clip's tokens in equal parts of its time: `[B, N, D]` -> `[B, steps, D]`."""
    # [B, N, D], in the order of time -> [B, steps, N / steps, D]
    return tokens.unflatten(1, (steps, -1)).mean(2)


def check_clips(clips: Tensor, config: VideoMAEConfig) -> None:
    """Raises ValueError for clips that are not `[B, T, H, W, C]` with the model's sizes."""
    expected = (config.num_frames, *config.sides, config.channels)
    if clips.ndim != 5 or tuple(clips.shape[1:]) != expected:
        raise ValueError(f"clips are {list(clips.shape)}, the model wants [B, *{list(expected)}]")


def tokens_of(clips: Tensor, config: VideoMAEConfig) -> int:
    """N of clips `[B, T, H, W, C]`, of the model's length or shorter.

    Raises:
        ValueError: clips with other sizes, or of a part of a tubelet.
    """
    shape, t = config, config.tubelet_size
    n_frames = clips.shape[1] if clips.ndim == 5 else 0
    if 0 < n_frames < config.num_frames and n_frames % t == 0:
        shape = dataclasses.replace(config, num_frames=n_frames)
    check_clips(clips, shape)
    return shape.n_tokens


def sinusoid_positions(n: int, dim: int) -> Tensor:
    """Fixed positions float32 `[n, dim]`: pos / 10000^(2 floor(j/2) / dim), sine for even j.

    Vaswani et al., 2017, on the one-dimensional token index; computed in float64.
    """
    exponent = 2 * torch.div(torch.arange(dim, dtype=torch.float64), 2, rounding_mode="floor") / dim
    angles = torch.arange(n, dtype=torch.float64)[:, None] / 10000**exponent
    return torch.where(torch.arange(dim) % 2 == 0, angles.sin(), angles.cos()).float()


def initialize(module: nn.Module) -> None:
    """Xavier-uniform linear layers (the patch embedding is one), zero biases."""
    if isinstance(module, nn.Linear | nn.Conv3d):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def build_model(name: str, **changes: object) -> VideoMAE:
    """A freshly initialised model by size or published name; see `model_config`."""
    return VideoMAE(model_config(name, **changes))
