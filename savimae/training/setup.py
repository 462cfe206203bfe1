"""What is known of a run before its processes meet: options, machine, plan and schedule."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import torch

from savimae.system.cores import available_cores
from savimae.system.errors import SavimaeError, UsageError, shown
from savimae.system.files import read_json
from savimae.system.settings import CONFIG
from savimae.system.sizes import Sides
from savimae.training.attention_choice import AUTO
from savimae.training.checkpoint import SaveEvery, last_checkpoint
from savimae.training.distributed import World, find_world
from savimae.training.log import check_tensorboard
from savimae.training.machine import (
    PRECISIONS,
    check_compiler,
    choose_device,
    choose_precision,
    default_workers,
)
from savimae.training.plan import Plan
from savimae.training.schedule import Schedule, default_warmup_epochs

RESUME_AUTO, RESUME_NEVER = "auto", "never"
# Settings that say how long a run is: --extend may change them.
LENGTH = ("epochs", "steps", "warmup_steps")
SMALL_LR = 1e-5  # below it AdamW hardly moves in a run of ordinary length


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What every kind of training can be told."""

    data: str  # a list, or a folder of videos
    out: str  # the run's folder
    root: str | None = None  # where a list's relative paths start

    epochs: int | None = None  # None: 800, unless the steps are given
    steps: int | None = None  # of the run, where it is not to be a number of epochs
    batch_size: int = 8
    accumulate: int = 1
    lr: float | None = None  # the highest rate; None: base_lr * effective batch / 256
    base_lr: float | None = None  # None: 1.5e-4
    min_lr: float | None = None  # None: 1e-5, or a tenth of the highest if that is less
    warmup_epochs: float | None = None  # None: a tenth of the epochs, at most 40
    weight_decay: float = 0.05
    clip_grad: float | None = None
    seed: int = 0

    device: str = "auto"
    precision: str = "auto"
    attention: str = AUTO
    threads: int | None = None
    workers: int | None = None
    compile: bool = False
    checkpoint_activations: bool = False

    resume: str = RESUME_AUTO
    extend: bool = False  # go on with more epochs or steps than the run was begun with
    save_every: tuple[SaveEvery, ...] = (SaveEvery(epochs=10), SaveEvery(minutes=15))
    keep: int = 3
    log_every: int = 10
    tensorboard: bool = False

    default_epochs: ClassVar[int] = 800
    default_base_lr: ClassVar[float] = 1.5e-4  # per 256 clips of the effective batch
    default_min_lr: ClassVar[float] = 1e-5
    longest_warmup: ClassVar[float] = 40  # epochs
    # What to do with a checkpoint of other settings.
    resume_advice: ClassVar[str] = (
        "To start from its weights only, choose another --out and give it to --init"
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size", "accumulate", "keep", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give --epochs or --steps, not both")
        if self.lr is not None and self.base_lr is not None:
            raise ValueError("give --lr or --base-lr, not both")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ValueError(f"clip_grad must be above 0, not {self.clip_grad}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, not {self.weight_decay}")

    def total_steps(self, plan: Plan) -> int:
        """Steps of the whole run."""
        if self.steps is not None:
            return self.steps
        return (self.epochs or self.default_epochs) * plan.steps_per_epoch

    def schedule(self, plan: Plan) -> Schedule:
        """Raises ValueError if the warm-up is not shorter than the run, or rates do not fit."""
        peak = self.lr
        if peak is None:
            base_lr = self.default_base_lr if self.base_lr is None else self.base_lr
            peak = base_lr * plan.effective_batch / 256
        min_lr = min(self.default_min_lr, peak / 10) if self.min_lr is None else self.min_lr
        total, steps = self.total_steps(plan), plan.steps_per_epoch
        warmup = self.warmup_epochs
        if warmup is None:
            warmup = default_warmup_epochs(total / steps, self.longest_warmup)
        if not 0 <= warmup < total / steps:
            raise ValueError(
                f"a warm-up of {warmup:g} epochs leaves nothing of a run of {total / steps:g}; "
                "give a shorter --warmup-epochs or a longer run"
            )
        return Schedule(peak, min_lr, total, int(warmup * steps))


def options_of(config: RunConfig, leave_out: Collection[str] = ()) -> list[str]:
    """What makes this config on the command line of its kind of training: `--name value` each.

    Args:
        leave_out: fields that are not told.
    """
    options = []
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if value == field.default or field.name in ("checkpoint", *leave_out):
            continue
        if name == "data" and "checkpoint" in vars(config):
            name = "train"
        if isinstance(value, bool):
            options.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, tuple) and not isinstance(value, Sides):
            options += [f"--{name} {each}" for each in value]
        else:
            options.append(f"--{name} {shown(shlex.quote(str(0 if value is None else value)))}")
    return options


