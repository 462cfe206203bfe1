"""Which tokens the encoder does not see: random, tube, savi and savi-tube masks.

Legend: B clips, H_p, W_p patches down and across, N tokens of a clip = time steps x H_p x W_p in
(time, row, column) order.
A mask is bool `[B, N]`, True = masked: hidden from the encoder, to be reconstructed.

What is drawn for a clip depends on its key alone, that is on (seed, epoch, index of the sample),
and not on the batch, the workers, the ranks or what was drawn before: the random score of token n
of a clip is a hash of (key, n). The tokens of a group are masked in the order of their scores.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from savimae.samples.randomness import DECODER_START, GOLDEN, TIES, hashes, mix
from savimae.system.sizes import FrameSize, frame_size, sides

SALIENT_KINDS = ("savi", "savi-tube")
KINDS = (*SALIENT_KINDS, "tube", "random")
DECODED = ("all", "salient")


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """What kind of mask, how much of it, for which grid of tokens."""

    mask_type: str = "savi"
    time_steps: int = 8  # num_frames / tubelet_size
    grid_size: FrameSize = 14  # H_p = W_p, or both
    mask_ratio: float = 0.9  # masked share; random and tube
    salient_mask_ratio: float = 0.85  # masked share of the salient tokens; savi and savi-tube
    nonsalient_mask_ratio: float = 0.95  # of the others
    visible_tokens: int | None = None  # tokens that every clip shows; None: what the ratios give
    decoder_mask_ratio: float = 0.0  # masked tokens that are not reconstructed (VideoMAE V2: 0.5)
    decode: str = "all"  # or "salient": of the masked tokens only these are reconstructed

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid_size", frame_size(self.grid_size))
        if self.mask_type not in KINDS:
            raise ValueError(f"mask type {self.mask_type!r} is not one of {', '.join(KINDS)}")
        for name in ("mask_ratio", "salient_mask_ratio", "nonsalient_mask_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is not between 0 and 1")
        if not 0 <= self.decoder_mask_ratio < 1:
            raise ValueError(f"decoder_mask_ratio {self.decoder_mask_ratio} is not in [0, 1)")
        if self.visible_tokens is not None:
            self._check_visible(self.visible_tokens)
        if self.decode not in DECODED:
            raise ValueError(f"decode {self.decode!r} is not one of {', '.join(DECODED)}")
        if self.decode != "all" and self.decoder_mask_ratio:
            raise ValueError("--decode salient and --decoder-mask-ratio both choose; give one")
        if self.n_tokens < 2:
            raise ValueError("a clip of one token has nothing to see or nothing to reconstruct")
        if self.is_tube and self.n_positions < 2:
            raise ValueError(f"{self.mask_type} masks need more than one patch a frame")

    def _check_visible(self, n: int) -> None:
        if not self.uses_saliency:
            raise ValueError(_no_equal_count(self.mask_type))
        if not 0 < n < self.n_tokens:
            raise ValueError(f"--visible-tokens {n} is not between 1 and {self.n_tokens - 1}")
        if self.is_tube and n % self.time_steps:
            raise ValueError(
                f"--visible-tokens {n} is not a multiple of the {self.time_steps} time steps, over "
                f"which {self.mask_type} masks are the same"
            )

    def of_time_steps(self, time_steps: int) -> MaskSpec:
        """The same for clips of fewer time steps; `visible_tokens` shrink with them."""
        visible = self.visible_tokens
        if visible is not None:  # of tube kinds a multiple of the time steps, before and after
            visible = max(1, visible * time_steps // self.time_steps)
        return dataclasses.replace(self, time_steps=time_steps, visible_tokens=visible)

    def salient_share(self, salient: np.ndarray) -> float:
        """Share of the salient tokens of a clip, bool `[N]`; of tube kinds of the positions."""
        if not self.is_tube:
            return float(salient.mean())
        return float(salient.reshape(self.time_steps, -1).any(0).mean())

    def equal_count(self, salient_share: float) -> int:
        """Visible tokens of a clip with this share of salient tokens (savi-tube: positions)."""
        visible = salient_share * (1 - self.salient_mask_ratio)
        visible += (1 - salient_share) * (1 - self.nonsalient_mask_ratio)
        per_time = self.time_steps if self.is_tube else 1
        n = self.n_tokens // per_time
        return min(max(round(visible * n), 1), n - 1) * per_time

    @property
    def n_positions(self) -> int:
        rows, columns = sides(self.grid_size)
        return rows * columns

    @property
    def n_tokens(self) -> int:
        return self.time_steps * self.n_positions

    @property
    def uses_saliency(self) -> bool:
        return self.mask_type in SALIENT_KINDS

    @property
    def is_tube(self) -> bool:
        return self.mask_type in ("tube", "savi-tube")


def _no_equal_count(kind: str) -> str:
    return (
        f"--equal-count and --visible-tokens have no effect on {kind} masks, of which every clip "
        "shows the same number; give --mask-ratio"
    )


def refuse_idle_ratios(
    kind: str,
    ratio: float | None,
    salient_mask_ratio: float | None,
    nonsalient_mask_ratio: float | None,
    is_equal_count: bool = False,
) -> None:
    """Raises ValueError for what was given and has no effect on masks of this kind."""
    if kind not in KINDS:  # `MaskSpec` says so
        return
    if kind not in SALIENT_KINDS and is_equal_count:
        raise ValueError(_no_equal_count(kind))
    if kind in SALIENT_KINDS and ratio is not None:
        raise ValueError(
            f"--mask-ratio has no effect on {kind} masks; give --salient-mask-ratio and "
            "--nonsalient-mask-ratio, or --mask-type tube or random"
        )
    for name, value in (("salient", salient_mask_ratio), ("nonsalient", nonsalient_mask_ratio)):
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

    With `visible_tokens` every clip shows so many: salient and other ones in the proportion that
    the ratios give, as nearly as whole numbers, and how many there are, allow.

    Raises:
        ValueError: saliency missing or of another shape.
    """
    n_clips = len(keys)
    salient = np.zeros((n_clips, spec.n_tokens), bool)
    first_ratio = other_ratio = spec.mask_ratio
    if spec.uses_saliency:
        if saliency is None or saliency.shape != salient.shape:
            found = None if saliency is None else saliency.shape
            raise ValueError(f"{spec.mask_type} masks need saliency {salient.shape}, not {found}")
        salient = saliency.astype(bool)
        first_ratio, other_ratio = spec.salient_mask_ratio, spec.nonsalient_mask_ratio
    if not spec.is_tube:
        return _draw(salient, keys, first_ratio, other_ratio, spec.visible_tokens)
    # [B, N] -> [B, time, positions] -> [B, positions]
    by_time = salient.reshape(n_clips, spec.time_steps, spec.n_positions)
    positions = np.logical_or.reduce(by_time, axis=1)
    n_visible = None if spec.visible_tokens is None else spec.visible_tokens // spec.time_steps
    drawn = _draw(positions, keys, first_ratio, other_ratio, n_visible)
    return np.tile(drawn, (1, spec.time_steps))  # [B, positions] -> [B, N]


