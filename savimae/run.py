"""From a config to a run of the loop, whatever it trains: machine, resuming, record, processes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import nn

from savimae.batches import Plan
from savimae.checkpoint import (
    is_plain_data,
    last_checkpoint,
    read_training_checkpoint,
    remove_temporary,
)
from savimae.config import CONFIG, check_config, record_config
from savimae.cores import available_cores
from savimae.devices import PRECISIONS, check_compiler, choose_device, choose_precision
from savimae.distributed import World, find_world, joined
from savimae.errors import SavimaeError, UsageError, shown
from savimae.files import read_json, refuse_file
from savimae.kernels.patches import compile_kernels
from savimae.lists import Video
from savimae.lock import sole_writer
from savimae.loop import Loop, LoopConfig, SaveEvery, StopSignals, Task, versions
from savimae.progress import duration
from savimae.runs import check_tensorboard
from savimae.schedule import Schedule, default_warmup_epochs

RESUME_AUTO, RESUME_NEVER = "auto", "never"
SMALL_LR = 1e-5  # below it AdamW hardly moves in a run of ordinary length
AnyTask = TypeVar("AnyTask", bound=Task)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What every kind of training can be told."""

    data: str  # a list, or a folder of videos
    out: str  # the run's folder
    root: str | None = None  # where a list's relative paths start

    epochs: int = 800
    batch_size: int = 8
    accumulate: int = 1
    lr: float | None = None  # the greatest; None: base_lr * effective batch / 256
    base_lr: float | None = None  # None: 1.5e-4
    min_lr: float | None = None  # None: 1e-5, or a tenth of the greatest if that is less
    warmup_epochs: float | None = None  # None: a tenth of the epochs, at most 40
    weight_decay: float = 0.05
    clip_grad: float | None = None
    seed: int = 0

    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    workers: int | None = None
    compile: bool = False
    checkpoint_activations: bool = False

    resume: str = RESUME_AUTO
    save_every: tuple[SaveEvery, ...] = (SaveEvery(epochs=10), SaveEvery(minutes=15))
    keep: int = 3
    log_every: int = 10
    tensorboard: bool = False

    default_base_lr: ClassVar[float] = 1.5e-4  # per 256 clips of the effective batch
    default_min_lr: ClassVar[float] = 1e-5
    longest_warmup: ClassVar[float] = 40  # epochs
    # What may be done with a checkpoint of other settings.
    advice: ClassVar[str] = (
        "To start from its weights only, choose another --out and give it to --init"
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.lr is not None and self.base_lr is not None:
            raise ValueError("give --lr or --base-lr, not both")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ValueError(f"clip_grad must be above 0, not {self.clip_grad}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, not {self.weight_decay}")

    def schedule(self, plan: Plan) -> Schedule:
        """Raises ValueError for a warm-up as long as the run, or rates that do not fit."""
        peak = self.lr
        if peak is None:
            base_lr = self.default_base_lr if self.base_lr is None else self.base_lr
            peak = base_lr * plan.effective_batch / 256
        min_lr = min(self.default_min_lr, peak / 10) if self.min_lr is None else self.min_lr
        warmup = self.warmup_epochs
        if warmup is None:
            warmup = default_warmup_epochs(self.epochs, self.longest_warmup)
        if not 0 <= warmup < self.epochs:
            raise ValueError(
                f"a warm-up of {warmup:g} epochs leaves nothing of a run of {self.epochs}; give a "
                "shorter --warmup-epochs or more --epochs"
            )
        steps = plan.steps_per_epoch
        return Schedule(peak, min_lr, self.epochs * steps, int(warmup * steps))


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is known of a run before its processes meet."""

    config: RunConfig
    world: World
    device: torch.device
    precision: str  # bf16 or fp32
    workers: int  # threads that load clips
    plan: Plan
    schedule: Schedule


class Job(Protocol[AnyTask]):
    """What a kind of training brings along."""

    @property
    def settings(self) -> dict[str, Any]:
        """What makes two runs the same run. How it is spread over processes does not."""

    @property
    def model_config(self) -> dict[str, Any]:
        """Shape of the model, for checkpoints."""

    def build(self, is_new: bool) -> AnyTask:
        """The task, its model on the device; with initial weights for a new run."""

    def make_optimizer(self, task: AnyTask) -> torch.optim.Optimizer: ...

    def blocks(self, task: AnyTask) -> list[nn.Module]:
        """What torch.compile compiles, one by one."""

    def print_plan(self, loop: Loop, task: AnyTask) -> None:
        """Say what is about to happen, before the first step. The first process calls it."""

    def start_event(self) -> dict[str, Any]:
        """What the log says of this beginning, beside what it says of all."""


@contextlib.contextmanager
def named_process() -> Iterator[World]:
    """This process's place among those of the run; errors of one of several say which it was.

    Raises:
        SavimaeError: as `find_world`, or what is raised inside.
    """
    world = find_world()
    try:
        yield world
    except SavimaeError as error:
        if world.size == 1:
            raise
        raise type(error)(f"process {world.rank} of {world.size}: {error}") from error


def set_up(config: RunConfig, world: World, n_samples: int) -> Setup:
    """Choose the machine and the plan; sets this process's threads.

    Raises:
        UsageError: options that do not fit each other or the machine.
        SavimaeError: TensorBoard is asked for and not installed.
    """
    device = choose_device(config.device, world)
    torch.set_num_threads(config.threads or max(1, available_cores() // world.sharing))
    if config.tensorboard:
        check_tensorboard()
    if config.compile and device.type == "cpu":
        check_compiler()
    plan, schedule = _plan(config, world, n_samples)
    workers = config.workers
    if workers is None:
        workers = max(1, torch.get_num_threads() // 4)
    precision = choose_precision(_begun_with(config), device)
    return Setup(config, world, device, precision, workers, plan, schedule)


def set_up_elsewhere(config: RunConfig, world: World, n_samples: int) -> Setup:
    """What is known of a run that other machines will do; this one is not asked what it can do.

    Raises:
        UsageError: options that do not fit each other.
    """
    plan, schedule = _plan(config, world, n_samples)
    return Setup(config, world, torch.device("cpu"), _begun_with(config), 0, plan, schedule)


def _plan(config: RunConfig, world: World, n_samples: int) -> tuple[Plan, Schedule]:
    try:
        plan = Plan(n_samples, config.batch_size, config.accumulate, world, config.seed)
        return plan, config.schedule(plan)
    except ValueError as error:
        raise UsageError(str(error)) from None


def check_run(setup: Setup, job: Job[AnyTask], unknown: Collection[str] = ()) -> bool:
    """Raise what `run` would raise before its first step; nothing is written, no model is made.

    Args:
        setup: of `set_up_elsewhere`.
        unknown: settings that only the job itself will know.

    Returns:
        Whether the run goes on from a checkpoint.

    Raises:
        UsageError: the run's folder is of another run, or a file.
        SavimaeError: a checkpoint or config.json that cannot be read.
    """
    config, settings = setup.config, job.settings
    if setup.precision not in PRECISIONS:  # the machines of the run decide
        unknown = {*unknown, "precision"}
    refuse_file(config.out)
    content = _checkpoint_to_resume(config, settings, unknown, mapped=True)
    if not _may_begin_again(config.out, settings):
        check_config(config.out, settings, unknown)
    return content is not None


def run(setup: Setup, job: Job[AnyTask]) -> int:
    """Run a job to its end or to a signal; returns the exit code, 0 or `errors.EXIT_STOPPED`.

    Raises:
        UsageError: the run's folder is of another run, or a file.
        SavimaeError: another process writes into the folder, a checkpoint that cannot be read, a
            loss that is not finite, a process that is gone, or what the task raises.
    """
    config, world = setup.config, setup.world
    # Signals end the process at once until it has met the others: there is nothing to save yet.
    with (
        joined(world, setup.device),
        StopSignals() as signals,
        _writing(config.out, world, signals) as check_writer,
    ):
        # Everything that all processes check by themselves has passed; from here the first leads.
        if world.is_main:
            content = _checkpoint_to_resume(config, job.settings)
            _record(config.out, job.settings)
            remove_temporary(config.out)
            compile_kernels()
        world.sum([0])
        if not world.is_main:
            content = _checkpoint_to_resume(config, job.settings)

        torch.manual_seed(config.seed)
        task = job.build(content is None)
        if config.compile:
            for block in job.blocks(task):
                block.compile(dynamic=True)
        loop_config = LoopConfig(
            config.out, config.epochs, setup.device, setup.precision, setup.workers,
            config.save_every, config.keep, config.log_every, config.clip_grad, config.tensorboard,
        )  # fmt: skip
        loop = Loop(
            task, job.make_optimizer(task), setup.plan, setup.schedule, loop_config,
            job.settings, job.model_config, check_writer,
        )  # fmt: skip
        if content is not None:
            try:
                loop.restore(content)
            except SavimaeError as error:
                last = (
                    config.resume if config.resume != RESUME_AUTO else last_checkpoint(config.out)
                )
                raise SavimaeError(f"{shown(last or config.out)}: {error}") from error
        world.share_state(task.model)
        if loop.is_done:
            if world.is_main:
                print(f"{shown(config.out)}: all {loop.total_steps} steps are done")
            return 0
        if world.is_main:
            job.print_plan(loop, task)
        code = loop.run(signals, {**_start_event(setup, loop), **job.start_event()})
        if world.is_main and code == 0:
            print(f"{shown(config.out)}: {loop.total_steps} steps done")
        return code


@contextlib.contextmanager
def _writing(run: str, world: World, signals: StopSignals) -> Iterator[Callable[[], None]]:
    """The first process writes for all, and no other one may. Gives what raises once one does.

    Raises:
        UsageError: `run` is a file.
        SavimaeError: another process writes into it.
    """
    if not world.is_main:
        yield lambda: None
        return
    refuse_file(run)
    with sole_writer(run, on_loss=signals.stop_unsaved) as writer:
        yield writer.check


def names_digest(videos: Sequence[Video]) -> str:
    """How many videos, and a hash of their names."""
    names = "\n".join(video.name for video in videos).encode("utf-8", "surrogateescape")
    return f"{len(videos)} ({hashlib.sha256(names).hexdigest()[:12]})"


def common_settings(setup: Setup) -> dict[str, Any]:
    """Of the settings that a resumed run must repeat, those that all kinds of training have."""
    config, schedule = setup.config, setup.schedule
    return {
        "epochs": config.epochs,
        "effective_batch": setup.plan.effective_batch,
        "lr": schedule.peak_lr,
        "min_lr": schedule.min_lr,
        "warmup_steps": schedule.warmup_steps,
        "weight_decay": config.weight_decay,
        "clip_grad": config.clip_grad,
        "seed": config.seed,
        "precision": setup.precision,
    }


def print_plan(setup: Setup, clips: str, model: str) -> None:
    """Say what is trained on what, and how; `clips` and `model` are descriptions of them."""
    config, plan, schedule = setup.config, setup.plan, setup.schedule
    source = "as given"
    if config.lr is None:
        base_lr = config.default_base_lr if config.base_lr is None else config.base_lr
        source = f"{base_lr:.3g} x {plan.effective_batch} / 256"
    print(
        f"{shown(config.data)}: {plan.n_samples} videos; {clips}\n"
        f"{model}; {setup.precision} on {setup.device.type}, {torch.get_num_threads()} threads, "
        f"{setup.workers} loading clips\n"
        f"effective batch {plan.effective_batch} = {plan.batch_size} clips x {plan.accumulate} "
        f"accumulated x {plan.world.size} processes\n"
        f"learning rate up to {schedule.peak_lr:.3g}, {source}; "
        f"{schedule.warmup_steps} steps of warm-up, then down to {schedule.min_lr:.3g}",
        flush=True,
    )
    if schedule.peak_lr < SMALL_LR:
        print(
            f"note: a learning rate of {schedule.peak_lr:.3g} is very small; --accumulate "
            "makes the effective batch larger, --lr sets the rate itself",
            flush=True,
        )


def print_steps(loop: Loop, seconds_a_clip: float | None) -> None:
    """Say how many steps are left, and about how long they take if that is known."""
    plan = loop.plan
    left = loop.total_steps - loop.step
    time_left = ""
    if seconds_a_clip is not None:
        n_clips = left / plan.steps_per_epoch * plan.n_samples
        time_left = f"; expected time about {duration(n_clips * seconds_a_clip / plan.world.size)}"
    where = f"resuming at step {loop.step}, {left} left of" if loop.step else "steps:"
    print(
        f"{where} {loop.total_steps} ({loop.config.epochs} epochs of {plan.steps_per_epoch})"
        f"{time_left}",
        flush=True,
    )


def _start_event(setup: Setup, loop: Loop) -> dict[str, Any]:
    config = setup.config
    return {
        "event": "start",
        "step": loop.step,
        "total_steps": loop.total_steps,
        "time": round(time.time(), 1),
        "data": config.data,
        "processes": setup.world.size,
        "batch_size": config.batch_size,
        "accumulate": config.accumulate,
        "device": setup.device.type,
        "threads": torch.get_num_threads(),
        "workers": setup.workers,
        "versions": versions(),
    }


def _begun_with(config: RunConfig) -> str:
    """The precision that is asked for; of a run that goes on, auto is the one it began with."""
    if config.precision == "auto":
        # A new run has none; a broken config.json is reported where it is used.
        with contextlib.suppress(OSError, ValueError):
            recorded = read_json(os.path.join(config.out, CONFIG)).get("precision")
            if recorded in PRECISIONS:
                return str(recorded)
    return config.precision


def _checkpoint_to_resume(
    config: RunConfig, settings: dict[str, Any], unknown: Collection[str] = (), mapped: bool = False
) -> dict[str, Any] | None:
    """The checkpoint to go on from, if there is one.

    Args:
        unknown: settings that are not compared.
        mapped: see `checkpoint.read_file`.

    Raises:
        UsageError: it is of a run with other settings; or --resume never, and there is one.
        SavimaeError: it cannot be read.
    """
    last = last_checkpoint(config.out)
    if config.resume == RESUME_NEVER:
        if last is not None:
            raise UsageError(
                f"{shown(config.out)} holds a run and --resume is never; choose another --out"
            )
        return None
    path = last if config.resume == RESUME_AUTO else config.resume
    if path is not None and os.path.isdir(path):
        path = last_checkpoint(path)
        if path is None:
            raise UsageError(f"{shown(config.resume)}: a folder without checkpoints of a run")
    if path is None:
        return None
    content = read_training_checkpoint(path, mapped)
    recorded = content["settings"]
    if not isinstance(recorded, dict) or not is_plain_data(recorded):
        raise SavimaeError(f"{shown(path)}: its settings are not those of a run; delete it")
    if recorded.get("output") != settings["output"]:
        raise UsageError(
            f"{shown(path)} is of another kind of run: output is {recorded.get('output')!r} there "
            f"and {settings['output']!r} here; choose another --out"
        )
    differing = [
        f"{key} is {recorded.get(key)!r} there and {settings.get(key)!r} here"
        for key in sorted((settings.keys() | recorded.keys()) - set(unknown))
        if settings.get(key) != recorded.get(key)
    ]
    if differing:
        raise UsageError(
            f"{shown(path)} is of a run with other settings: {'; '.join(differing)}. "
            f"{config.advice}"
        )
    return content


def _record(run: str, settings: dict[str, Any]) -> None:
    """Write config.json, or refuse a folder that holds another run or something else.

    Raises:
        UsageError, SavimaeError: as `record_config`.
    """
    if _may_begin_again(run, settings):
        os.unlink(os.path.join(run, CONFIG))
    record_config(run, settings)


def _may_begin_again(run: str, settings: dict[str, Any]) -> bool:
    """Whether a run of this kind is noted in the folder that failed before it saved anything."""
    if last_checkpoint(run) is not None:
        return False
    try:
        return bool(read_json(os.path.join(run, CONFIG)).get("output") == settings["output"])
    except (OSError, ValueError):  # none, or a broken one, which is reported where it is compared
        return False
