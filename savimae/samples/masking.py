"""Which tokens the encoder does not see: random, tube, savi and savi-tube masks.

Legend: B clips, N tokens of a clip = time steps x H_p x W_p in (time, row, column) order.
A mask is bool `[B, N]`, True = masked: hidden from the encoder, to be reconstructed.

What is drawn for a clip depends on its key alone, that is on (seed, epoch, index of the sample),
and not on the batch, the workers, the ranks or what was drawn before: the random score of token n
of a clip is a hash of (key, n). The tokens of a group are masked in the order of their scores.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from savimae.samples.randomness import DECODER_START, GOLDEN, hashes, mix

SALIENT_KINDS = ("savi", "savi-tube")
KINDS = (*SALIENT_KINDS, "tube", "random")


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """What kind of mask, how much of it, for which grid of tokens."""

    kind: str = "savi"
    time_steps: int = 8  # num_frames / tubelet_size
    grid_size: int = 14  # H_p = W_p
    ratio: float = 0.9  # masked share; random and tube
    salient_ratio: float = 0.85  # masked share of the salient tokens; savi and savi-tube
    nonsalient_ratio: float = 0.95  # of the others
    decoder_ratio: float = 0.0  # masked tokens that are not reconstructed (VideoMAE V2: 0.5)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"mask type {self.kind!r} is not one of {', '.join(KINDS)}")
        for name in ("ratio", "salient_ratio", "nonsalient_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is not between 0 and 1")
        if not 0 <= self.decoder_ratio < 1:
            raise ValueError(f"decoder_mask_ratio {self.decoder_ratio} is not in [0, 1)")
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
        return self.kind in SALIENT_KINDS

    @property
    def is_tube(self) -> bool:
        return self.kind in ("tube", "savi-tube")


def refuse_idle_ratios(
    kind: str, ratio: float | None, salient_ratio: float | None, nonsalient_ratio: float | None
) -> None:
    """Raises ValueError for a ratio that was given and that masks of this kind do not have."""
    if kind not in KINDS:  # `MaskSpec` says so
        return
    if kind in SALIENT_KINDS and ratio is not None:
        raise ValueError(
            f"--mask-ratio has no effect on {kind} masks; give --salient-mask-ratio and "
            "--nonsalient-mask-ratio, or --mask-type tube or random"
        )
    for name, value in (("salient", salient_ratio), ("nonsalient", nonsalient_ratio)):
        if kind not in SALIENT_KINDS and value is not None:
            raise ValueError(
                f"--{name}-mask-ratio has no effect on {kind} masks; give --mask-ratio, or "
                "--mask-type savi or savi-tube"
            )


def draw_masks(spec: MaskSpec, keys: np.ndarray, saliency: np.ndarray | None = None) -> np.ndarray:
    """Masks of a batch: bool `[B, N]`, True = masked.

    Args:
        spec: kind, ratios and grid.
        keys: uint64 `[B]`, from `randomness.sample_keys`.
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


def draw_decoded(spec: MaskSpec, keys: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The masked tokens that are reconstructed: bool `[B, N]`.

    All of them; or with `decoder_ratio` a share: the running cells of VideoMAE V2 (Wang et al.,
    2023, arXiv:2303.16727). In each 2 x 2 cell of patches round(4 * (1 - ratio)) positions (at
    least one) are kept, and move one step around the cell from each time step to the next. Where
    they start is drawn for each clip, so that every token is reconstructed sooner or later. A clip
    of which nothing would be left is reconstructed whole.

    Args:
        keys: uint64 `[B]`, as of `draw_masks`.
        mask: bool `[B, N]`, True = masked, what `draw_masks` returned.
    """
    if spec.decoder_ratio == 0:
        return mask
    starts = hashes(keys, DECODER_START) >> np.uint64(62)  # the highest two bits: 0 to 3
    kept = mask & running_cells(spec, starts.astype(np.int64))
    return np.where(kept.any(1, keepdims=True), kept, mask)


def running_cells(spec: MaskSpec, starts: np.ndarray) -> np.ndarray:
    """Tokens that `draw_decoded` keeps, whatever the mask: bool `[B, N]`, from starts int `[B]`."""
    n_kept = max(1, round(4 * (1 - spec.decoder_ratio)))
    around = np.array([[0, 1], [3, 2]])  # clockwise
    index = np.arange(spec.grid_size) % 2
    place = around[index[:, None], index[None, :]].reshape(-1)  # [H_p, W_p] -> [positions]
    phase = starts[:, None] + np.arange(spec.time_steps)  # [B, time]
    # [B, time, positions] -> [B, N]
    return ((place + phase[:, :, None]) % 4 < n_kept).reshape(len(starts), -1)


def _draw(
    first: np.ndarray, keys: np.ndarray, first_ratio: float, other_ratio: float
) -> np.ndarray:
    """Mask shares of two groups: `first` bool `[B, M]` is the one, the rest the other."""
    n_clips, n = first.shape
    scores = mix(keys[:, None] + np.arange(1, n + 1, dtype=np.uint64) * GOLDEN)
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


def token_saliency(patches: np.ndarray, tubelet_size: int) -> np.ndarray:
    """Salient tokens of a clip: bool `[N]`, where any of a token's frames has its patch salient.

    Args:
        patches: of the clip's frames, `[num_frames, H_p, W_p]`, nonzero = salient.
        tubelet_size: consecutive clip frames of a token.
    """
    # [num_frames, H_p, W_p] -> [time, t, H_p, W_p] -> [time, H_p, W_p] -> [N]
    by_token = (patches != 0).reshape(-1, tubelet_size, *patches.shape[1:])
    return by_token.any(1).reshape(-1)