def draw_decoded(
    spec: MaskSpec,
    keys: np.ndarray,
    mask: np.ndarray,
    saliency: np.ndarray | None = None,
    padding: np.ndarray | None = None,
) -> np.ndarray:
    """The masked tokens that are reconstructed: bool `[B, N]`.

    All of them; or with `decoder_mask_ratio` a share: the running cells of VideoMAE V2 (Wang et
    al., 2023, arXiv:2303.16727). In each 2 x 2 cell of patches round(4 * (1 - ratio)) positions (at
    least one) are kept, and move one step around the cell from each time step to the next. Where
    they start is drawn for each clip, so that every token is reconstructed sooner or later. Or only
    the salient ones (as EVEREST decodes what changes; Hwang et al., 2024). A clip of which nothing
    would be left is reconstructed whole. Padding never is, unless a clip hides nothing else.

    Args:
        keys: uint64 `[B]`, as of `draw_masks`.
        mask: bool `[B, N]`, True = masked, what `draw_masks` returned.
        saliency: bool `[B, N]`, the salient tokens, where only these are reconstructed.
        padding: bool `[B, N]`, tokens beside the video; None: there are none.

    Raises:
        ValueError: saliency missing.
    """
    mask = without_padding(mask, padding)
    if spec.decode == "salient":
        if saliency is None:
            raise ValueError("to reconstruct salient tokens needs saliency")
        return _unless_empty(mask & saliency, mask)
    if spec.decoder_mask_ratio == 0:
        return mask
    starts = hashes(keys, DECODER_START) >> np.uint64(62)  # the highest two bits: 0 to 3
    return _unless_empty(mask & running_cells(spec, starts.astype(np.int64)), mask)


def without_padding(mask: np.ndarray, padding: np.ndarray | None) -> np.ndarray:
    """The masked tokens that are of the video: bool `[B, N]`; of a clip that has none, all.

    Args:
        padding: as of `draw_decoded`.
    """
    return mask if padding is None else _unless_empty(mask & ~padding, mask)


