"""Shape of a model, the sizes with a name, and the work that a training step takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from savimae.system.sizes import FrameSize, Sides, frame_size, recorded_size, sides

GRAY, CHANNELS = 1, 3  # of pixels: gray, RGB
# (encoder dim, depth, heads), (decoder dim, heads)
SIZES = {
    "tiny": ((192, 12, 3), (96, 3)),
    "small": ((384, 12, 6), (192, 3)),
    "base": ((768, 12, 12), (384, 6)),
    "large": ((1024, 24, 16), (512, 8)),
    "huge": ((1280, 32, 16), (640, 8)),
}
LATER = ("channels", "pixel_mean", "pixel_std")  # fields that older files lack
PUBLISHED = "pretrain_videomae_"  # published names: PUBLISHED, a size, patch and image size


@dataclasses.dataclass(frozen=True)
class VideoMAEConfig:
    """Shape of a model; the defaults are base."""

    input_size: FrameSize = 224
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
    channels: int = CHANNELS  # of pixels: 3, RGB; 1, gray
    # What pixels in 0 to 1 are normalised with, for each channel. None: see `pixel_statistics` in
    # videomae.py.
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "input_size", frame_size(self.input_size))
        except ValueError as error:
            raise ValueError(f"input_size: {error}") from None
        if self.channels not in (GRAY, CHANNELS):
            raise ValueError(f"channels must be {GRAY} or {CHANNELS}, not {self.channels}")
        if (self.pixel_mean is None) != (self.pixel_std is None):
            raise ValueError("pixel_mean and pixel_std go together; give both")
        for name, fits in (("pixel_mean", _is_mean), ("pixel_std", _is_deviation)):
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) != self.channels or not all(map(fits, values)):
                wanted = "above 0 and at most 1" if name == "pixel_std" else "of 0 to 1"
                raise ValueError(
                    f"{name} {','.join(map(str, values))}: {self.channels} numbers {wanted} are "
                    "wanted, one for each channel"
                )
            object.__setattr__(self, name, tuple(map(float, values)))  # JSON has lists
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ValueError(f"{field.name} must be at least 1, not {value}")
        if any(side % self.patch_size for side in self.sides):
            raise ValueError(
                f"input_size {self.input_size} is not a multiple of patch_size {self.patch_size}"
            )
        for whole, part in (
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
    def sides(self) -> Sides:
        """Of a frame: H, W in pixels."""
        return sides(self.input_size)

    @property
    def grid(self) -> Sides:
        """H_p, W_p, in patches."""
        return Sides(*(side // self.patch_size for side in self.sides))

    @property
    def time_steps(self) -> int:
        return self.num_frames // self.tubelet_size

    @property
    def n_tokens(self) -> int:
        return self.time_steps * self.grid.height * self.grid.width

    @property
    def token_values(self) -> int:
        """Pixel values of a token: t * P * P * C."""
        return self.tubelet_size * self.patch_size**2 * self.channels

    def recorded(self) -> dict[str, Any]:
        """All fields, as checkpoints and settings hold them.

        Those that came later are left out at their defaults: older runs and files lack them.
        """
        fields = {**dataclasses.asdict(self), "input_size": recorded_size(self.input_size)}
        for name in ("pixel_mean", "pixel_std"):
            fields[name] = None if fields[name] is None else list(fields[name])  # as JSON has it
        for field in dataclasses.fields(self):
            if field.name in LATER and fields[field.name] == field.default:
                del fields[field.name]
        return fields


def _is_mean(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value) and 0 <= value <= 1


def _is_deviation(value: Any) -> bool:
    return _is_mean(value) and value > 0


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
        fields = {"patch_size": _number(rest[0][5:], name), "input_size": _number(rest[1], name)}
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
