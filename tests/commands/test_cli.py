"""The command line itself: start-up, errors, spellings."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner
from media import encode, moving_frames, random_bytes, savimae, savimae_process

import savimae as package
from savimae.cli import cli


def test_version_and_help():
    assert savimae("--version").stdout == f"savimae, version {package.__version__}\n"
    shown = savimae("--help").stdout
    for command in cli.commands:
        assert command in shown


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from savimae.cli import cli\n"
        "try: cli(['preprocess', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numba', 'av', 'numpy', 'PIL', 'imageio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_explains_itself(command):
    shown = CliRunner().invoke(cli, [command, "--help"])
    assert shown.exit_code == 0
    assert cli.commands[command].help.splitlines()[0][:40] in shown.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--input-size", "100"],
            "100 is not a multiple of --patch-size 16; the nearest are 96 and 112",
        ),
        (["--patch-size", "0"], "must be at least 1"),
        (["--threshold", "1.5"], "--threshold 1.5 is not between 0 and 1"),
        (["--threshold", "nan"], "--threshold nan is not between 0 and 1"),
        (["--shard", "4/4"], "--shard '4/4' is not I/N"),
        (["--workers", "0"], "0 is not in the range x>=1"),
        (["--dtype", "int8"], "'int8' is not one of 'uint8', 'float32'"),
    ],
)
def test_bad_options_say_what_is_right(tmp_path, arguments, message):
    video = encode(tmp_path / "x.avi", moving_frames(2))
    done = savimae("preprocess", video, tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(tmp_path):
    arguments = ["preprocess", tmp_path / "gone", tmp_path / "out"]
    plain, debug = savimae(*arguments), savimae_process("--debug", *arguments)
    assert plain.returncode == 2
    assert plain.stderr == f"savimae: {tmp_path / 'gone'}: no such file or folder\n"
    assert "Traceback" in debug.stderr
    assert "UsageError" in debug.stderr


def test_out_is_a_file(tmp_path):
    video = encode(tmp_path / "x.avi", moving_frames(2))
    done = savimae("preprocess", video, video)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is a file; name a folder" in done.stderr


def test_out_below_a_file(tmp_path):
    video = encode(tmp_path / "x.avi", moving_frames(2))
    done = savimae("preprocess", video, video / "out")
    assert (done.returncode, done.stderr) == (1, f"savimae: {video / 'out'}: Not a directory\n")


def test_commands_without_arguments_and_unknown_ones():
    assert "Commands:" in savimae().stderr + savimae().stdout
    done = savimae("preproces")
    assert done.returncode == 2
    assert done.stderr.startswith("savimae: No such command 'preproces'")
    assert done.stderr.count("\n") == 1


def test_outputs_are_called_by_their_own_name(tmp_path):
    video = encode(tmp_path / "x.avi", moving_frames(2))
    (tmp_path / "folder.png").mkdir()
    done = savimae("inspect", video, "--out", tmp_path / "folder.png", "--animation", "none")
    assert done.returncode == 1
    assert done.stderr == f"savimae: {tmp_path}/folder.png: Is a directory\n"


def test_inspect_of_random_bytes(tmp_path):
    done = savimae("inspect", random_bytes(tmp_path / "x.avi"), "--out", tmp_path / "x.png")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "x.avi: not decodable" in done.stderr
    assert not (tmp_path / "x.png").exists()


def test_a_bug_is_one_line(monkeypatch, capsys):
    from savimae import cli as module

    def broken(**_):
        raise KeyError("oops")

    monkeypatch.setattr(module.cli, "main", broken)
    monkeypatch.setattr(sys, "argv", ["savimae"])
    with pytest.raises(SystemExit) as exit_info:
        module.main()
    assert exit_info.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("savimae: a bug in savimae: KeyError: 'oops'")
    assert error.count("\n") == 1
