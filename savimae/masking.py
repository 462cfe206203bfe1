"""Which tokens the encoder does not see: random, tube, savi and savi-tube masks.

Legend: B clips, N tokens of a clip = time steps x H_p x W_p in (time, row, column) order.
A mask is bool `[B, N]`, True = masked: hidden from the encoder, to be reconstructed.

What is drawn for a clip depends on its key alone, that is on (seed, epoch, index of the sample),
and not on the batch, the workers, the ranks or what was drawn before: the random score of token n
of a clip is a hash of (key, n). The tokens of a group are masked in the order of their scores.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from savimae.arrays import load_array
from savimae.errors import SavimaeError, shown

KINDS = ("savi", "savi-tube", "tube", "random")

# SplitMix64 (Steele, Lea, Flood 2014): the step of its counter and the multipliers of its mixer.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """What kind of mask, how much of it, for which grid of tokens."""

    kind: str = "savi"
    time_steps: int = 8  # num_frames / tubelet_size
    grid_size: int = 14  # H_p = W_p
    ratio: float = 0.9  # masked share; random and tube
    salient_ratio: float = 0.85  # masked share of the salient tokens; savi and savi-tube
    nonsalient_ratio: float = 0.95  # of the others

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"mask type {self.kind!r} is not one of {', '.join(KINDS)}")
        for name in ("ratio", "salient_ratio", "nonsalient_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is not between 0 and 1")
        if self.n_tokens < 2:
            raise ValueError("a clip of one token has nothing to see or nothing to reconstruct")
        if self.is_tube and self.n_positions < 2:
            raise ValueError(f"{self.kind} masks need more than one patch a frame")

    @property
    def n_positions(self) -> int:
        return self.grid_size**2

    @property
    def n_tokens(self) -> int:
        return self.time_steps * self.n_positions

    @property
    def uses_saliency(self) -> bool:
        return self.kind in ("savi", "savi-tube")

    @property
    def is_tube(self) -> bool:
        return self.kind in ("tube", "savi-tube")


def sample_keys(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """Keys of samples: uint64 `[B]`, from int `[B]` indices into the list of videos."""
    key = _mix(np.full(len(indices), seed & (2**64 - 1), np.uint64) + _GOLDEN)
    key = _mix((key ^ np.uint64(epoch)) + _GOLDEN)
    return _mix((key ^ np.asarray(indices).astype(np.uint64)) + _GOLDEN)


def _mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's output function: uint64 -> uint64, every input bit reaches every output bit."""
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


def draw_masks(spec: MaskSpec, keys: np.ndarray, saliency: np.ndarray | None = None) -> np.ndarray:
    """Masks of a batch: bool `[B, N]`, True = masked.

    Args:
        spec: kind, ratios and grid.
        keys: uint64 `[B]`, from `sample_keys`.
        saliency: bool `[B, N]`, the salient tokens; for savi and savi-tube, ignored otherwise.

    Of a group of n tokens (salient or other; all, for random and tube) floor(ratio * n) are masked,
    drawn uniformly without replacement. Tube kinds draw positions, a position being salient where
    any of its tokens is, and mask them at every time step. At least one token of a clip stays
    visible and one is masked.

    Raises:
        ValueError: saliency missing or of another shape.
    """
    n_clips = len(keys)
    salient = np.zeros((n_clips, spec.n_tokens), bool)
    first_ratio = other_ratio = spec.ratio
    if spec.uses_saliency:
        if saliency is None or saliency.shape != salient.shape:
            found = None if saliency is None else saliency.shape
            raise ValueError(f"{spec.kind} masks need saliency {salient.shape}, not {found}")
        salient = saliency.astype(bool)
        first_ratio, other_ratio = spec.salient_ratio, spec.nonsalient_ratio
    if not spec.is_tube:
        return _draw(salient, keys, first_ratio, other_ratio)
    # [B, N] -> [B, time, positions] -> [B, positions]
    by_time = salient.reshape(n_clips, spec.time_steps, spec.n_positions)
    positions = np.logical_or.reduce(by_time, axis=1)
    drawn = _draw(positions, keys, first_ratio, other_ratio)
    return np.tile(drawn, (1, spec.time_steps))  # [B, positions] -> [B, N]


