"""A video classifier on a pretrained encoder, and how its layers learn.

Legend: B clips, N tokens of a clip, D width of the encoder, L its depth, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from savimae.model.config import VideoMAEConfig
from savimae.model.videomae import LAYER_NORM_EPS, Encoder, initialize


class VideoClassifier(nn.Module):
    """Encoder of all tokens, their mean, a norm and a linear layer.

    Args:
        config: shape of the encoder; what it says of a decoder plays no role.
        n_classes: K.
        head_scale: the initial weights of the last layer are multiplied with it.
    """

    def __init__(self, config: VideoMAEConfig, n_classes: int, head_scale: float = 0.001):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, has_norm=False)
        self.fc_norm = nn.LayerNorm(config.encoder_dim, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(config.encoder_dim, n_classes)
        self.apply(initialize)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        with torch.no_grad():
            self.head.weight *= head_scale

    def forward(
        self, clips: Tensor, branches: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """Clips `[B, T, H, W, 3]`, uint8 or float in 0 to 1 -> logits float `[B, K]`.

        Args:
            branches: float `[L, 2, B]`, see `drop_path_branches`; None: nothing is dropped.
            features: float `[B, D]`, see `dropout_features`; None: nothing is dropped.
        """
        pooled = self.fc_norm(self.encoder.whole(clips, branches).mean(1))
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
