"""Where the tests that need real clips and reference numbers find them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Workers of the tests are short-lived: progress bars and thread pools would only be noise.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _folder(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if value:
        return Path(value)
    if os.environ.get("CI"):
        pytest.fail(f"{variable} is not set: under CI {what} must be there")
    pytest.skip(f"{variable} does not name the folder of {what}")


@pytest.fixture(scope="session")
def clips() -> Path:
    """Real video files of UCF101, HMDB51 and Kinetics-400."""
    return _folder("SAVIMAE_TEST_CLIPS", "real clips")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Numbers computed with the published systems."""
    return _folder("SAVIMAE_TEST_GOLDEN", "reference numbers")
