"""Data and one whole run, for the tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import config, make_videos

from savimae.training.pretrain import train


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The list of the videos that all runs below are trained on."""
    return make_videos(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Path:
    """A run that nothing happens to: batches of 2, two of them accumulated."""
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert train(config(data, run, batch_size=2, accumulate=2)) == 0
    return run
