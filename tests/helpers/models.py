"""Small models, with clips and masks for them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from savimae.judging.load import Machine, load_trained_classifier
from savimae.model.classifier import VideoClassifier
from savimae.model.config import VideoMAEConfig
from savimae.model.videomae import VideoMAE
from savimae.samples.masking import MaskSpec, draw_decoded, draw_masks
from savimae.samples.randomness import sample_keys

MACHINE = Machine(torch.device("cpu"), "fp32", 2, 1)
SMALL = VideoMAEConfig(
    input_size=64, num_frames=8, patch_size=16, tubelet_size=2,
    encoder_dim=48, encoder_depth=2, encoder_heads=4,
    decoder_dim=32, decoder_depth=2, decoder_heads=2,
)  # fmt: skip


def classifier_at(path) -> VideoClassifier:
    """The classifier in a run, a file or a folder, in evaluation mode."""
    return load_trained_classifier(str(path), MACHINE.device).model


def write_checkpoint(path, model, **fields) -> None:
    """Write a model as `savimae train` and `finetune` do; `fields` are more of its config."""
    config = {**model.config.recorded(), **fields}
    torch.save({"model": model.state_dict(), "config": config}, path)


def small_model(**changes) -> VideoMAE:
    torch.manual_seed(0)
    return VideoMAE(dataclasses.replace(SMALL, **changes))


def clips_for(config: VideoMAEConfig, n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, config.num_frames, *config.sides, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def masks_for(config: VideoMAEConfig, n: int, kind: str = "savi") -> torch.Tensor:
    """Masks whose clips show different numbers of tokens, if the kind is savi."""
    spec = MaskSpec(kind, config.time_steps, config.grid)
    shares = np.linspace(0.05, 0.95, n)[:, None]
    saliency = np.random.default_rng(0).random((n, spec.n_tokens)) < shares
    return torch.from_numpy(draw_masks(spec, sample_keys(0, 0, np.arange(n)), saliency))


def decoded_for(config: VideoMAEConfig, mask: torch.Tensor, ratio: float) -> torch.Tensor:
    """The masked tokens that are reconstructed, with `ratio` of them left out."""
    spec = MaskSpec("savi", config.time_steps, config.grid, decoder_mask_ratio=ratio)
    keys = sample_keys(0, 0, np.arange(len(mask)))
    return torch.from_numpy(draw_decoded(spec, keys, mask.numpy()))
