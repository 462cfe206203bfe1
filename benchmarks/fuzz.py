"""Damaged inputs by the thousand, of every kind that a command reads: none may do harm.

    python benchmarks/fuzz.py --out FOLDER [--cases 10000] [--seed 0] [--kinds avi log …]
                              [--clips FOLDER] [--unchecked] [--only KIND:NUMBER]

Each case damages a whole file (bits flipped, bytes cut, spliced, grown, numbers set to extremes,
values replaced), and runs a savimae command on it in a process of its own, as the command line
would. It must end well or be refused in one line. What is counted beside these two:

- several lines: refused, but with other lines beside the one, or in one that names no file of
  the case;
- traceback, bug: a traceback, or "a bug in savimae";
- crash: the process died of a signal;
- slow: not done after 10 s; memory: more than 2 GiB, resident or asked for;
- leftovers: temporary files left, or an output of a video that failed;
- frames: a video was accepted, and its array has not as many frames as a decoder finds that ignores
  all errors. Fewer is the worse of the two: a frame was lost, and all later ones are shifted. More
  cannot be where both use one decoder, and would be frames that nobody can see again.

Beside these, "shorter" counts videos that were accepted with fewer frames than they had before the
damage: cut where nothing tells, which is no defect by itself, and no outcome of its own.

What a case does depends on the seed, its kind and its number alone. `FOLDER/record.jsonl` has a
line a case; the same command goes on after an interruption. Cases with a bad outcome are kept in
`FOLDER/findings/KIND-NUMBER` with what they said. Videos are decoded in the process of the case;
`savimae preprocess` has worker processes for that.

Prints JSON: hardware, versions, cases a second, and counts by kind and outcome.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: cases are forked, which threads do not survive
os.environ["SVT_LOG"] = "0"  # an encoder that talks

import numpy as np
import torch
from fuzz_kinds import KINDS, MICRO, Box, Whole, count_frames, make_whole, warming_words
from hardware import hardware, versions

from savimae.cli import cli
from savimae.cli import main as savimae_main
from savimae.kernels.patches import compile_kernels
from savimae.model.videomae import VideoMAE
from savimae.system.files import TEMPORARY_SUFFIX
from savimae.system.workers import Counter

GOOD = ("right", "refused")
OUTCOMES = (
    *GOOD, "several lines", "traceback", "bug", "crash", "slow", "memory", "leftovers", "frames",
)  # fmt: skip
LIMIT_S = 10.0
LIMIT_MIB = 2048
KILL_MIB = 6 * 1024  # a runaway is not waited for
POLL_S = 0.002
BEGINNINGS = ("warning: ", "note: ", "missing: ", "failed: ", "replaced: ", "after epoch ")


@dataclass
class Result:
    """What came of one case."""

    outcome: str
    seconds: float = 0.0
    mib: int = 0
    code: int | None = None
    line: str = ""  # of the refusal, or what is wrong
    is_shorter: bool = False
    words: list[str] = field(default_factory=list)


# ------------------------------------------------------------------------- the process of a case


def run_case(box: Box, words: list[str], call: Callable[[], Any] = savimae_main) -> Result:
    """Run `call` with `words` as the command line in a forked process, and judge what it did."""
    said = box.folder / "said"
    report = box.folder / "report.json"
    beginning = box.folder / "beginning.json"
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        # It starts with the pages of this one: those are not what the case used.
        _write(beginning, _kib("VmRSS"))
        _be_the_case(box, words, call, said, report)
    status, peak_kib, is_slow = _wait(pid, start, _kib("VmRSS") + 1024 * KILL_MIB)
    seconds = time.monotonic() - start
    inherited_kib = json.loads(beginning.read_bytes()) if beginning.exists() else peak_kib
    peak_mib = (peak_kib - inherited_kib) // 1024
    found = json.loads(report.read_bytes()) if report.exists() else {}
    seconds = found.get("seconds", seconds)
    mib = max(peak_mib, found.get("asked_mib", 0))
    text = said.read_bytes().decode("utf-8", "backslashreplace") if said.exists() else ""
    result = Result("right", round(seconds, 3), mib, found.get("code"), words=words)
    if mib > LIMIT_MIB:
        result.outcome = "memory"
    elif is_slow and not found:
        result.outcome = "slow"
    elif not found:
        result.outcome = "crash"
        result.line = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"{status}"
    else:
        _judge(box, result, found, text)
    result.line = result.line or text.strip()[-300:]
    return result


def _wait(pid: int, start: float, most_kib: int) -> tuple[int, int, bool]:
    """Status, peak KiB, and whether it was killed for its time. Above `most_kib` it is killed."""
    is_slow = False
    peak_kib = 0
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return status, max(peak_kib, usage.ru_maxrss), is_slow
        with contextlib.suppress(OSError, IndexError, ValueError):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            peak_kib = max(peak_kib, pages * os.sysconf("SC_PAGE_SIZE") // 1024)
        is_slow = time.monotonic() - start > LIMIT_S
        if is_slow or peak_kib > most_kib:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            return status, max(peak_kib, usage.ru_maxrss), is_slow
        time.sleep(POLL_S)


def _be_the_case(
    box: Box, words: list[str], call: Callable[[], Any], said: Path, report: Path
) -> NoReturn:
    """Never returns. Writes `report` once the command has ended, however it did."""
    code: int | None = None
    try:
        for number, path in ((1, box.folder / "printed"), (2, said)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
        work = box.folder / "work" / "here"
        work.mkdir(parents=True)
        os.chdir(work)
        sys.argv = ["savimae", *words]
        before = _kib("VmSize")
        start = time.monotonic()
        try:
            call()
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else int(bool(ending.code))
        found = {
            "code": code, "seconds": round(time.monotonic() - start, 3),
            "asked_mib": (_kib("VmPeak") - before) // 1024,
        }  # fmt: skip
        sys.stdout.flush()
        sys.stderr.flush()
        _write(report, found)
        if code == 0:
            counts = {
                str(path): count_frames(video)
                for path, (video, _) in box.arrays.items()
                if video.is_file()
            }
            _write(report, {**found, "frames": counts})
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        if not report.exists():
            _write(report, {"code": 70})
    os._exit(0)


def _write(path: Path, content: Any) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def _kib(name: str) -> int:
    """A figure of /proc/self/status."""
    match = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(match[1]) if match else 0


def _judge(box: Box, result: Result, found: dict[str, Any], text: str) -> None:
    """Set the outcome of a command that ended by itself."""
    lines = [line for line in text.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("savimae: ")]
    others = [line for line in lines if line not in ours and not line.startswith(BEGINNINGS)]
    if "Traceback (most recent call last)" in text:
        result.outcome = "traceback"
    elif "a bug in savimae" in text:
        result.outcome = "bug"
    elif others or len(ours) > 1:
        result.outcome = "several lines"
        result.line = (others or ours)[0]
    elif result.code != 0:
        result.outcome = "refused"
        refusals = ours or [line for line in lines if line.startswith(("failed: ", "missing: "))]
        result.line = refusals[0] if refusals else ""
        names = {part for path in box.damaged for part in (path.name, path.parent.name)}
        if not box.names_others and not any(name in result.line for name in names):
            result.outcome = "several lines"
            result.line = f"names no file: {result.line}"
    if result.outcome in GOOD:
        _judge_files(box, result, found.get("frames", {}))


def _judge_files(box: Box, result: Result, counts: dict[str, int]) -> None:
    left = [path for path in box.folder.rglob("*") if TEMPORARY_SUFFIX in path.name]
    if left:
        result.outcome, result.line = "leftovers", str(left[0])
    for path, (_, n_whole) in box.arrays.items():
        if result.code != 0 and path.exists() and path not in box.damaged:
            result.outcome, result.line = "leftovers", f"{path} of a video that failed"
        if result.code == 0:
            frames = len(np.load(path, allow_pickle=False))
            lenient = counts.get(str(path))
            result.is_shorter = frames < n_whole
            if lenient is not None and frames != lenient:
                result.outcome = "frames"
                result.line = f"{frames} frames in the array, {lenient} found ignoring errors"


# ------------------------------------------------------------------------------------ the cases


def prepare() -> None:
    """Import and compile everything once; make this process one that cases can be forked from."""
    import matplotlib.figure  # noqa: F401
    import safetensors.torch  # noqa: F401
    import sklearn.decomposition
    import sklearn.linear_model
    import sklearn.model_selection
    import sklearn.neighbors
    import sklearn.pipeline
    import sklearn.preprocessing  # noqa: F401

    import savimae.data.make_list
    import savimae.judging.evaluate
    import savimae.judging.pictures
    import savimae.judging.probe
    import savimae.judging.reconstruct
    import savimae.saliency.preprocess
    import savimae.slurm.status
    import savimae.training.finetune
    import savimae.training.pretrain

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    compile_kernels()
    with torch.device("meta"):  # which imports a thousand modules when it is first used
        VideoMAE(MICRO)
    savimae.saliency.preprocess.run_tasks = _run_here  # type: ignore[assignment]
    for name in list(os.environ):
        if name.startswith(("SLURM", "SAVIMAE", "XDG")):
            del os.environ[name]


def warm_up(whole: Whole) -> None:
    """What the first call of a command imports or compiles is there before the cases are forked."""
    silent = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(silent),
        contextlib.redirect_stderr(silent),
    ):
        for words in warming_words(whole, folder):
            cli.main(words, standalone_mode=False)
    if len(os.listdir("/proc/self/task")) > 1:
        raise AssertionError("a process with threads cannot be forked safely")


def _run_here(
    function: Callable[[Any], Any], tasks: Iterable[Any], *_: Any
) -> Iterator[tuple[Any, Any]]:
    """In place of `workers.run_tasks`: the process of the case is the worker."""
    import savimae.system.workers

    savimae.system.workers._counter = Counter([0.0, 0.0])
    for task in tasks:
        try:
            result = function(task)
        except Exception as error:
            result = error
        yield task, result


def path_of_commands(folder: Path) -> None:
    """Cases find bash and nothing else: whatever they ask for is not submitted to any cluster."""
    folder.mkdir(exist_ok=True)
    target = folder / "bash"
    if not target.exists():
        target.symlink_to(shutil.which("bash") or "/bin/bash")
    os.environ["PATH"] = str(folder)
    os.environ["HOME"] = str(folder)


def load_whole(out: Path, clips: Path | None) -> Whole:
    """The whole files, made in OUT/whole if they are not there."""
    folder = out / "whole"
    if not folder.exists():
        making = Path(tempfile.mkdtemp(dir=out))
        # The run and its settings name the paths, so they are made where they stay.
        folder.mkdir()
        done = folder / "done"

        def run(words: list[str]) -> int:
            box = Box(Path(tempfile.mkdtemp(dir=making)), None, random.Random(0))  # type: ignore[arg-type]
            result = run_case(box, words)
            if result.code != 0:
                print(result.line, file=sys.stderr)
            return 1 if result.code is None else result.code

        make_whole(folder, run)
        done.touch()
        shutil.rmtree(making)
    if not (folder / "done").exists():
        raise SystemExit(f"{folder} was not finished; remove it")
    whole = Whole(folder, clips)
    warm_up(whole)
    gc.freeze()
    return whole


def make_box(out: Path, whole: Whole, seed: int, kind: str, number: int) -> Box:
    folder = out / "now" / f"{kind}-{number:06}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return Box(folder, whole, random.Random(f"{seed}:{kind}:{number}"))


def try_case(out: Path, whole: Whole, seed: int, kind: str, number: int) -> Result:
    """One case; its files are kept if its outcome is bad."""
    box = make_box(out, whole, seed, kind, number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the damage that is being done
        words = KINDS[kind](box)
    result = run_case(box, words)
    if result.outcome not in GOOD:
        target = out / "findings" / box.folder.name
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        shutil.move(box.folder, target)
    shutil.rmtree(box.folder, ignore_errors=True)
    return result


def check_whole(out: Path, whole: Whole, kinds: Iterable[str]) -> None:
    """Every kind's commands end well on whole files, or the damage would tell nothing."""
    for kind in kinds:
        variant, n_variants = 0, 1
        while variant < n_variants:
            box = make_box(out, whole, 0, kind, variant)
            box.is_damaged, box.variant = False, variant
            words = KINDS[kind](box)
            n_variants = box.n_variants
            result = run_case(box, words)
            if result.outcome != "right":
                raise SystemExit(
                    f"{kind}: a whole file is {result.outcome}: {result.line} ({' '.join(words)})"
                )
            shutil.rmtree(box.folder)
            variant += 1


