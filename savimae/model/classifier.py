"""A video classifier on a pretrained encoder.

Legend: B clips, N tokens of a clip, D width of the encoder, L its depth, K classes, W width of what
the last layer sees: D, or D times the time steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from savimae.model.config import VideoMAEConfig
from savimae.model.videomae import LAYER_NORM_EPS, Encoder, initialize, time_means

POOLS = ("mean", "time")


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """What the last layer of a classifier sees. The defaults are the published classifier's."""

    pool: str = "mean"  # of all tokens; or "time": one mean for each time step
    standardize: bool = False  # each value, over the clips of training

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ValueError(f"pool {self.pool!r} is not one of {', '.join(POOLS)}")

    def width(self, config: VideoMAEConfig) -> int:
        """W."""
        return config.encoder_dim * (config.time_steps if self.pool == "time" else 1)


class VideoClassifier(nn.Module):
    """Encoder of all tokens, their means, a norm and a linear layer.

    Args:
        config: shape of the encoder; what it says of a decoder plays no role.
        n_classes: K.
        head_scale: the initial weights of the last layer are multiplied with it.
        head: what the last layer sees.
    """

    def __init__(
        self,
        config: VideoMAEConfig,
        n_classes: int,
        head_scale: float = 0.001,
        head: HeadConfig = HeadConfig(),
    ):
        super().__init__()
        self.config = config
        self.pool = head.pool
        width = head.width(config)
        self.encoder = Encoder(config, has_norm=False)
        self.fc_norm = nn.LayerNorm(config.encoder_dim, eps=LAYER_NORM_EPS)
        self.standardize = Standardize(width) if head.standardize else nn.Identity()
        self.head = nn.Linear(width, n_classes)
        self.apply(initialize)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        with torch.no_grad():
            self.head.weight *= head_scale

    def forward(
        self, clips: Tensor, branches: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """Clips `[B, T, H, W, C]`, uint8 or float in 0 to 1 -> logits float `[B, K]`.

        Args:
            branches: float `[L, 2, B]`, see `drop_path_branches`; None: nothing is dropped.
            features: float `[B, W]`, see `dropout_features`; None: nothing is dropped.
        """
        steps = self.config.time_steps if self.pool == "time" else 1
        pooled = self.fc_norm(time_means(self.encoder.whole(clips, branches), steps))
        pooled = self.standardize(pooled.flatten(1))  # [B, steps, D] -> [B, W]
        return self.head(pooled if features is None else pooled * features)

    def load_encoder(self, state: Mapping[str, Tensor]) -> None:
        """Take the encoder of a pretrained VideoMAE; its last norm is replaced by `fc_norm`."""
        prefix = "encoder."
        encoder = {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix) and not name.startswith("encoder.norm.")
        }
        self.encoder.load_state_dict(encoder)


class Standardize(nn.Module):
    """Batch normalisation without weights (Ioffe and Szegedy, 2015): mean 0, deviation 1.

    In training over the clips of a batch; otherwise, and where a batch ends up with a single clip,
    with running means and variances of training. Clips that look much alike differ in a small part
    of their features: without this the last layer sees nearly the same for all of them, and learns
    nothing for a long time.
    """

    MOMENTUM = 0.1
    EPS = 1e-5

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, features: Tensor) -> Tensor:
        """Float `[B, W]` -> the same standardised."""
        return F.batch_norm(
            features, self.mean, self.variance,
            training=self.training and len(features) > 1, momentum=self.MOMENTUM, eps=self.EPS,
        )  # fmt: skip
