"""A checkpoint and labelled videos, for the tests of features and probes."""

from __future__ import annotations

import pytest
import torch
from media import encode, moving_frames
from models import small_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "model.pt"
    model = small_model()
    torch.save({"model": model.state_dict(), "config": model.config.__dict__}, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five videos of two classes, told apart by their brightness."""
    root = tmp_path_factory.mktemp("probe") / "videos"
    for index in range(5):
        frames = moving_frames(14 + index) // (2 if index % 2 else 1)
        encode(root / f"c{index % 2}/v{index}.avi", frames)
    return root
