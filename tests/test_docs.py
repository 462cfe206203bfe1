"""What the documentation says can be typed: names exist, Python runs, command lines parse.

A Python block that cannot run here has a line `<!-- not run: REASON -->` above it; it must compile.
"""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pytest
from media import encode, moving_frames
from models import SMALL, small_model, write_checkpoint

from savimae.cli import cli
from savimae.model.classifier import VideoClassifier

HOME = Path(__file__).parent.parent
PAGES = sorted([HOME / "README.md", HOME / "CONTRIBUTING.md", *(HOME / "docs").glob("*.md")])
# The same code on a small model, and a video for it to read.
SMALLER = {'build_model("base")': 'build_model("tiny")'}


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int  # of its first line, from 1
    language: str
    text: str
    not_run: str | None  # the reason

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    found = []
    lines = path.read_text().splitlines()
    fences = [number for number, line in enumerate(lines) if line.startswith("```")]
    assert len(fences) % 2 == 0, f"{path}: a block is not closed"
    for first, last in zip(fences[::2], fences[1::2], strict=True):
        above = lines[first - 1] if first else ""
        mark = re.fullmatch(r"<!-- not run: (.+) -->", above)
        text = "\n".join(lines[first + 1 : last])
        reason = mark[1] if mark else None
        found.append(Block(path.name, first + 2, lines[first][3:].strip(), text, reason))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def prose_of(path: Path) -> str:
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_reader_of_pages_finds_what_is_there():
    assert {block.page for block in PYTHON} >= {"README.md"}
    assert {page for page, _, _ in COMMANDS} >= {"README.md", "slurm.md", "recipes.md"}


# ----------------------------------------------------------------------------------------- names


def resolve(name: str) -> object:
    """The module, class, function or attribute called `name`; raises where there is none."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            continue
        for part in parts[n:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_text_exist(page):
    for code in re.findall(r"`([^`]+)`", prose_of(page)):
        for name in re.findall(r"\bsavimae(?:\.[A-Za-z_]\w*)+", code):
            if not (HOME / name).exists():  # a file
                assert resolve(name), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_functions_in_the_text_exist(page):
    """`build_model("base")`: what is called without a module is ours, or NumPy's in a formula."""
    ours = "\n".join(path.read_text() for path in (HOME / "savimae").rglob("*.py"))
    for name in re.findall(r"`([a-z_]\w*)\([^`]*\)`", prose_of(page)):
        is_ours = re.search(rf"^ *(def|class) {name}\b", ours, re.MULTILINE)
        assert is_ours or hasattr(np, name), name


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_blocks_run(block, tmp_path, monkeypatch):
    text = block.text
    compile(text, str(block), "exec")
    for module, names in re.findall(r"^from (savimae\S*) import (.+)$", text, re.MULTILINE):
        for name in names.split(","):
            assert resolve(f"{module}.{name.strip()}"), f"{block}: {module}.{name}"
    if block.not_run:
        return
    for usual, small in SMALLER.items():
        text = text.replace(usual, small)
    encode(tmp_path / "video.avi", moving_frames(20))
    for name in ("up/a", "up/b", "down/c"):
        encode(tmp_path / f"videos/{name}.avi", moving_frames(20))
    write_checkpoint(tmp_path / "run", small_model())
    write_checkpoint(tmp_path / "classifier", VideoClassifier(SMALL, 3), n_classes=3)
    monkeypatch.chdir(tmp_path)
    exec(compile(text, str(block), "exec"), {"__name__": "__main__"})


# --------------------------------------------------------------------------------- command lines


def simple_commands(text: str) -> list[list[str]]:
    """The words of each simple command of a shell text."""
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=";&|<>()")
        lexer.commenters, lexer.whitespace_split = "#", True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|()"):
                commands.append(words)
                words = []
            else:
                words.append(word)
    return [words for words in commands if words]


def savimae_words(words: list[str]) -> list[str] | None:
    """What follows the program, also behind torchrun or srun; None for other programs."""
    places = [n for n, word in enumerate(words) if word.rpartition("/")[2] == "savimae"]
    program = words[0].rpartition("/")[2]
    if not places or program not in ("savimae", "torchrun", "srun", "python"):
        return None
    words = words[places[0] + 1 :]
    redirected = next((n for n, word in enumerate(words) if set(word) <= set("<>")), len(words))
    return words[:redirected]


COMMANDS = [
    (block.page, block.line, words)
    for block in BLOCKS
    if block.language == "sh" or block.text.startswith("$ savimae")
    for command in simple_commands(
        block.text if block.language == "sh" else block.text.splitlines()[0]
    )
    if (words := savimae_words(command)) is not None
]
# Options are looked at in the text as well: `savimae train --compile`.
COMMANDS += [
    (page.name, 0, [*words, "…"])
    for page in PAGES
    for code in re.findall(r"`(savimae [^`]+)`", prose_of(page))
    if "COMMAND" not in code
    for words in [shlex.split(code)[1:]]
]


def parse(words: list[str]) -> None:
    """Raises click.UsageError for what the command line does not know.

    Where a command is cut short (…), what it lacks is not missed.
    """
    is_short = any("…" in word for word in words)
    command: click.Command = cli
    context = click.Context(cli, info_name="savimae", token_normalize_func=str)
    rest = [word for word in words if "…" not in word]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        if found is None:
            raise click.UsageError(f"no such command: {rest[0]}")
        command, rest = found, rest[1:]
        context = click.Context(command, parent=context, info_name=command.name)
    after: list[str] = []
    is_slurms = context.parent is not None and context.parent.command.name == "slurm"
    if (is_slurms or command.name == "study") and "--" in rest:
        place = rest.index("--")
        rest, after = rest[:place], rest[place + 1 :]
    if is_short or isinstance(command, click.Group):
        command.make_parser(context).parse_args(rest)
    else:
        command.make_context(command.name, rest, parent=context.parent)
    if after:
        name = "train" if command.name in ("pipeline", "study") else str(command.name)
        parse([name, *after, "…"])


def complaint(words: list[str]) -> str | None:
    """What the command line says against these words."""
    try:
        parse(words)
    except click.UsageError as error:
        return error.format_message()
    return None


@pytest.mark.parametrize(
    "words",
    [words for _, _, words in COMMANDS],
    ids=[f"{page}:{line}:{' '.join(words)[:40]}" for page, line, words in COMMANDS],
)
def test_command_lines_parse(words):
    assert complaint(words) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("savimae train --data x --out y --epcohs 3", "No such option"),
        ("savimae train --data x", "Missing option"),
        ("savimae slurm train --data x --out y -- --tubelet 3", "No such option"),
        ("torchrun -m savimae tarin …", "no such command"),
        ("savimae compare", "Missing argument"),
    ],
)
def test_wrong_command_lines_are_found(text, message):
    (command,) = simple_commands(text)
    words = savimae_words(command)
    assert words is not None
    assert message in str(complaint(words))
