"""Starting a run, new or resumed, whatever it trains."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from savimae.kernels.patches import compile_kernels
from savimae.kernels.token_loss import compile_token_kernels
from savimae.system.errors import SavimaeError, UsageError, one_line, shown
from savimae.system.files import read_json, refuse_file, write_json
from savimae.system.lock import sole_writer
from savimae.system.progress import duration
from savimae.system.settings import (
    CONFIG,
    check_config,
    named_as_now,
    record_config,
    settings_that_differ,
)
from savimae.system.signals import StopSignals
from savimae.training.checkpoint import (
    is_plain_data,
    last_checkpoint,
    read_training_checkpoint,
    remove_temporary,
)
from savimae.training.distributed import World, joined
from savimae.training.log import versions
from savimae.training.loop import Loop, Task
from savimae.training.machine import PRECISIONS
from savimae.training.plan import Plan
from savimae.training.schedule import Schedule
from savimae.training.setup import LENGTH, RESUME_AUTO, RESUME_NEVER, RunConfig, Setup, command_of

AnyTask = TypeVar("AnyTask", bound=Task)
LONGER = "To make the run longer, give --extend"
MAY_CHANGE = (
    "What may change in a run: --epochs or --steps, to more, with --extend; processes, threads, "
    "workers, --batch-size and --accumulate where the effective batch stays, saving and logging"
)


class Run(Protocol[AnyTask]):
    """What a kind of training provides for `launch`."""

    def open_settings(self) -> Collection[str]:
        """Settings that the user left open: they are found when a run begins, and then kept."""

    def find_settings(self) -> dict[str, Any]:
        """Values for the open settings of a new run; what is found to be as usual is left out."""

    def take_settings(self, found: dict[str, Any]) -> None:
        """Go on with these values. Raises ValueError or TypeError for such as cannot be."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that a resumed run must repeat. The number of processes may change."""

    @property
    def model_config(self) -> dict[str, Any]:
        """Shape of the model, for checkpoints."""

    def build(self, is_new: bool) -> AnyTask:
        """The task, its model on the device; with initial weights for a new run."""

    def make_optimizer(self, task: AnyTask) -> torch.optim.Optimizer: ...

    def blocks(self, task: AnyTask) -> list[nn.Module]:
        """The modules that torch.compile compiles, one by one."""

    def print_plan(self, loop: Loop, task: AnyTask) -> None:
        """Print what is about to happen. The first process calls it before the first step."""

    def start_event(self) -> dict[str, Any]:
        """What the log's start line holds beside what it holds for every kind of training."""


def check_launch(setup: Setup, run: Run[AnyTask], unknown: Collection[str] = ()) -> bool:
    """Check what `launch` checks before its first step. Nothing is written, no model is made.

    Args:
        setup: of `set_up_elsewhere`.
        unknown: settings that only the run itself will know.

    Returns:
        Whether the run goes on from a checkpoint.

    Raises:
        UsageError: the run's folder is of another run, or a file.
        SavimaeError: a checkpoint or config.json that cannot be read.
    """
    config, settings = setup.config, run.settings
    unknown = {*unknown, *run.open_settings()}
    if setup.precision not in PRECISIONS:  # "auto" is resolved on the machines of the run
        unknown.add("precision")
    refuse_file(config.out)
    content = _checkpoint_to_resume(setup, settings, unknown, mapped=True)
    if not _may_begin_again(config.out, settings):
        lengths = LENGTH if config.extend else ()
        check_config(config.out, settings, {*unknown, *lengths})
    return content is not None