def spread(kinds: list[str], n_cases: int) -> Iterator[tuple[str, int]]:
    """Kind and number of each case, kinds in turn."""
    for index in range(n_cases):
        yield kinds[index % len(kinds)], index // len(kinds)


def fuzz(
    out: Path,
    kinds: list[str],
    n_cases: int,
    seed: int,
    clips: Path | None,
    is_checked: bool = True,
) -> list[dict[str, Any]]:
    """Run the cases that the record lacks; returns the whole record."""
    out.mkdir(parents=True, exist_ok=True)
    settings = {"seed": seed, "clips": str(clips) if clips else None}
    about = out / "settings.json"
    if about.exists() and json.loads(about.read_bytes()) != settings:
        raise SystemExit(f"{out} is of other cases: {about.read_text()}")
    about.write_text(json.dumps(settings))
    path_of_commands(out / "bin")
    whole = load_whole(out, clips)
    record = out / "record.jsonl"
    known: dict[tuple[str, int], dict[str, Any]] = {}
    if record.exists():
        for line in record.read_text().splitlines():
            with contextlib.suppress(ValueError):  # the last line of a run that was killed
                entry = json.loads(line)
                known[entry["kind"], entry["number"]] = entry
    planned = list(spread(kinds, n_cases))
    left = [case for case in planned if case not in known]
    if left and is_checked:
        check_whole(out, whole, dict.fromkeys(kind for kind, _ in left))
    start = time.monotonic()
    with open(record, "a") as file:
        for index, (kind, number) in enumerate(left):
            result = try_case(out, whole, seed, kind, number)
            entry = {"kind": kind, "number": number, **result.__dict__}
            known[kind, number] = entry
            file.write("\n" * (index == 0) + json.dumps(entry) + "\n")
            file.flush()
            if result.outcome not in GOOD:
                print(f"{kind}:{number} {result.outcome}: {result.line[:200]}", file=sys.stderr)
            if (index + 1) % 500 == 0:
                rate = (index + 1) / (time.monotonic() - start)
                print(f"{index + 1}/{len(left)} cases, {rate:.1f}/s", file=sys.stderr)
    return [known[case] for case in planned]