def _unless_empty(kept: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """`kept` bool `[B, N]`; of clips where that is nothing, `otherwise`."""
    return np.where(kept.any(1, keepdims=True), kept, otherwise)


def running_cells(spec: MaskSpec, starts: np.ndarray) -> np.ndarray:
    """Tokens that `draw_decoded` keeps, whatever the mask: bool `[B, N]`, from starts int `[B]`."""
    n_kept = max(1, round(4 * (1 - spec.decoder_mask_ratio)))
    around = np.array([[0, 1], [3, 2]])  # clockwise
    rows, columns = (np.arange(n) % 2 for n in sides(spec.grid_size))
    place = around[rows[:, None], columns[None, :]].reshape(-1)  # [H_p, W_p] -> [positions]
    phase = starts[:, None] + np.arange(spec.time_steps)  # [B, time]
    # [B, time, positions] -> [B, N]
    return ((place + phase[:, :, None]) % 4 < n_kept).reshape(len(starts), -1)


def _draw(
    first: np.ndarray,
    keys: np.ndarray,
    first_ratio: float,
    other_ratio: float,
    n_visible: int | None,
) -> np.ndarray:
    """Mask shares of two groups: `first` bool `[B, M]` is the one, the rest the other."""
    n_clips, n = first.shape
    scores = mix(keys[:, None] + np.arange(1, n + 1, dtype=np.uint64) * GOLDEN)
    # The highest bit is the group, so one sort puts `first` in front, each group in random order.
    scores >>= np.uint64(1)
    scores |= (~first).astype(np.uint64) << np.uint64(63)
    order = np.argsort(scores, axis=1)

    n_first = first.sum(1)
    if n_visible is None:
        masked_first, masked_other = _masked_counts(n_first, n, first_ratio, other_ratio)
    else:
        shown = _shown_of_first(n_first, n, first_ratio, other_ratio, n_visible)
        masked_first, masked_other = n_first - shown, n - n_first - (n_visible - shown)

    place = np.arange(n)
    sorted_mask = (place < masked_first[:, None]) | (
        (place >= n_first[:, None]) & (place < (n_first + masked_other)[:, None])
    )
    masks = np.empty((n_clips, n), bool)
    np.put_along_axis(masks, order, sorted_mask, axis=1)
    return masks


def _masked_counts(
    n_first: np.ndarray, n: int, first_ratio: float, other_ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """Masked members of both groups, int `[B]` each, from the size of the first, int `[B]`."""
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
    return masked_first, masked_other


def _shown_of_first(
    n_first: np.ndarray, n: int, first_ratio: float, other_ratio: float, n_visible: int
) -> np.ndarray:
    """How many of the `n_visible` tokens of a clip are of the first group, int `[B]`."""
    of_first = n_first * (1 - first_ratio)
    of_both = of_first + (n - n_first) * (1 - other_ratio)
    # Ratios of 1 show nothing: then each group shows its share of the clip.
    share = np.where(of_both > 0, of_first / np.where(of_both > 0, of_both, 1), n_first / n)
    wanted = np.rint(n_visible * share).astype(np.int64)
    return np.clip(wanted, np.maximum(n_visible - (n - n_first), 0), np.minimum(n_first, n_visible))


def _floor_share(ratio: float, counts: np.ndarray) -> np.ndarray:
    """floor(ratio * n) for every count; 0.85 * 20 is 17, although floats say 16.999…."""
    return np.floor(ratio * counts + 1e-9).astype(np.int64)


def token_scores(patches: np.ndarray, tubelet_size: int) -> np.ndarray:
    """Scores of a clip's tokens: uint16 `[N]`, the sum over a token's frames.

    Args:
        patches: scores of the clip's frames, uint8 `[num_frames, H_p, W_p]`.
        tubelet_size: consecutive clip frames of a token, at most 257.
    """
    by_token = patches.reshape(-1, tubelet_size, *patches.shape[1:])
    return by_token.sum(1, dtype=np.uint16).reshape(-1)


def most_salient(scores: np.ndarray, share: float, key: np.uint64) -> np.ndarray:
    """The floor(share * N) tokens of a clip with the highest scores: bool `[N]`.

    Among equal scores those with the smallest hash of (key, token) come first, so that the choice
    is random and the same every time.

    Args:
        scores: uint16 `[N]`.
        key: of the sample, from `randomness.sample_keys`.
    """
    n = len(scores)
    first = hashes(np.full(1, key, np.uint64), TIES)
    ties = mix(first + np.arange(1, n + 1, dtype=np.uint64) * GOLDEN)
    order = np.lexsort((ties, -scores.astype(np.int64)))
    chosen = np.zeros(n, bool)
    chosen[order[: int(_floor_share(share, np.array(n)))]] = True
    return chosen


def token_saliency(patches: np.ndarray, tubelet_size: int) -> np.ndarray:
    """Salient tokens of a clip: bool `[N]`, where any of a token's frames has its patch salient.

    Args:
        patches: of the clip's frames, `[num_frames, H_p, W_p]`, nonzero = salient.
        tubelet_size: consecutive clip frames of a token.
    """
    # [num_frames, H_p, W_p] -> [time, t, H_p, W_p] -> [time, H_p, W_p] -> [N]
    by_token = (patches != 0).reshape(-1, tubelet_size, *patches.shape[1:])
    return by_token.any(1).reshape(-1)
