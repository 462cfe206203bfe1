"""One writer for each output: a second process that would write the same files is refused.

A writer notes who it is in `FOLDER/.running/I-of-N.json` and removes the note when it ends. The
note of a process that was killed does not count:

- On the same machine, number and start of the process tell at once whether it is alive. After a
  restart of the machine it is not; two missed beats rule out that another has the same name.
- An earlier life of the same Slurm job is over when the next one runs, wherever that is.
- Of a process elsewhere only the note can be seen. Its writer touches it every `BEAT_S` seconds; if
  nobody did for `GONE_AFTER_S`, the writer is gone.

Ages are differences between times that the file system itself gave to two files, so the clocks of
two machines are not compared. Locks of the kernel (flock, fcntl) are not used: how a network file
system is mounted decides whether other nodes see them, or whether there are any. Files that are
created exclusively, renamed and touched are the same everywhere.

A writer that was suspended for so long that another process took its place finds the note of that
process, and stops.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from savimae.system.errors import SavimaeError, shown

FOLDER = ".running"
BEAT_S = 15.0
GONE_AFTER_S = 120.0  # eight beats: a file server may be slow, an import may hold up the thread
NAME = re.compile(r"(\d+)-of-(\d+)\.json")
TOKEN = re.compile(r"[0-9a-f]{32}")
# Where there is a choice, a clock that goes on while the machine sleeps.
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclasses.dataclass(frozen=True)
class Writer:
    """A process that writes, as its note says."""

    token: str  # of this note only
    host: str
    pid: int
    started: str  # local time, for people
    boot: str | None  # which start of which machine; None where the system does not say
    namespace: str | None  # within which `pid` counts
    ticks: int | None  # when the process started, in ticks since the machine did
    job: str | None  # of Slurm: cluster:job or cluster:array_task
    life: int  # of that job: how often Slurm had started it again

    @classmethod
    def here(cls) -> Writer:
        """This process."""
        job = os.environ.get("SLURM_JOB_ID")
        if "SLURM_ARRAY_JOB_ID" in os.environ and "SLURM_ARRAY_TASK_ID" in os.environ:
            job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        if job is not None:
            job = f"{os.environ.get('SLURM_CLUSTER_NAME', '')}:{job}"
        life = os.environ.get("SLURM_RESTART_COUNT", "0")
        return cls(
            uuid.uuid4().hex, socket.gethostname(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"),
            _boot(), _namespace(), _start_ticks(os.getpid()), job,
            int(life) if life.isdecimal() else 0,
        )  # fmt: skip

    def __str__(self) -> str:
        job = f", Slurm job {self.job.rpartition(':')[2]}" if self.job else ""
        return shown(f"process {self.pid} on {self.host}{job}, started {self.started}")


@dataclasses.dataclass(frozen=True)
class Note:
    """A note that is there."""

    writer: Writer | None  # None: it is just being written, or was never finished
    mtime: float  # seconds, by the clock of the file system
    identity: str


class SoleWriter:
    """The right to write. It lasts until the end, or until another process takes it."""

    def __init__(self, folder: str, path: str, me: Writer, on_loss: Callable[[], None] | None):
        self.folder = folder
        self.path = path
        self.me = me
        self.on_loss = on_loss
        self.successor: Note | None = None
        self._seen_at = _seconds()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="sole writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def check(self) -> None:
        """Make sure that this process still has the right; fast if that was checked lately.

        Raises:
            SavimaeError: another process has it.
        """
        if _seconds() - self._seen_at > 2 * BEAT_S:  # this process was suspended, or the thread was
            self.beat()
        if self.successor is not None:
            other = self.successor.writer or "another process"
            raise SavimaeError(
                f"{shown(self.folder)}: {other}, took this process for dead and writes into it "
                "now; this one stops and writes nothing more"
            )

    def beat(self) -> None:
        """Give a sign of life, or find that another process has taken over."""
        # A file server that does not answer is asked again at the next beat.
        with contextlib.suppress(OSError):
            found = _read(self.path)
            if found is None:  # deleted by hand
                _write_new(self.path, self.me)
            elif found.identity != self.me.token:
                self.successor = found
            else:
                os.utime(self.path)
            self._seen_at = _seconds()

    def _keep(self) -> None:
        while not self._ended.wait(BEAT_S):
            self.beat()
            if self.successor is not None:
                if self.on_loss is not None:
                    self.on_loss()
                return

    def end(self) -> None:
        """Give the right back."""
        self._ended.set()
        self._thread.join()
        # What cannot be removed is forgotten as the note of a killed process is.
        with contextlib.suppress(OSError):
            found = _read(self.path)
            if found is not None and found.identity == self.me.token:
                os.unlink(self.path)


@contextlib.contextmanager
def sole_writer(
    folder: str, index: int = 0, count: int = 1, on_loss: Callable[[], None] | None = None
) -> Iterator[SoleWriter]:
    """The right to write part `index` of `count` into `folder`, which is made if it is not there.

    Different parts of the same `count` go side by side; any other two exclude each other. Of two
    that start at the same moment with different counts, both may be refused. Nothing is left behind
    at the end; of the folders that are made, those that are still empty are removed.

    Args:
        on_loss: called in a thread once another process has taken over.

    Raises:
        SavimaeError: another process has the right; its host, number and start are named.
    """
    running = os.path.join(folder, FOLDER)
    made = _missing_folders(running)
    me = Writer.here()
    try:
        path = os.path.join(running, f"{index}-of-{count}.json")
        _take(folder, path, me)
        writer = SoleWriter(folder, path, me, on_loss)
        writer.start()
        try:
            _refuse_other_counts(folder, count, me)
            yield writer
        finally:
            writer.end()
    finally:
        for each in [running, *made]:
            with contextlib.suppress(OSError):  # not empty: somebody's files are in it
                os.rmdir(each)


def _take(folder: str, path: str, me: Writer) -> None:
    """Put this process's note at `path`, unless that of a live one is there."""
    while not _create(path, me):
        # What is not found any more belonged to a process that has just ended.
        with contextlib.suppress(FileNotFoundError):
            if _replace_dead(folder, path, me):
                return


