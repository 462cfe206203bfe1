"""Where the tests that need real clips and reference numbers find them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Workers of the tests are short-lived: progress bars and thread pools would only be noise.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The files that take longest, minutes each: no process is left alone with one at the end.
LONGEST = (
    "slurm/test_cluster.py", "training/test_finetune.py", "training/test_pretrain.py",
    "training/test_loop.py", "demo/test_demo.py", "test_fuzz.py", "study/test_study.py",
)  # fmt: skip
TRANSFORMERS = "SAVIMAE_TEST_TRANSFORMERS"  # folders, as in PATH


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others in their order."""
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that ask for `transformers_folder` run with the installed version, and with others."""
    if "transformers_folder" in metafunc.fixturenames:
        folders = os.environ.get(TRANSFORMERS, "").split(os.pathsep)
        metafunc.parametrize(
            "transformers_folder", ["installed", *folders], indirect=True, scope="session",
            ids=["installed", *(os.path.basename(folder) or "others" for folder in folders)],
        )  # fmt: skip


@pytest.fixture(scope="session")
def transformers_folder(request: pytest.FixtureRequest) -> str | None:
    """A folder with another version of transformers in it; None for the installed one."""
    if request.param == "installed":
        return None
    if not request.param:
        _folder(TRANSFORMERS, "other versions of transformers")
    return str(request.param)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """A throw-away Slurm cluster of two nodes with two CPUs and two pretended GPUs each."""
    os.environ["PATH"] += os.pathsep + "/usr/sbin"  # where Debian puts the daemons
    missing = [name for name in ("slurmctld", "slurmd", "sbatch") if not shutil.which(name)]
    if missing and os.environ.get("CI"):
        pytest.fail(f"under CI Slurm must be installed: there is no {', '.join(missing)}")
    if missing:
        pytest.skip(f"no Slurm here ({', '.join(missing)})")
    script = Path(__file__).parent / "slurm" / "local_slurm.sh"
    folder = tempfile.mkdtemp(prefix="savimae-", dir="/tmp")  # short, for Unix sockets
    started = subprocess.run(
        ["bash", script, "start", folder, "2"], capture_output=True, text=True, check=False
    )
    assert started.returncode == 0, started.stderr
    os.environ["SLURM_CONF"] = started.stdout.strip()
    yield folder
    subprocess.run(["bash", script, "stop", folder], check=False)
    del os.environ["SLURM_CONF"]
    shutil.rmtree(folder, ignore_errors=True)