def launch(setup: Setup, run: Run[AnyTask]) -> int:
    """Train to the end or to a signal; returns the exit code, 0 or `errors.EXIT_STOPPED`.

    Raises:
        UsageError: the run's folder is of another run, or a file.
        SavimaeError: another process writes into the folder, a checkpoint that cannot be read, a
            loss that is not finite, a process that is gone, or what the task raises.
    """
    config, world = setup.config, setup.world
    # Until all processes are connected a signal ends the process at once: nothing is to be saved.
    with (
        joined(world, setup.device),
        StopSignals() as signals,
        _writing(config.out, world, signals) as check_writer,
    ):
        # Every process has checked its own options. From here the first one goes first.
        found: dict[str, Any] = {}
        if world.is_main:
            content = _checkpoint_to_resume(setup, run.settings, run.open_settings())
            found = run.find_settings() if content is None else _kept(run, content)
            _record(config, run.settings)
            remove_temporary(config.out)
            compile_kernels()
            compile_token_kernels()
        run.take_settings(world.gather(found)[0])
        if not world.is_main:
            content = _checkpoint_to_resume(setup, run.settings)

        torch.manual_seed(config.seed)
        task = run.build(content is None)
        if config.compile:
            for block in run.blocks(task):
                block.compile(dynamic=True)
        loop = Loop(
            setup, task, run.make_optimizer(task), run.settings, run.model_config, check_writer
        )
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
            run.print_plan(loop, task)
            if content is not None:
                _print_extension(loop, content["settings"])
        code = loop.run(signals, {**_start_event(setup, loop), **run.start_event()})
        if world.is_main and code == 0:
            print(f"{shown(config.out)}: {loop.total_steps} steps done")
        return code


@contextlib.contextmanager
def _writing(folder: str, world: World, signals: StopSignals) -> Iterator[Callable[[], None]]:
    """Allow the first process of this run to write; other runs are locked out.

    Yields:
        A function that raises SavimaeError once another process has taken over.

    Raises:
        UsageError: `folder` is a file.
        SavimaeError: another process writes into it.
    """
    if not world.is_main:
        yield lambda: None
        return
    refuse_file(folder)
    with sole_writer(folder, on_loss=signals.stop_unsaved) as writer:
        yield writer.check


def _kept(run: Run[AnyTask], content: dict[str, Any]) -> dict[str, Any]:
    """Open settings as the run was begun with them.

    Raises:
        SavimaeError: they cannot be.
    """
    recorded = content["settings"]
    found = {name: recorded[name] for name in run.open_settings() if name in recorded}
    try:
        run.take_settings(found)
    except (ValueError, TypeError) as error:
        raise SavimaeError(
            f"the settings in the checkpoint to resume from are damaged ({one_line(error)}); "
            "delete it to go on from an older one, or begin anew in another folder"
        ) from error
    return found


def _start_event(setup: Setup, loop: Loop) -> dict[str, Any]:
    config = setup.config
    return {
        "event": "start",
        "step": loop.step,
        "total_steps": loop.total_steps,
        "time": round(time.time(), 1),
        "command": command_of(config),
        "folder": os.getcwd(),
        "data": config.data,
        "root": config.root,
        "processes": setup.world.size,
        "batch_size": config.batch_size,
        "accumulate": config.accumulate,
        "device": setup.device.type,
        "threads": torch.get_num_threads(),
        "workers": setup.workers,
        "versions": versions(),
    }


