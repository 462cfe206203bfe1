"""savimae: saliency-aware VideoMAE pretraining for CPU nodes and Slurm clusters.

The names below are the library. Each is imported when it is asked for, so `import savimae` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from savimae.data.video import open_video
    from savimae.judging.library import load_classifier, load_encoder
    from savimae.model.classifier import VideoClassifier
    from savimae.model.config import VideoMAEConfig
    from savimae.model.videomae import VideoMAE, build_model
    from savimae.saliency.config import SaliencyConfig
    from savimae.saliency.frames import video_patches
    from savimae.samples.clips import ClipConfig, ClipReader
    from savimae.samples.dataset import VideoClips
    from savimae.samples.masking import MaskSpec, draw_decoded, draw_masks
    from savimae.samples.randomness import sample_keys
    from savimae.system.allocator import keep_memory
    from savimae.system.errors import SavimaeError
    from savimae.training.weights import load_model

__version__ = "0.1.0"

_HOMES = {
    "ClipConfig": "samples.clips",
    "ClipReader": "samples.clips",
    "MaskSpec": "samples.masking",
    "SaliencyConfig": "saliency.config",
    "SavimaeError": "system.errors",
    "VideoClassifier": "model.classifier",
    "VideoClips": "samples.dataset",
    "VideoMAE": "model.videomae",
    "VideoMAEConfig": "model.config",
    "build_model": "model.videomae",
    "draw_decoded": "samples.masking",
    "draw_masks": "samples.masking",
    "keep_memory": "system.allocator",
    "load_classifier": "judging.library",
    "load_encoder": "judging.library",
    "load_model": "training.weights",
    "open_video": "data.video",
    "sample_keys": "samples.randomness",
    "video_patches": "saliency.frames",
}

__all__ = [
    "ClipConfig", "ClipReader", "MaskSpec", "SaliencyConfig", "SavimaeError", "VideoClassifier",
    "VideoClips", "VideoMAE", "VideoMAEConfig", "build_model", "draw_decoded", "draw_masks",
    "keep_memory", "load_classifier", "load_encoder", "load_model", "open_video", "sample_keys",
    "video_patches",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'savimae' has no attribute {name!r}")
    return getattr(importlib.import_module(f"savimae.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
