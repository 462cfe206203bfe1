"""VideoMAE in plain PyTorch (Tong et al., 2022, arXiv:2203.12602; V2: Wang et al., 2023).

Legend: B clips, T frames, t tubelet size, P patch size, N = T/t * (H/P) * (W/P) tokens of a clip in
(time, row, column) order, D width. M masked tokens and V visible tokens of the whole batch.
Masks are bool `[B, N]`, True = masked: hidden from the encoder, to be reconstructed.

Visible tokens of a batch are kept in one packed `[V, D]`, clip after clip, so clips may show
different numbers of tokens and no linear layer works on padding between them. Only attention needs
them apart; see `attend`. A few filler rows behind the last clip round V and M up; see `filled`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LAYER_NORM_EPS = 1e-6
TARGET_EPS = 1e-6
LENGTH_MULTIPLE = 8  # of the padded lengths of clips
CHANNELS = 3

# (encoder dim, depth, heads), (decoder dim, heads)
SIZES = {
    "tiny": ((192, 12, 3), (96, 3)),
    "small": ((384, 12, 6), (192, 3)),
    "base": ((768, 12, 12), (384, 6)),
    "large": ((1024, 24, 16), (512, 8)),
    "huge": ((1280, 32, 16), (640, 8)),
}
PUBLISHED = "pretrain_videomae_"  # published names: PUBLISHED, a size, patch and image size


@dataclasses.dataclass(frozen=True)
class VideoMAEConfig:
    """Shape of a model; the defaults are base."""

    image_size: int = 224
    num_frames: int = 16
    patch_size: int = 16
    tubelet_size: int = 2
    encoder_dim: int = 768
    encoder_depth: int = 12
    encoder_heads: int = 12
    decoder_dim: int = 384
    decoder_depth: int = 4
    decoder_heads: int = 6
    norm_target: bool = True  # normalise the target per token and channel
    checkpoint_activations: bool = False  # recompute blocks in the backward pass: less memory

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ValueError(f"{field.name} must be at least 1, not {value}")
        for whole, part in (
            ("image_size", "patch_size"),
            ("num_frames", "tubelet_size"),
            ("encoder_dim", "encoder_heads"),
            ("decoder_dim", "decoder_heads"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{whole} {getattr(self, whole)} is not a multiple of {part} "
                    f"{getattr(self, part)}"
                )

    @property
    def grid_size(self) -> int:
        """Patches a side: H_p = W_p."""
        return self.image_size // self.patch_size

    @property
    def time_steps(self) -> int:
        return self.num_frames // self.tubelet_size

    @property
    def n_tokens(self) -> int:
        return self.time_steps * self.grid_size**2

    @property
    def token_values(self) -> int:
        """Pixel values of a token: t * P * P * 3."""
        return self.tubelet_size * self.patch_size**2 * CHANNELS


@dataclasses.dataclass
class VideoMAEOutput:
    """What a forward pass gives; M tokens were reconstructed, in (clip, token) order.

    `loss` is the mean of this batch. A mean over several batches (accumulation steps, ranks) weighs
    every token alike if it adds up `loss_sum` and `n_values` and divides once.
    """

    prediction: Tensor  # float32 [M, t*P*P*3]
    target: Tensor  # float32 [M, t*P*P*3]
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
        """Reconstruct masked tokens of a batch.

        Args:
            clips: `[B, T, H, W, 3]` RGB, uint8 (0 to 255) or float (0 to 1).
            mask: bool `[B, N]`, True = masked; at least one visible token a clip.
            decoded: bool `[B, N]`, the masked tokens that are reconstructed; None: all of them.

        Raises:
            ValueError: clips or masks do not fit the model.
        """
        decoded = mask if decoded is None else decoded
        check_clips(clips, self.config)
        self._check(clips, mask, decoded)
        tokens = self.patchify(clips)
        n = self.config.n_tokens

        visible = (~mask).flatten().nonzero()[:, 0]  # [V], in (clip, token) order
        lengths = (~mask).sum(1)
        rounded = filled(visible, mask.numel())
        encoded = self.encoder(tokens[rounded], rounded % n, lengths)
        projected = self.encoder_to_decoder(encoded)[: len(visible)]
        projected = projected + self.decoder_positions[visible % n].to(projected.dtype)

        # Decoder input in token order: visible tokens where they belong, mask tokens elsewhere.
        shown = ~mask | decoded
        n_shown = shown.sum(1)
        places = shown.flatten().nonzero()[:, 0]
        if len(places) < mask.numel():  # the decoder masks too
            places = filled(places, mask.numel())
        hidden = (self.mask_token[0] + self.decoder_positions[places % n]).to(projected.dtype)
        rank = torch.cumsum(shown.flatten(), 0) - 1  # token -> its row in `hidden`
        hidden = hidden.index_copy(0, rank[visible], projected)

        wanted = decoded.flatten().nonzero()[:, 0]  # [M]
        m = len(wanted)
        wanted = filled(wanted, mask.numel())
        prediction = self.decoder(hidden, n_shown, rank[wanted]).float()
        target = self._target(tokens, wanted)
        errors = (prediction - target).square()
        return VideoMAEOutput(
            prediction[:m], target[:m], errors.detach().mean(1)[:m], decoded,
            errors[:m].sum(), m * self.config.token_values,
        )  # fmt: skip

    def encode(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Features of unmasked clips: tokens float `[B, N, D]` and their mean `[B, D]`.

        Args:
            clips: `[B, T, H, W, 3]` RGB, uint8 or float in 0 to 1.
        """
        features = self.encoder.whole(clips)
        return features, features.mean(1)

    def patchify(self, clips: Tensor) -> Tensor:
        """Clips -> tokens of the same dtype: `[B, T, H, W, 3]` -> `[B * N, t*P*P*3]`."""
        return patchify(clips, self.config)

    def _target(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """Pixels in 0 to 1 of the tokens at `wanted`, normalised: float32 `[M, t*P*P*3]`."""
        pixels = _unit_float(tokens[wanted]).view(len(wanted), -1, CHANNELS)
        if self.config.norm_target:
            pixels = normalize_tokens(pixels)
        return pixels.flatten(1)

    def _check(self, clips: Tensor, mask: Tensor, decoded: Tensor) -> None:
        c = self.config
        for name, given in (("mask", mask), ("decoded", decoded)):
            if given.dtype != torch.bool or tuple(given.shape) != (len(clips), c.n_tokens):
                raise ValueError(
                    f"{name} is {given.dtype} {list(given.shape)}, the model wants bool "
                    f"[{len(clips)}, {c.n_tokens}]"
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
    """

    positions: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: VideoMAEConfig, has_norm: bool = True):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(
            Block(config.encoder_dim, config.encoder_heads) for _ in range(config.encoder_depth)
        )
        norm = nn.LayerNorm(config.encoder_dim, eps=LAYER_NORM_EPS)
        self.norm: nn.Module = norm if has_norm else nn.Identity()
        for name, value in (
            ("positions", sinusoid_positions(config.n_tokens, config.encoder_dim)),
            ("pixel_mean", torch.tensor(IMAGENET_MEAN)),
            ("pixel_std", torch.tensor(IMAGENET_STD)),
        ):
            self.register_buffer(name, value, persistent=False)

    def forward(
        self, tokens: Tensor, places: Tensor, lengths: Tensor, branches: Tensor | None = None
    ) -> Tensor:
        """Packed tokens of clips with these lengths `[B]` -> features `[V, D]`.

        Rows behind the last clip are filler: what comes out of them means nothing.

        Args:
            tokens: pixels `[V, t*P*P*3]`, uint8 or float in 0 to 1.
            places: of the tokens in their clip, int `[V]`, 0 to N - 1.
            branches: float `[depth, 2, B]`, what the residual branches (attention, MLP) of each
                block are multiplied with for each clip: stochastic depth. None: 1.
        """
        pixels = _unit_float(tokens).view(-1, CHANNELS)
        pixels = ((pixels - self.pixel_mean) / self.pixel_std).view(len(tokens), -1)
        hidden = self.patch_embed(pixels)
        hidden = hidden + self.positions[places].to(hidden.dtype)
        return self.norm(
            _run_blocks(self.blocks, hidden, lengths, self.config.checkpoint_activations, branches)
        )

    def whole(self, clips: Tensor, branches: Tensor | None = None) -> Tensor:
        """Features of all tokens of unmasked clips `[B, T, H, W, 3]`: float32 `[B, N, D]`.

        Raises:
            ValueError: clips that do not fit the model.
        """
        check_clips(clips, self.config)
        n_clips, n = len(clips), self.config.n_tokens
        places = torch.arange(n, device=clips.device).repeat(n_clips)
        lengths = torch.full((n_clips,), n, device=clips.device)
        encoded = self(patchify(clips, self.config), places, lengths, branches)
        return encoded.view(n_clips, n, -1).float()


class Decoder(nn.Module):
    """Transformer blocks, norm, and a linear layer to pixels."""

    def __init__(self, config: VideoMAEConfig):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(config.decoder_dim, config.decoder_heads) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(config.decoder_dim, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(config.decoder_dim, config.token_values)
        self.checkpoint_activations = config.checkpoint_activations

    def forward(self, hidden: Tensor, lengths: Tensor, wanted: Tensor) -> Tensor:
        """Packed tokens `[rows, D]` -> pixels `[M, t*P*P*3]` of the rows `wanted` `[M]`."""
        hidden = _run_blocks(self.blocks, hidden, lengths, self.checkpoint_activations, None)
        return self.head(self.norm(hidden.index_select(0, wanted)))


class PatchEmbed(nn.Module):
    """The published convolution over tubelets, as a linear layer on tokens."""

    def __init__(self, config: VideoMAEConfig):
        super().__init__()
        size = (config.tubelet_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(CHANNELS, config.encoder_dim, size, stride=size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[V, t*P*P*3]` in (t, row, column, channel) order -> `[V, D]`."""
        # [D, 3, t, P, P] -> [D, t, P, P, 3] -> [D, t*P*P*3]
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

    def forward(self, hidden: Tensor, layout: Layout, branches: Tensor | None) -> Tensor:
        """Packed tokens `[rows, D]`; `branches` `[2, rows, 1]` multiplies attention and MLP."""
        if branches is None:
            hidden = hidden + self.attn(self.norm1(hidden), layout)
            return hidden + self.mlp(self.norm2(hidden))
        hidden = hidden + branches[0] * self.attn(self.norm1(hidden), layout)
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

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(hidden, self.qkv.weight, bias)
        return self.proj(attend(qkv, self.heads, layout))


class MLP(nn.Module):
    """Two linear layers with GELU (erf) between, four times as wide inside."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden)))


# ---------------------------------------------------------------------------------- attention


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the clips of a packed batch lie: one after the other, `lengths[b]` rows of clip b."""

    n_clips: int
    longest: int  # rows of the longest clip, rounded up if there is padding or filler
    n_taken: int  # rows of all clips; what follows them is filler
    rows: Tensor | None  # [rows], place of each row in [B * longest]; None if it is that row
    key_bias: Tensor | None  # [B, 1, 1, longest], 0 for tokens, -inf for padding; None without

    @classmethod
    def of(cls, lengths: Tensor, n_rows: int) -> Layout:
        """Of clips with these lengths, int `[B]`, in `n_rows` rows."""
        n_clips, longest, n_taken = len(lengths), int(lengths.max()), int(lengths.sum())
        if n_taken == n_rows and bool((lengths == longest).all()):
            return cls(n_clips, longest, n_taken, None, None)
        longest = _round_up(longest, LENGTH_MULTIPLE)
        taken = torch.arange(longest, device=lengths.device) < lengths[:, None]  # [B, longest]
        rows = F.pad(taken.flatten().nonzero()[:, 0], (0, n_rows - n_taken))
        if bool(taken.all()):
            return cls(n_clips, longest, n_taken, rows, None)
        bias = torch.zeros(taken.shape, device=lengths.device).masked_fill(~taken, -math.inf)
        return cls(n_clips, longest, n_taken, rows, bias[:, None, None])

    def unpack(self, packed: Tensor) -> Tensor:
        """`[rows, D]` -> `[B, longest, D]`, zeros behind short clips."""
        if self.rows is not None:
            padded = packed.new_zeros(self.n_clips * self.longest, packed.shape[1])
            packed = padded.index_copy(0, self.rows[: self.n_taken], packed[: self.n_taken])
        return packed.view(self.n_clips, self.longest, -1)

    def pack(self, unpacked: Tensor) -> Tensor:
        """`[B, longest, D]` -> `[rows, D]`."""
        flat = unpacked.reshape(self.n_clips * self.longest, -1)
        return flat if self.rows is None else flat.index_select(0, self.rows)


def filled(places: Tensor, n_tokens: int) -> Tensor:
    """`places` of packed rows, int `[n]`, the first repeated behind until their number is round.

    Clips that show different numbers of tokens make every batch one of another size. oneDNN
    compiles each matrix product for its size and keeps the last 1024 of them, wherever there is
    room at that moment: between large blocks, which then no longer fit where they were. So memory
    grows until 1024 sizes have been seen. Rounded up, the number of rows is one of a few: multiples
    of a power of two, at most 1/64 of the batch's `n_tokens` (8 at least). Every product of a step
    must have such a number of rows.
    """
    multiple = max(8, 2 ** int(math.log2(max(n_tokens / 64, 1))))
    n_filler = _round_up(len(places), multiple) - len(places)
    return torch.cat((places, places[:1].expand(n_filler))) if n_filler else places


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def attend(qkv: Tensor, heads: int, layout: Layout) -> Tensor:
    """Attention of every token to the tokens of its own clip: packed `[rows, 3D]` -> `[rows, D]`.

    On CUDA the fused kernel of PyTorch; on CPUs the products written out, several times faster
    there at these sizes than the fused kernel.
    """
    # [rows, 3D] -> [B, L, 3, heads, d] -> 3 of [B, heads, L, d]
    unpacked = layout.unpack(qkv)
    unpacked = unpacked.view(layout.n_clips, layout.longest, 3, heads, -1)
    query, key, value = unpacked.permute(2, 0, 3, 1, 4).unbind(0)
    bias = None if layout.key_bias is None else layout.key_bias.to(query.dtype)
    if _use_fused_attention(query):
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    else:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if bias is not None:
            scores = scores + bias
        mixed = scores.softmax(-1) @ value
    # [B, heads, L, d] -> [B, L, D] -> [rows, D]
    return layout.pack(mixed.transpose(1, 2).flatten(2))


def _use_fused_attention(query: Tensor) -> bool:
    return query.is_cuda


def _run_blocks(
    blocks: nn.ModuleList,
    hidden: Tensor,
    lengths: Tensor,
    checkpoint_activations: bool,
    branches: Tensor | None,
) -> Tensor:
    layout = Layout.of(lengths, len(hidden))
    for index, block in enumerate(blocks):
        rows = None
        if branches is not None:  # [2, B] -> [2, rows, 1]
            rows = branches[index].repeat_interleave(lengths, 1)[..., None].to(hidden.dtype)
        if checkpoint_activations and hidden.requires_grad:
            hidden = checkpoint(block, hidden, layout, rows, use_reentrant=False)
        else:
            hidden = block(hidden, layout, rows)
    return hidden


# -------------------------------------------------------------------------------- definitions


def patchify(clips: Tensor, config: VideoMAEConfig) -> Tensor:
    """Clips -> tokens of the same dtype: `[B, T, H, W, 3]` -> `[B * N, t*P*P*3]`."""
    t, p, grid = config.tubelet_size, config.patch_size, config.grid_size
    # [B, T, H, W, 3] -> [B, T/t, t, H/P, P, W/P, P, 3] -> [B, T/t, H/P, W/P, t, P, P, 3]
    parts = clips.reshape(len(clips), -1, t, grid, p, grid, p, CHANNELS)
    return parts.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, config.token_values)


def check_clips(clips: Tensor, config: VideoMAEConfig) -> None:
    """Raises ValueError for clips that are not `[B, T, H, W, 3]` with the model's sizes."""
    expected = (config.num_frames, config.image_size, config.image_size, CHANNELS)
    if clips.ndim != 5 or tuple(clips.shape[1:]) != expected:
        raise ValueError(f"clips are {list(clips.shape)}, the model wants [B, *{list(expected)}]")


def sinusoid_positions(n: int, dim: int) -> Tensor:
    """Fixed positions float32 `[n, dim]`: pos / 10000^(2 floor(j/2) / dim), sine for even j.

    Vaswani et al., 2017, on the one-dimensional token index; computed in float64.
    """
    exponent = 2 * torch.div(torch.arange(dim, dtype=torch.float64), 2, rounding_mode="floor") / dim
    angles = torch.arange(n, dtype=torch.float64)[:, None] / 10000**exponent
    return torch.where(torch.arange(dim) % 2 == 0, angles.sin(), angles.cos()).float()


def normalize_tokens(pixels: Tensor) -> Tensor:
    """`(x - mean) / (sqrt(unbiased variance) + 1e-6)` per channel of float `[M, pixels, 3]`."""
    variance, mean = torch.var_mean(pixels, dim=1, keepdim=True)
    return (pixels - mean) / (variance.sqrt() + TARGET_EPS)


def _unit_float(tokens: Tensor) -> Tensor:
    """Pixel values as float32 in 0 to 1."""
    return tokens.float() / 255 if tokens.dtype == torch.uint8 else tokens.float()


def initialize(module: nn.Module) -> None:
    """Xavier-uniform linear layers (the patch embedding is one), zero biases."""
    if isinstance(module, nn.Linear | nn.Conv3d):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def model_config(name: str, **changes: object) -> VideoMAEConfig:
    """The configuration of a size or published name (`pretrain_videomae_base_patch16_224`).

    Args:
        changes: fields of VideoMAEConfig that differ from the size's own.

    Raises:
        ValueError: an unknown name, with the known ones.
    """
    fields: dict[str, object] = {}
    size = name
    if name.startswith(PUBLISHED):
        size, *rest = name.removeprefix(PUBLISHED).split("_")
        if len(rest) != 2 or not rest[0].startswith("patch"):
            raise ValueError(_unknown(name))
        fields = {"patch_size": _number(rest[0][5:], name), "image_size": _number(rest[1], name)}
    if size not in SIZES:
        raise ValueError(_unknown(name))
    (dim, depth, heads), (decoder_dim, decoder_heads) = SIZES[size]
    shape = {
        "encoder_dim": dim, "encoder_depth": depth, "encoder_heads": heads,
        "decoder_dim": decoder_dim, "decoder_heads": decoder_heads,
    }  # fmt: skip
    return VideoMAEConfig(**{**shape, **fields, **changes})  # type: ignore[arg-type]


def describe(config: VideoMAEConfig) -> str:
    """What size a model is, in words: "a small model (384 wide, 12 deep)"."""
    encoder = (config.encoder_dim, config.encoder_depth, config.encoder_heads)
    decoder = (config.decoder_dim, config.decoder_heads)
    size = next((name for name, (known, _) in SIZES.items() if known == encoder), None)
    numbers = f"{config.encoder_dim} wide, {config.encoder_depth} deep"
    if size is None:
        numbers += f", {config.encoder_heads} heads"
    if size is None or decoder != SIZES[size][1]:
        numbers += f"; decoder {config.decoder_dim} wide, {config.decoder_heads} heads"
    return f"a {size} model ({numbers})" if size else f"a model of no known size ({numbers})"


def build_model(name: str, **changes: object) -> VideoMAE:
    """A freshly initialised model by size or published name; see `model_config`."""
    return VideoMAE(model_config(name, **changes))


def _number(text: str, name: str) -> int:
    if not text.isdecimal():
        raise ValueError(_unknown(name))
    return int(text)


def _unknown(name: str) -> str:
    return (
        f"unknown model {name!r}; choose one of {', '.join(SIZES)}, or a published name such as "
        "pretrain_videomae_base_patch16_224"
    )


def step_flops(config: VideoMAEConfig, visible: Sequence[int], decoded: Sequence[int]) -> float:
    """Floating point operations of a training step: 2 a multiply-add, backward twice the forward.

    Args:
        visible, decoded: visible and reconstructed tokens of each clip.
    """
    c = config
    total = 0
    for n_visible, n_decoded in zip(visible, decoded, strict=True):
        rows = n_visible + n_decoded
        total += n_visible * c.token_values * c.encoder_dim
        total += c.encoder_depth * _block_multiplications(n_visible, c.encoder_dim)
        total += n_visible * c.encoder_dim * c.decoder_dim
        total += c.decoder_depth * _block_multiplications(rows, c.decoder_dim)
        total += n_decoded * c.decoder_dim * c.token_values
    return 2.0 * 3.0 * total


def _block_multiplications(n: int, dim: int) -> int:
    """qkv, proj and MLP are 12 n D^2 multiply-adds; the two products of attention 2 n^2 D."""
    return 12 * n * dim**2 + 2 * n**2 * dim
