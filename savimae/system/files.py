"""Writing files so that a kill at any moment leaves whole files only.

Everything is written under a temporary name in the folder of its target and then renamed. The
temporary name says host and process, so no two writers share one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from savimae.system.errors import UsageError, shown

TEMPORARY_SUFFIX = ".savimae-tmp"


def _temporary_prefix(name: str) -> str:
    """How every temporary name of the file `name` begins; 40 characters keep it below 255 bytes."""
    return f".{name[:40]}.{zlib.crc32(os.fsencode(name)):08x}."


def temporary_name(target: str) -> str:
    """The hidden name under which this process writes `target` before it is whole."""
    folder, name = os.path.split(target)
    writer = f"{socket.gethostname()[:40]}-{os.getpid()}"
    return os.path.join(folder, _temporary_prefix(name) + writer + TEMPORARY_SUFFIX)


def refuse_file(path: str) -> None:
    """Raises UsageError if there is a file where a folder is asked for."""
    if os.path.exists(path) and not os.path.isdir(path):
        raise UsageError(f"{shown(path)} is a file; name a folder")


def refuse_folder(path: str) -> None:
    """Raises UsageError if there is a folder where a file is asked for."""
    if os.path.isdir(path):
        raise UsageError(f"{shown(path)} is a folder; name a file")


@contextlib.contextmanager
def atomic_file(target: str, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a binary file for writing; it becomes `target` if the block ends without an error.

    With `durable` it is on the disk before it replaces what was there: whole after a power cut too.
    """
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    temporary = temporary_name(target)
    try:
        with open(temporary, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename == temporary:
            error.filename = target  # the name that a user knows
        raise


@contextlib.contextmanager
def atomic_folder(target: str) -> Iterator[str]:
    """Make a folder to fill; it replaces `target` if the block ends without an error."""
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    temporary = temporary_name(target)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        os.mkdir(temporary)
        yield temporary
        if os.path.isdir(target):
            shutil.rmtree(target)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_leftovers(targets: Iterable[str]) -> None:
    """Remove the temporary files and folders that killed runs left beside `targets`."""
    prefixes: dict[str, set[str]] = {}
    for target in targets:
        folder, name = os.path.split(target)
        prefixes.setdefault(folder, set()).add(_temporary_prefix(name))
    for folder, wanted in prefixes.items():
        entries: list[str] = []
        with contextlib.suppress(OSError):
            entries = os.listdir(folder)
        for entry in entries:
            if entry.endswith(TEMPORARY_SUFFIX) and entry.startswith(tuple(wanted)):
                path = os.path.join(folder, entry)
                if os.path.isdir(path):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    with contextlib.suppress(OSError):
                        os.unlink(path)


def write_json(path: str, content: Any) -> None:
    """Write `content` to `path` as indented JSON, atomically."""
    with atomic_file(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def create_json(path: str, content: Any) -> bool:
    """Like `write_json`, but only if `path` does not exist; False if it does.

    Of several processes that create the same file at once, exactly one succeeds.
    """
    if os.path.exists(path):
        return False
    temporary = temporary_name(path) + ".json"
    write_json(temporary, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        os.replace(temporary, path)
        return True
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    return True


def path_text(path: str) -> str:
    """A path as text that UTF-8 can hold: bytes that are no text become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def parse_json(text: str | bytes) -> Any:
    """What JSON says. Raises ValueError for other text, also where it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None


def read_json(path: str) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError if the file holds anything else."""
    with open(path, "rb") as file:
        content = parse_json(file.read())
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content