def _replace_dead(folder: str, path: str, me: Writer) -> bool:
    """Replace the note of a dead process by this one's; False if another one changed it meanwhile.

    The successor of a dead process is the one that creates the file `PATH.after-TOKEN`, named after
    the dead one's note; it then renames that file to PATH. A successor that died before it did has
    a successor in the same way. Notes of the dead stay until PATH has been replaced: removed any
    sooner, a process that has just found one of them dead could remove a live one's in its place.
    """
    first = _read(path)
    dead: list[str] = []
    note, successor = first, path
    while note is not None:
        _refuse_if_alive(folder, successor, note, me)
        successor = f"{path}.after-{note.identity}"
        if _create(successor, me):
            return _rename_unless_late(successor, path, first, dead)
        dead.append(successor)
        note = _read(successor)
    return False


def _rename_unless_late(successor: str, path: str, first: Note | None, dead: list[str]) -> bool:
    """Finish a succession, unless another process finished it while this one looked."""
    now = _read(path)
    if now is None or first is None or now.identity != first.identity:
        os.unlink(successor)
        return False
    os.replace(successor, path)
    for each in dead:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(each)
    return True


def _refuse_other_counts(folder: str, count: int, me: Writer) -> None:
    """Refuse if there are writers of another partition: their parts hold the same files."""
    running = os.path.join(folder, FOLDER)
    for name in sorted(os.listdir(running)):
        match = NAME.fullmatch(name)
        if match and int(match[2]) != count:
            path = os.path.join(running, name)
            found = _read(path)
            if found is not None:
                _refuse_if_alive(folder, path, found, me)