def command_of(config: RunConfig) -> str:
    """A command line that makes this config, in one line for a shell; --resume is not told."""
    checkpoint = vars(config).get("checkpoint")
    kind = "train" if checkpoint is None else f"finetune {shown(shlex.quote(checkpoint))}"
    return " ".join(["savimae", kind, *options_of(config, ["resume"])])


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is known of a run before its processes meet."""

    config: RunConfig
    world: World
    device: torch.device
    precision: str  # bf16 or fp32; auto, too, of a run that other machines will do
    workers: int  # threads that load clips
    plan: Plan
    schedule: Schedule


@contextlib.contextmanager
def named_process() -> Iterator[World]:
    """This process's place among those of the run; of several, errors name the process.

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


def set_up(config: RunConfig, world: World, n_samples: int, repeat: int = 1) -> Setup:
    """Choose the machine and the plan; sets this process's threads.

    Args:
        n_samples: clips of an epoch.
        repeat: samples that are made of each clip.

    Raises:
        UsageError: options that do not fit each other or the machine.
        SavimaeError: TensorBoard is asked for and not installed.
    """
    device = choose_device(config.device, world)
    if device.type != "cpu" and config.attention != AUTO:
        raise UsageError(
            f"--attention {config.attention} is for CPUs: GPUs have one way; leave it out, or give "
            "--device cpu"
        )
    torch.set_num_threads(config.threads or max(1, available_cores() // world.sharing))
    if config.tensorboard:
        check_tensorboard()
    if config.compile and device.type == "cpu":
        check_compiler()
    plan, schedule = _plan(config, world, n_samples, repeat)
    workers = default_workers() if config.workers is None else config.workers
    precision = choose_precision(_begun_with(config), device)
    return Setup(config, world, device, precision, workers, plan, schedule)


def set_up_elsewhere(config: RunConfig, world: World, n_samples: int, repeat: int = 1) -> Setup:
    """The setup of a run that other machines will do; nothing is looked up on this machine.

    Raises:
        UsageError: options that do not fit each other.
    """
    plan, schedule = _plan(config, world, n_samples, repeat)
    return Setup(config, world, torch.device("cpu"), _begun_with(config), 0, plan, schedule)


def _plan(config: RunConfig, world: World, n_samples: int, repeat: int) -> tuple[Plan, Schedule]:
    try:
        plan = Plan(n_samples, config.batch_size, config.accumulate, world, config.seed, repeat)
        schedule = config.schedule(plan)
        # The warm-up of a run that goes on stays, also where --extend made the run longer.
        warmup = _recorded(config.out, "warmup_steps") if last_checkpoint(config.out) else None
        if config.warmup_epochs is None and type(warmup) is int and warmup < schedule.total_steps:
            schedule = dataclasses.replace(schedule, warmup_steps=warmup)
        return plan, schedule
    except ValueError as error:
        raise UsageError(str(error)) from None


def common_settings(setup: Setup) -> dict[str, Any]:
    """Of the settings that a resumed run must repeat, those that all kinds of training have."""
    config, schedule = setup.config, setup.schedule
    return {
        **(
            {"epochs": config.epochs or config.default_epochs}
            if config.steps is None
            else {"steps": config.steps}
        ),
        "effective_batch": setup.plan.effective_batch,
        "lr": schedule.peak_lr,
        "min_lr": schedule.min_lr,
        "warmup_steps": schedule.warmup_steps,
        "weight_decay": config.weight_decay,
        "clip_grad": config.clip_grad,
        "seed": config.seed,
        "precision": setup.precision,
    }


def _words(plan: Plan) -> str:
    if plan.repeat == 1:
        return f"{plan.batch_size} clips"
    return f"{plan.clips_at_a_time} clips x {plan.repeat} masks"


def print_setup(setup: Setup, clips: str, model: str) -> None:
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
        f"effective batch {plan.effective_batch} = {_words(plan)} x {plan.accumulate} "
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


def _begun_with(config: RunConfig) -> str:
    """The precision that was asked for; a resumed run with "auto" keeps the recorded one."""
    recorded = _recorded(config.out, "precision") if config.precision == "auto" else None
    return str(recorded) if recorded in PRECISIONS else config.precision


def _recorded(run: str, name: str) -> Any:
    """A setting in the config.json of a run; None where there is none."""
    # A new run has no config.json; a broken one is reported where it is used.
    with contextlib.suppress(OSError, ValueError):
        return read_json(os.path.join(run, CONFIG)).get(name)
    return None
