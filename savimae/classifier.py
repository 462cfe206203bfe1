"""A video classifier on a pretrained encoder, and how its layers learn.

Legend: B clips, N tokens of a clip, D width of the encoder, L its depth, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from savimae.model import LAYER_NORM_EPS, Encoder, VideoMAEConfig, initialize
from savimae.randomness import DROP_PATH, DROPOUT, uniform


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


def layer_of(name: str, depth: int) -> int:
    """The layer of a parameter, from 0 (patch embedding) over 1 to L (blocks) to L + 1 (head)."""
    parts = name.split(".")
    if parts[:2] == ["encoder", "patch_embed"]:
        return 0
    if parts[:2] == ["encoder", "blocks"]:
        return int(parts[2]) + 1
    return depth + 1


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    depth: int,
    weight_decay: float,
    layer_decay: float,
) -> list[dict[str, object]]:
    """Groups for AdamW: `lr_scale` is layer_decay^(L + 1 - layer), biases and norms do not decay.

    So the head learns at the full rate and every layer below at `layer_decay` of the one above
    (Clark et al., 2020, "ELECTRA"; BEiT).
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        groups.setdefault((layer_of(name, depth), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": members,
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": layer_decay ** (depth + 1 - layer),
        }
        for (layer, decays), members in sorted(groups.items(), key=lambda item: item[0])
    ]


def drop_path_rates(rate: float, depth: int) -> np.ndarray:
    """How often the branches of each block are dropped: from 0 to `rate`, float64 `[L]`."""
    return np.linspace(0, rate, depth)


def drop_path_branches(key: np.uint64, rate: float, depth: int) -> np.ndarray:
    """What the residual branches of one clip are multiplied with: float32 `[L, 2]`.

    0 where a branch is dropped, else 1 / (1 - its rate), so that the mean stays 1 (Huang et al.,
    2016, "Deep networks with stochastic depth").
    """
    rates = drop_path_rates(rate, depth)[:, None]
    kept = uniform(key, DROP_PATH, 2 * depth).reshape(depth, 2) >= rates
    return (kept / (1 - rates)).astype(np.float32)


def dropout_features(key: np.uint64, rate: float, dim: int) -> np.ndarray:
    """What the pooled features of one clip are multiplied with before the head: float32 `[D]`.

    0 where one is dropped, else 1 / (1 - rate) (Srivastava et al., 2014, "Dropout").
    """
    return ((uniform(key, DROPOUT, dim) >= rate) / (1 - rate)).astype(np.float32)