def _refuse_if_alive(folder: str, path: str, note: Note, me: Writer) -> None:
    """Raises SavimaeError unless the writer of a note is gone."""
    patience_s = GONE_AFTER_S if note.writer is None else _patience(note.writer, me)
    sign = ""
    if patience_s < math.inf:
        age = max(_now_there(os.path.dirname(path)) - note.mtime, 0.0) if patience_s else math.inf
        if age > patience_s:
            return
        sign = (
            f" (last sign of life {age:.0f} s ago; had it been killed, it would be forgotten after "
            f"{patience_s:.0f} s)"
        )
    match = NAME.match(os.path.basename(path))
    part = f"part {match[1]}/{match[2]} of it" if match and match[2] != "1" else "it"
    who = note.writer or "a process that has just started"
    raise SavimaeError(
        f"{shown(folder)}: {who}, is writing {part}{sign}; wait for its end, end it, or choose "
        "another output"
    )


def _patience(writer: Writer, me: Writer) -> float:
    """Seconds without a sign of life after which a writer is gone.

    0 if it is certainly gone, inf if it is certainly alive."""
    if writer.job is not None and writer.job == me.job and writer.life < me.life:
        return 0.0
    if writer.boot != me.boot:
        return 2 * BEAT_S if writer.host == me.host else GONE_AFTER_S
    if writer.boot is None and writer.host != me.host:
        return GONE_AFTER_S
    if writer.namespace != me.namespace:  # a container, whose processes have numbers of their own
        return GONE_AFTER_S
    try:
        os.kill(writer.pid, 0)
    except ProcessLookupError:
        return 0.0
    except PermissionError:
        pass  # there is one, of another user
    ticks = _start_ticks(writer.pid)
    if ticks is None or writer.ticks is None:
        return GONE_AFTER_S
    return math.inf if ticks == writer.ticks else 0.0


# ------------------------------------------------------------------------------------- notes


def _create(path: str, me: Writer) -> bool:
    """Write this process's note unless there is a file. Returns whether it was written."""
    while True:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            return _write_new(path, me)
        except FileNotFoundError:  # a process that ended has just removed the folder
            continue


def _write_new(path: str, me: Writer) -> bool:
    try:
        with open(path, "x", encoding="ascii") as file:
            json.dump(dataclasses.asdict(me), file)
    except FileExistsError:
        return False
    return True


def _read(path: str) -> Note | None:
    """The note at `path`, None if there is none."""
    try:
        # Opening it makes a network file system ask for its time anew.
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            content = file.read()
    except FileNotFoundError:
        return None
    try:
        writer = Writer(**json.loads(content))
        texts = (writer.token, writer.host, writer.started, writer.job or "")
        if not all(isinstance(each, str) for each in texts) or not TOKEN.fullmatch(writer.token):
            raise ValueError("not a note")
        if not all(isinstance(each, int) for each in (writer.pid, writer.life)) or writer.pid < 1:
            raise ValueError("not a note")
    except (ValueError, TypeError):
        return Note(None, status.st_mtime, str(status.st_mtime_ns))
    return Note(writer, status.st_mtime, writer.token)


def _missing_folders(path: str) -> list[str]:
    """The folders above `path` that are not there, the deepest first."""
    missing = []
    path = os.path.dirname(os.path.abspath(path))
    while not os.path.exists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing


# ----------------------------------------------------------------------------------- machine


def _seconds() -> float:
    return time.clock_gettime(CLOCK)


def _now_there(folder: str) -> float:
    """The time by the clock that gives files in `folder` theirs."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def _boot() -> str | None:
    """Which start of which machine this is."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None


def _namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _start_ticks(pid: int) -> int | None:
    """When a process started; -1 for one that has ended; None where the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command in parentheses may hold anything; state is field 3, the start field 22.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return -1 if fields[0] in (b"Z", b"X") else int(fields[19])
