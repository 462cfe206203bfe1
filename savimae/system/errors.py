"""Errors that a user can mend, in one line that names the file and the remedy; and exit codes."""

from __future__ import annotations

EXIT_FAILURE = 1  # something to mend
EXIT_USAGE = 2  # options that do not fit each other or the files they name
EXIT_STOPPED = 85  # asked to stop and saved what there was: the same command goes on
EXIT_INTERRUPTED = 130  # Control-C


class SavimaeError(Exception):
    """Something a user can mend; the command line prints its text and exits with 1."""


class UsageError(SavimaeError):
    """Options that do not fit each other or the files they name; exit code 2."""


def shown(path: str) -> str:
    """`path` in one printable line: control characters and undecodable bytes as escapes."""
    text = path.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """The text of `error` in one line, with its type where the text alone says too little."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = shown(" ".join(str(error).split()))
    return (
        text if isinstance(error, SavimaeError) else f"{type(error).__name__}: {text}".rstrip(": ")
    )