def tally(entries: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Counts by kind and outcome, and of shorter videos."""
    counts: dict[str, collections.Counter[str]] = {}
    for entry in entries:
        of_kind = counts.setdefault(entry["kind"], collections.Counter())
        of_kind[entry["outcome"]] += 1
        of_kind["shorter"] += entry["is_shorter"]
    return {
        kind: {name: of_kind[name] for name in (*OUTCOMES, "shorter")}
        for kind, of_kind in counts.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="record, findings, whole files")
    parser.add_argument("--cases", type=int, default=10_000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--clips", type=Path, help="real videos to damage beside the made ones")
    parser.add_argument(
        "--unchecked", action="store_true", help="do not try all commands on whole files first"
    )
    parser.add_argument("--only", metavar="KIND:NUMBER", help="one case again, and what it said")
    options = parser.parse_args()
    out = options.out.resolve()
    clips = options.clips.resolve() if options.clips else None
    prepare()
    if options.only:
        kind, _, number = options.only.partition(":")
        path_of_commands(out / "bin")
        result = try_case(out, load_whole(out, clips), options.seed, kind, int(number))
        print(json.dumps(result.__dict__, indent=2))
        return result.outcome not in GOOD
    start = time.monotonic()
    entries = fuzz(out, options.kinds, options.cases, options.seed, clips, not options.unchecked)
    counts = tally(entries)
    n_bad = sum(entry["outcome"] not in GOOD for entry in entries)
    print(
        json.dumps(
            {
                "seed": options.seed,
                "cases": len(entries),
                "bad": n_bad,
                "hardware": hardware(),
                "versions": versions("av", "numpy", "pillow", "safetensors", "torch"),
                "wall_s": round(time.monotonic() - start, 1),
                "seconds_a_case": {
                    "median": float(np.median([entry["seconds"] for entry in entries])),
                    "greatest": max(entry["seconds"] for entry in entries),
                },
                "mib_greatest": max(entry["mib"] for entry in entries),
                "counts": counts,
                "total": {
                    name: sum(of_kind[name] for of_kind in counts.values())
                    for name in (*OUTCOMES, "shorter")
                },
            },
            indent=2,
        )
    )
    return 1 if n_bad else 0


if __name__ == "__main__":
    sys.exit(main())
