"""A data set, and `savimae slurm` called in this process."""

from __future__ import annotations

import os
from typing import NamedTuple

import pytest
from media import encode, moving_frames

from savimae.cli import main


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def slurm(monkeypatch, capfd, tmp_path):
    """Runs `savimae slurm …` in this process, in `tmp_path`, without a profile or a cluster."""
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    monkeypatch.delenv("SAVIMAE_SLURM_PROFILE", raising=False)
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["savimae", "slurm", *map(os.fspath, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(ended.value.code, *capfd.readouterr())

    return run


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    for index in range(4):
        encode(folder / f"c/v{index}.avi", moving_frames(4 + index))
    return folder


SQUEUE = """#!/bin/bash
echo "$@" >>{calls}
cat {queue}
"""
SBATCH = """#!/bin/bash
echo "$@" >>{calls}
echo "77;cluster"
"""


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """Commands of Slurm that note their words; what squeue prints is in `queue`."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in (("squeue", SQUEUE), ("sbatch", SBATCH)):
        text = text.format(calls=tmp_path / f"{name}.txt", queue=tmp_path / "queue")
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    (tmp_path / "queue").write_text("")
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
