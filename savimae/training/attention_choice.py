"""How attention is computed in a run on CPUs: what is fastest is measured when a run begins.

It is kept in the run's settings, so that a resumed run adds up the same numbers in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from savimae.model.attention import FUSED, PRODUCTS, WAYS, Packing, attend

AUTO = "auto"
FEW_SCORES = 2**20  # of a batch: nothing to gain, so that nothing is left to chance
SCORES = 2**24  # of a trial, about: more clips are left out
TRIALS = 5  # of each way, after one that only warms up
BUDGET_S = 0.8  # for each part of a model
# The fused kernel keeps no scores. Written-out products must be so much faster to be worth theirs;
# where both are about equal, the choice does not hang on chance either.
WORTH_THE_MEMORY = 1.15


class AttentionShape(NamedTuple):
    """Attention of a part of a model in one batch."""

    lengths: Tensor  # rows of each clip, int [B]
    dim: int
    heads: int


def choose_ways(shapes: Mapping[str, AttentionShape], dtype: torch.dtype) -> dict[str, str]:
    """The parts of a model whose attention is better not written out, with their way.

    Args:
        shapes: of the parts, by name; see `use_ways`.
        dtype: of queries, keys and values.

    Prints what was measured, a line for each part. Parts with few scores are not measured.
    """
    ways = {}
    for part, shape in shapes.items():
        if shape.heads * int(shape.lengths.square().sum()) < FEW_SCORES:
            continue
        seconds = trial(shape, dtype)
        way = PRODUCTS if seconds[PRODUCTS] * WORTH_THE_MEMORY < seconds[FUSED] else FUSED
        if way != PRODUCTS:
            ways[part] = way
        times = ", ".join(f"{name} {1e3 * seconds[name]:.1f} ms" for name in WAYS)
        print(f"attention of the {part}: {way} ({times})", flush=True)
    return ways


def ways_of(asked: str, parts: Sequence[str], found: Mapping[str, str]) -> dict[str, str]:
    """The ways of a run: what the user asked for, or what was found."""
    if asked == AUTO:
        return dict(found)
    return {} if asked == PRODUCTS else dict.fromkeys(parts, asked)


def check_ways(ways: object, parts: Sequence[str]) -> None:
    """Raises ValueError unless these are ways of some of the parts, as `choose_ways` answers."""
    is_known = isinstance(ways, dict) and set(ways) <= set(parts) and set(ways.values()) <= {*WAYS}
    if not is_known:
        raise ValueError(f"attention is {ways!r}")


def use_ways(model: nn.Module, ways: Mapping[str, str]) -> None:
    """Let the parts of a model (its `encoder`, its `decoder`) compute attention in these ways."""
    for part, way in ways.items():
        model.get_submodule(part).attention = way  # type: ignore[assignment]


def trial(shape: AttentionShape, dtype: torch.dtype) -> dict[str, float]:
    """Least seconds of a forward and backward pass in each way; the ways take turns.

    The least, because what else a machine does can only add to it.
    """
    most = max(1, SCORES // (shape.heads * int(shape.lengths.max()) ** 2))
    lengths = shape.lengths[:most]
    n_rows = int(lengths.sum())
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(n_rows, 3 * shape.dim, generator=generator).to(dtype).requires_grad_()
    gradient = torch.randn(n_rows, shape.dim, generator=generator).to(dtype)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    begin = time.perf_counter()
    for number in range(1 + TRIALS):
        for way in WAYS:
            packing = Packing.of(lengths, n_rows, way)
            start = time.perf_counter()
            attend(qkv, shape.heads, packing).backward(gradient)
            if number:
                seconds[way].append(time.perf_counter() - start)
        if number and time.perf_counter() - begin > BUDGET_S:
            break
    return {way: min(each) for way, each in seconds.items()}