def _checkpoint_to_resume(
    setup: Setup, settings: dict[str, Any], unknown: Collection[str] = (), mapped: bool = False
) -> dict[str, Any] | None:
    """The checkpoint to go on from, if there is one.

    Args:
        unknown: settings that are not compared.
        mapped: see `checkpoint.read_file`.

    Raises:
        UsageError: it is of a run with other settings; --resume never, and there is one; or
            --extend, and there is none, or it is of a longer run.
        SavimaeError: it cannot be read.
    """
    config = setup.config
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
        if config.extend:
            raise UsageError(f"{shown(config.out)}: --extend, and there is no run to go on with")
        return None
    content = read_training_checkpoint(path, mapped)
    recorded = content["settings"]
    if not isinstance(recorded, dict) or not is_plain_data(recorded):
        raise SavimaeError(f"{shown(path)}: its settings are not those of a run; delete it")
    content["settings"] = recorded = named_as_now(recorded)
    if recorded.get("output") != settings["output"]:
        raise UsageError(
            f"{shown(path)} is of another kind of run: output is {recorded.get('output')!r} there "
            f"and {settings['output']!r} here; choose another --out"
        )
    lengths = LENGTH if config.extend else ()
    differing = settings_that_differ(recorded, settings, {*unknown, *lengths})
    if differing:
        of_length = settings_that_differ(recorded, settings, {*recorded, *settings} - {*LENGTH})
        advice = f"{config.resume_advice}. {MAY_CHANGE}"
        if differing == of_length:
            total = _total_steps(recorded, setup.plan)
            is_shorter = total is not None and setup.schedule.total_steps < total
            advice = "A run cannot be made shorter" if is_shorter else LONGER
        raise UsageError(
            f"{shown(path)} is of a run with other settings: {'; '.join(differing)}. {advice}"
        )
    total = _total_steps(recorded, setup.plan)
    if config.extend and total is not None and setup.schedule.total_steps < total:
        raise UsageError(
            f"{shown(path)} is of a run of {total} steps, which --extend does not make shorter: "
            f"{setup.schedule.total_steps} were asked for"
        )
    return content


def _print_extension(loop: Loop, recorded: dict[str, Any]) -> None:
    """Say what becomes of the learning rate if the run was begun with another length."""
    schedule, step = loop.schedule, loop.step
    total = _total_steps(recorded, loop.plan)
    if total is None or total == schedule.total_steps:
        return
    before = Schedule(recorded["lr"], recorded["min_lr"], total, recorded["warmup_steps"])
    print(
        f"extended from {total} to {schedule.total_steps} steps: from step {step} on, the learning "
        f"rate is that of a run of this length, {schedule.at(step):.3g} where it was "
        f"{before.at(min(step, total)):.3g}",
        flush=True,
    )


def _total_steps(recorded: dict[str, Any], plan: Plan) -> int | None:
    """Steps of the whole run that these settings are of; None where they do not say."""
    steps, epochs = recorded.get("steps"), recorded.get("epochs")
    if type(steps) is int:
        return steps
    return epochs * plan.steps_per_epoch if type(epochs) is int else None


def _record(config: RunConfig, settings: dict[str, Any]) -> None:
    """Write config.json, or refuse a folder that holds another run or something else.

    Raises:
        UsageError, SavimaeError: as `record_config`.
    """
    if _may_begin_again(config.out, settings):
        os.unlink(os.path.join(config.out, CONFIG))
    if config.extend:  # of a run whose checkpoint has the other settings
        check_config(config.out, settings, LENGTH)
        write_json(os.path.join(config.out, CONFIG), settings)
    record_config(config.out, settings)


def _may_begin_again(folder: str, settings: dict[str, Any]) -> bool:
    """Whether the folder is of a run of this kind that ended before it saved anything."""
    if last_checkpoint(folder) is not None:
        return False
    try:
        return bool(read_json(os.path.join(folder, CONFIG)).get("output") == settings["output"])
    except (OSError, ValueError):  # none, or a broken one, which is reported where it is compared
        return False


def print_steps(loop: Loop, seconds_a_clip: float | None) -> None:
    """Print how many steps are left and, if it is known, about how long they take."""
    plan = loop.plan
    left = loop.total_steps - loop.step
    time_left = ""
    if seconds_a_clip is not None:
        n_clips = left / plan.steps_per_epoch * plan.n_samples * plan.repeat
        time_left = f"; expected time about {duration(n_clips * seconds_a_clip / plan.world.size)}"
    where = f"resuming at step {loop.step}, {left} left of" if loop.step else "steps:"
    epochs = f"{loop.total_steps / plan.steps_per_epoch:.4g} epochs of {plan.steps_per_epoch}"
    print(f"{where} {loop.total_steps} ({epochs}){time_left}", flush=True)
