"""Attention within the clips of a packed batch, and how clips are packed.

Legend: B clips, L rows of the longest clip, D width, d width of a head.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

LENGTH_MULTIPLE = 8  # of the padded lengths of clips
# Ways to compute attention on CPUs, the same within rounding. Which one is faster depends on the
# processor, the precision and the lengths.
PRODUCTS = "products"  # two matrix products and a softmax between, written out; keeps its scores
FUSED = "fused"  # PyTorch's kernel, which keeps no scores: much less memory for long clips
WAYS = (PRODUCTS, FUSED)
RECEIVED_ROWS = 256  # queries whose scores are in memory at a time: 1.5 MiB of 1568 tokens


@dataclasses.dataclass(frozen=True)
class Packing:
    """Where the clips of a packed batch lie: one after the other, `lengths[b]` rows of clip b."""

    n_clips: int
    longest: int  # rows of the longest clip, rounded up if there is padding or filler
    n_taken: int  # rows of all clips; what follows them is filler
    rows: Tensor | None  # [rows], place of each row in [B * longest]; None if it is that row
    key_bias: Tensor | None  # [B, 1, 1, longest], 0 for tokens, -inf for padding; None without
    way: str = PRODUCTS  # one of WAYS; GPUs always take the fused kernel

    @classmethod
    def of(cls, lengths: Tensor, n_rows: int, way: str = PRODUCTS) -> Packing:
        """Of clips with these lengths, int `[B]`, in `n_rows` rows."""
        n_clips, longest, n_taken = len(lengths), int(lengths.max()), int(lengths.sum())
        if n_taken == n_rows and bool((lengths == longest).all()):
            return cls(n_clips, longest, n_taken, None, None, way)
        longest = _round_up(longest, LENGTH_MULTIPLE)
        taken = torch.arange(longest, device=lengths.device) < lengths[:, None]  # [B, longest]
        rows = F.pad(taken.flatten().nonzero()[:, 0], (0, n_rows - n_taken))
        if bool(taken.all()):
            return cls(n_clips, longest, n_taken, rows, None, way)
        bias = torch.zeros(taken.shape, device=lengths.device).masked_fill(~taken, -math.inf)
        return cls(n_clips, longest, n_taken, rows, bias[:, None, None], way)

    @classmethod
    def whole(cls, n_clips: int, n_tokens: int, way: str = PRODUCTS) -> Packing:
        """Of clips that all have so many rows, without a look at values."""
        return cls(n_clips, n_tokens, n_clips * n_tokens, None, None, way)

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
    """`places` of packed rows, int `[n]`; the first is repeated at the end, up to a round number.

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


def attend(qkv: Tensor, heads: int, packing: Packing) -> Tensor:
    """Attention of every token to those of its own clip: packed `[rows, 3D]` -> `[rows, D]`."""
    # [rows, 3D] -> [B, L, 3, heads, d] -> 3 of [B, heads, L, d]
    unpacked = packing.unpack(qkv)
    unpacked = unpacked.view(packing.n_clips, packing.longest, 3, heads, -1)
    query, key, value = unpacked.permute(2, 0, 3, 1, 4).unbind(0)
    bias = None if packing.key_bias is None else packing.key_bias.to(query.dtype)
    if packing.way == FUSED or query.is_cuda:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    else:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if bias is not None:
            scores = scores + bias
        mixed = scores.softmax(-1) @ value
    # [B, heads, L, d] -> [B, L, D] -> [rows, D]
    return packing.pack(mixed.transpose(1, 2).flatten(2))


def received(qkv: Tensor, heads: int) -> Tensor:
    """Attention that each token of a clip receives, the mean over all queries: `[heads, N]`.

    With `a[h, i, j] = softmax over j of q[h, i] . k[h, j] / sqrt(d)`, as `attend` weighs values
    (Vaswani et al., 2017, section 3.2), it is the mean of `a[h, i, j]` over i; its sum over j is 1.
    Scores are float32 whatever the autocast, sums over queries float64. Only some rows of one head
    are in memory at a time, so a clip of N tokens does not take N * N * heads values.

    Args:
        qkv: queries, keys and values of one clip, `[N, 3D]`.

    Returns:
        float32.
    """
    n_tokens = len(qkv)
    # [N, 3D] -> [N, 3, heads, d] -> 2 of [heads, N, d]
    query, key, _ = qkv.float().view(n_tokens, 3, heads, -1).permute(1, 2, 0, 3).unbind(0)
    sums = torch.zeros(heads, n_tokens, dtype=torch.float64, device=qkv.device)
    with torch.autocast(qkv.device.type, enabled=False):
        for head in range(heads):
            keys = key[head].T * query.shape[-1] ** -0.5
            for rows in query[head].split(RECEIVED_ROWS):
                sums[head] += (rows @ keys).softmax(-1).sum(0, dtype=torch.float64)
    return (sums / n_tokens).float()
