"""Randomness without a generator: hashes of (seed, epoch, index of the sample, purpose).

What is drawn for a sample depends on nothing else: not on the batch, the workers, the ranks, what
was drawn before, or whether the run was interrupted.
"""

from __future__ import annotations

import functools

import numpy as np

# SplitMix64 (Steele, Lea, Flood 2014): the step of its counter and the multipliers of its mixer.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

# Purposes: streams of their own for each kind of draw.
ORDER, CLIP_START, CROP, FLIP, REPLACEMENT = (np.uint64(n) for n in range(1, 6))
ERASING, PARTNER, MIXING, DROP_PATH, DROPOUT = (np.uint64(n) for n in range(6, 11))
DECODER_START, REPEAT, TIES, BALANCE = (np.uint64(n) for n in range(11, 15))


def sample_keys(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """Keys of samples: uint64 `[B]`, from int `[B]` indices into the list of videos."""
    key = mix(np.full(len(indices), seed & (2**64 - 1), np.uint64) + GOLDEN)
    key = mix((key ^ np.uint64(epoch)) + GOLDEN)
    return mix((key ^ np.asarray(indices).astype(np.uint64)) + GOLDEN)


def repeat_keys(keys: np.ndarray, repeat: int) -> np.ndarray:
    """Keys of the `repeat` samples of each loaded clip: uint64 `[B]` -> `[B * repeat]`.

    The first sample of a clip has the clip's own key; the others follow it.
    """
    numbers = np.arange(repeat, dtype=np.uint64)
    others = mix(hashes(keys, REPEAT)[:, None] + numbers * GOLDEN)  # [B, repeat]
    return np.where(numbers == 0, keys[:, None], others).reshape(-1)


def mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's output function: uint64 -> uint64, every input bit reaches every output bit."""
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


def hashes(keys: np.ndarray, purpose: np.uint64) -> np.ndarray:
    """uint64 `[B]` for one purpose, from the keys of samples, uint64 `[B]`."""
    return mix(mix(keys ^ mix(np.full(1, purpose) * GOLDEN)) + GOLDEN)


def uniform(key: np.uint64, purpose: np.uint64, n: int = 1) -> np.ndarray:
    """`n` numbers in [0, 1) for one sample, float64 `[n]`."""
    first = hashes(np.full(1, key, np.uint64), purpose)
    values = mix(first + np.arange(n, dtype=np.uint64) * GOLDEN)
    return (values >> np.uint64(11)).astype(np.float64) / 2.0**53


def integer_below(limit: int, key: np.uint64, purpose: np.uint64) -> int:
    """A number from 0 to `limit` - 1 for one sample."""
    return int(uniform(key, purpose)[0] * limit)


@functools.lru_cache(maxsize=2)  # every step of an epoch asks for it
def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order in which an epoch takes its `n` samples: a permutation, read-only int64 `[n]`."""
    order = np.argsort(hashes(sample_keys(seed, epoch, np.arange(n)), ORDER), kind="stable")
    order.flags.writeable = False
    return order