def _draw(
    first: np.ndarray, keys: np.ndarray, first_ratio: float, other_ratio: float
) -> np.ndarray:
    """Mask shares of two groups: `first` bool `[B, M]` is the one, the rest the other."""
    n_clips, n = first.shape
    scores = _mix(keys[:, None] + np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN)
    # The highest bit is the group, so one sort puts `first` in front, each group in random order.
    scores >>= np.uint64(1)
    scores |= (~first).astype(np.uint64) << np.uint64(63)
    order = np.argsort(scores, axis=1)

    n_first = first.sum(1)
    masked_first = _floor_share(first_ratio, n_first)
    masked_other = _floor_share(other_ratio, n - n_first)
    # Never all: one more visible token, a salient one where there is one.
    everything = masked_first + masked_other == n
    masked_first -= everything & (n_first > 0)
    masked_other -= everything & (n_first == 0)
    # Never none: one masked token, not a salient one where there are others.
    nothing = masked_first + masked_other == 0
    masked_other += nothing & (n_first < n)
    masked_first += nothing & (n_first == n)

    place = np.arange(n)
    sorted_mask = (place < masked_first[:, None]) | (
        (place >= n_first[:, None]) & (place < (n_first + masked_other)[:, None])
    )
    masks = np.empty((n_clips, n), bool)
    np.put_along_axis(masks, order, sorted_mask, axis=1)
    return masks


def _floor_share(ratio: float, counts: np.ndarray) -> np.ndarray:
    """floor(ratio * n) for every count; 0.85 * 20 is 17, although floats say 16.999…."""
    return np.floor(ratio * counts + 1e-9).astype(np.int64)


def token_saliency(array: np.ndarray, frame_indices: np.ndarray, tubelet_size: int) -> np.ndarray:
    """Salient tokens of a clip: bool `[N]`, where any of a token's frames has its patch salient.

    Args:
        array: the video's array, `[T, H_p, W_p]`, nonzero = salient.
        frame_indices: int `[num_frames]`, the clip's frames in the video.
        tubelet_size: consecutive clip frames of a token.

    Raises:
        IndexError: a frame past the end of the array.
    """
    # [num_frames, H_p, W_p] -> [time, t, H_p, W_p] -> [time, H_p, W_p] -> [N]
    frames = array[frame_indices] != 0
    return frames.reshape(-1, tubelet_size, *array.shape[1:]).any(1).reshape(-1)


def load_token_saliency(
    path: str, frame_indices: np.ndarray, grid_size: int, tubelet_size: int
) -> np.ndarray:
    """`token_saliency` from the array at `path`, which must fit the clip and the model.

    Raises:
        SavimaeError: no file, not an array, another grid, or fewer frames than the clip needs; the
            file and the remedy are named.
    """
    array = load_array(path)
    if array.ndim != 3 or array.shape[1:] != (grid_size, grid_size):
        raise SavimaeError(
            f"{shown(path)}: holds {list(array.shape)}, the model wants [T, {grid_size}, "
            f"{grid_size}]; preprocess again with the model's --input-size and --patch-size"
        )
    last = int(np.max(frame_indices))
    if last >= len(array):
        raise SavimaeError(
            f"{shown(path)}: has {len(array)} frames, the clip needs frame {last}; it was made "
            "from another version of the video, preprocess it again"
        )
    return token_saliency(array, frame_indices, tubelet_size)


def expected_visible(spec: MaskSpec, salient_share: float) -> float:
    """Visible tokens of a clip on average, for a share of salient tokens (tube: positions)."""
    n = spec.n_positions if spec.is_tube else spec.n_tokens
    if spec.uses_saliency:
        salient = salient_share * n
        visible = n - spec.salient_ratio * salient - spec.nonsalient_ratio * (n - salient)
    else:
        visible = n - math.floor(spec.ratio * n)
    return visible * (spec.time_steps if spec.is_tube else 1)
