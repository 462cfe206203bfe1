"""The training loop: steps, checkpoints, signals, log. What is trained is a `Task`.

The loss of a step is a mean over all its terms (in pretraining, the pixel values of reconstructed
tokens) in all processes and micro-batches. Each process adds up its own terms and gradients; they
are summed over the processes and divided once. So every term has the same weight, no matter which
process computed it.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from savimae.system.errors import EXIT_STOPPED, SavimaeError, one_line, shown
from savimae.system.progress import Progress
from savimae.system.signals import StopSignals
from savimae.training.checkpoint import (
    checkpoint_name,
    last_checkpoint,
    write_checkpoint,
)
from savimae.training.distributed import GradientSum
from savimae.training.log import RunLog, versions
from savimae.training.machine import autocast
from savimae.training.optimizer import restore_optimizer
from savimae.training.plan import MicroBatch, load_batches
from savimae.training.setup import Setup
from savimae.training.throughput import Meter, resident_gib


class Task(Protocol):
    """What is trained: its model, its samples and its loss."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def sum_names(self) -> Sequence[str]:
        """Names of the sums that `loss` makes for the log, beside the loss and its terms."""

    def load(self, index: int, epoch: int) -> Any:
        """Load sample `index` with the random choices of `epoch`. Called in threads."""

    def collate(self, samples: list[Any], epoch: int) -> Any:
        """A batch, on the device."""

    def n_terms(self, batch: Any) -> int:
        """Number of terms in the sum that `loss` returns."""

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """Sum of the batch's loss terms, a scalar with a gradient, and the sums by name."""

    def log_fields(self, sums: dict[str, float], seconds: float) -> dict[str, float | None]:
        """Fields of the log, from the sums over an interval of `seconds`."""

    def sample_name(self, sample: Any) -> str:
        """What to call a sample in an error."""

    def after_step(self) -> None:
        """Called after each update of the parameters."""

    def is_test_due(self, epoch: int, is_last: bool) -> bool:
        """Whether to test when `epoch` epochs are done."""

    def test(self, step: int, is_last: bool, signals: StopSignals) -> dict[str, float] | None:
        """Test the model after `step` steps; all processes call it.

        Returns:
            What goes into the log; None if a process was asked to stop before the end.
        """

    def extra_state(self) -> dict[str, Any] | None:
        """What a checkpoint holds beside the model and the optimizer."""

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned earlier."""


class PlainTask:
    """The defaults of a task that has no state of its own and no test."""

    def after_step(self) -> None:
        return

    def is_test_due(self, epoch: int, is_last: bool) -> bool:
        del epoch, is_last
        return False

    def test(self, step: int, is_last: bool, signals: StopSignals) -> dict[str, float] | None:
        raise NotImplementedError("a task without a test")

    def extra_state(self) -> dict[str, Any] | None:
        return None

    def load_extra_state(self, state: dict[str, Any]) -> None:
        del state


class _Accumulated(NamedTuple):
    """Sums over the micro-batches of a step. Their gradients are in the parameters."""

    sums: dict[str, float]  # over all processes, by name
    divisor: float  # what the gradients have been divided by
    clip_names: list[str]  # of this process


class Loop:
    """One run of a task, from its first step or from a checkpoint to its last step."""

    def __init__(
        self,
        setup: Setup,
        task: Task,
        optimizer: torch.optim.Optimizer,
        settings: dict[str, Any],
        model_config: dict[str, Any],
        check_writer: Callable[[], None] = lambda: None,
    ):
        """A loop before its first step.

        Args:
            settings, model_config: what checkpoints record of the run and of the model.
            check_writer: called before anything is written; raises an error if this run may
                not write any more.
        """
        self.config = setup.config
        self.device, self.precision = setup.device, setup.precision
        self.workers = setup.workers
        self.plan, self.schedule = setup.plan, setup.schedule
        self.world = setup.world
        self.task = task
        self.optimizer = optimizer
        self.settings = settings
        self.model_config = model_config
        self.check_writer = check_writer
        self.total_steps = self.schedule.total_steps
        self.step = 0
        self.saved_step: int | None = None
        self.saved_at = time.monotonic()
        self.is_tested = False  # whether the test that is due after `step` steps is done
        self.sum_names = ("loss_sum", "n_terms", "n_samples", *task.sum_names)
        self.interval = self._no_sums()  # since the last line of the log
        self.meter = Meter()
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        self.parameters: list[nn.Parameter] = parameters
        self.gradients = GradientSum(self.world, parameters)

    def _no_sums(self) -> dict[str, float]:
        return dict.fromkeys(self.sum_names, 0.0)

    # ------------------------------------------------------------------------- checkpoints

    def content(self) -> dict[str, Any]:
        """The content of a checkpoint; `checkpoint.py` has a table of its keys."""
        extra = self.task.extra_state()
        return {
            **({} if extra is None else {"extra": extra}),
            **({"is_tested": True} if self.is_tested else {}),
            "model": self.task.model.state_dict(),
            "config": self.model_config,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "settings": self.settings,
            "interval": list(self.interval.values()),
            "versions": versions(),
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Restore what `content` returned earlier.

        Raises:
            SavimaeError: it is damaged: something is missing, or of another kind or shape.
        """
        try:
            self.task.model.load_state_dict(content["model"])
            restore_optimizer(self.optimizer, content["optimizer"])
            if "extra" in content:
                self.task.load_extra_state(content["extra"])
            step, interval = content["step"], np.array(content["interval"])
            if type(step) is not int or not 0 <= step <= self.total_steps:
                raise ValueError(f"step is {step!r}")
            if interval.shape != (len(self.sum_names),) or interval.dtype.kind not in "if":
                raise ValueError("interval is not one number for each sum")
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise SavimaeError(
                f"the checkpoint to resume from is damaged ({one_line(error)}); delete it to go on "
                "from an older one, or begin anew in another folder"
            ) from error
        self.step = self.saved_step = step
        self.is_tested = content.get("is_tested", False) is True
        self.interval = dict(zip(self.sum_names, interval.astype(float).tolist(), strict=True))

    def save(self) -> None:
        self.check_writer()
        if self.saved_step == self.step:
            return
        if self.world.is_main:
            self._refuse_broken_weights()
            name = checkpoint_name(self.step, self.plan.steps_per_epoch)
            write_checkpoint(self.config.out, name, self.content(), self.config.keep)
        self.saved_step = self.step
        self.saved_at = time.monotonic()

    def _refuse_broken_weights(self) -> None:
        """Raises SavimaeError: a gradient may overflow in a step whose loss was finite."""
        if not all(bool(torch.isfinite(each).all()) for each in self.parameters):
            raise SavimaeError(self._broken("a weight is not a finite number after"))

    def _is_time_to_save(self) -> bool:
        for every in self.config.save_every:
            epoch, rest = divmod(self.step, self.plan.steps_per_epoch)
            if every.epochs and not rest and epoch % every.epochs == 0:
                return True
            if every.steps and self.step % every.steps == 0:
                return True
            if every.minutes and time.monotonic() - self.saved_at >= 60 * every.minutes:
                return True
        return False

    # ------------------------------------------------------------------------------- steps

    def run(self, signals: StopSignals, start_event: dict[str, Any]) -> int:
        """Train to the end or to a signal; returns the exit code, 0 or EXIT_STOPPED.

        `start_event` is the line of the log that says that the run was started or resumed.
        """
        self.saved_at = time.monotonic()
        self.task.model.train()
        batches = load_batches(
            self.plan, range(self.step, self.total_steps), self.task.load, self.workers
        )
        share = self.step / self.total_steps
        with (
            contextlib.closing(batches),
            RunLog(self.config.out, self.step, self.config.tensorboard, self.world.is_main) as log,
            Progress("training", start=share, quiet=not self.world.is_main) as progress,
        ):
            log.write(start_event)
            self.meter.restart()
            while not self.is_done:
                if self._is_test_due():
                    goes_on = self._test(signals, log, progress)
                else:
                    goes_on = self._train(batches, signals, log, progress)
                if not goes_on:
                    self.save()
                    self._leave_together()
                    progress.write(self._stopped(signals.received))
                    return EXIT_STOPPED
            self._leave_together()
        return 0

    @property
    def is_done(self) -> bool:
        """Whether all steps are done, and the test after them if there is one."""
        return self.step == self.total_steps and not self._is_test_due()

    def _is_test_due(self) -> bool:
        epoch, rest = divmod(self.step, self.plan.steps_per_epoch)
        is_last = self.step == self.total_steps
        if self.step == 0 or self.is_tested or (rest and not is_last):
            return False
        return self.task.is_test_due(epoch, is_last)

    def _train(
        self,
        batches: Iterator[MicroBatch[Any]],
        signals: StopSignals,
        log: RunLog,
        progress: Progress,
    ) -> bool:
        """Do one step, then log and save. Returns False if a process was asked to stop instead."""
        record = self._step(batches, signals)
        if record is None:
            return False
        self.check_writer()
        self.is_tested = False
        if self.step % self.config.log_every == 0 or self.step == self.total_steps:
            log.write({**record, **self._interval_record()})
        progress.show(self.step / self.total_steps, self._status(record))
        if self._is_time_to_save() or self.step == self.total_steps:
            self.save()
        return True

    def _test(self, signals: StopSignals, log: RunLog, progress: Progress) -> bool:
        """Do the test that is due, then log and save; False if a process was asked to stop."""
        with self.meter.paused():
            found = self.task.test(self.step, self.step == self.total_steps, signals)
        if found is None:
            return False
        epoch = self.step // self.plan.steps_per_epoch
        log.write({"step": self.step, "epoch": epoch, **found})
        words = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        progress.write(f"after epoch {epoch}: {words}")
        self.is_tested = True
        if self.saved_step == self.step:  # write the checkpoint again, now marked as tested
            self.saved_step = None
            self.save()
        return True

    def _leave_together(self) -> None:
        """Wait for the last checkpoint: srun may end all processes when the first has ended."""
        self.world.barrier()

    def _step(
        self, batches: Iterator[MicroBatch[Any]], signals: StopSignals
    ) -> dict[str, Any] | None:
        """One step; None if a process was asked to stop instead."""
        accumulated = self._accumulate(batches, signals)
        if accumulated is None:
            return None
        sums, divisor, clip_names = accumulated
        loss = sums["loss_sum"] / sums["n_terms"]
        self._check_finite("the loss", loss, clip_names)
        lr = self.schedule.at(self.step)
        is_logged = (self.step + 1) % self.config.log_every == 0
        is_logged |= self.step + 1 == self.total_steps
        correction = divisor / sums["n_terms"]  # 1 unless the divisor was an estimate
        norm = self._apply(correction, lr, is_logged)
        if norm is not None:
            self._check_finite("the gradient", norm, clip_names)
        self.step += 1
        for name, value in sums.items():
            self.interval[name] += value
        self.meter.count_step(sums["n_samples"])
        return {
            "step": self.step,
            "epoch": round(self.step / self.plan.steps_per_epoch, 4),
            "loss": loss,
            "lr": lr,
            "grad_norm": norm,
        }

    def _accumulate(
        self, batches: Iterator[MicroBatch[Any]], signals: StopSignals
    ) -> _Accumulated | None:
        """Forward and backward pass of every micro-batch; None if a process was asked to stop.

        Each loss is divided before its backward pass, so that gradients stay small. With one
        micro-batch the divisor is the number of terms. With several, the terms of later ones are
        not known yet; the divisor is then an estimate (terms of the first one times the number of
        micro-batches), which `_step` corrects. A filler goes through both passes with a factor of
        0: every process must have every gradient to add.
        """
        sums = self._no_sums()
        clip_names: list[str] = []
        divisor = 0.0
        is_last = False
        while not is_last:
            with self.meter.waiting():
                micro = next(batches)
            is_last = micro.number + 1 == micro.count
            batch = self.task.collate(micro.samples, self.plan.epoch_of(micro.step))
            n_terms = 0 if micro.is_filler else self.task.n_terms(batch)
            if micro.number == 0:
                n_all = self._agree(n_terms, signals)
                if n_all is None:
                    return None
                divisor = n_all * micro.count
            clip_names += [self.task.sample_name(sample) for sample in micro.samples]
            if is_last:
                self.gradients.arm()
            with autocast(self.device, self.precision):
                loss_sum, extra = self.task.loss(batch)
            (loss_sum * (0.0 if micro.is_filler else 1 / divisor)).backward()
            if not micro.is_filler:
                loss, n_samples = float(loss_sum.detach()), len(micro.samples) * self.plan.repeat
                found = {"loss_sum": loss, "n_terms": n_terms, "n_samples": n_samples}
                for name, value in (found | extra).items():
                    sums[name] += value
        self.gradients.wait()
        totals = self.world.sum(list(sums.values())).tolist()
        return _Accumulated(dict(zip(sums, totals, strict=True)), divisor, clip_names)

    def _agree(self, n_terms: int, signals: StopSignals) -> float | None:
        """Terms of all processes' first micro-batches; None if one was asked to stop.

        All processes stop in the same step.
        """
        n_all, stops = self.world.sum([n_terms, signals.received is not None]).tolist()
        return None if stops else n_all

    def _check_finite(self, what: str, value: float, clip_names: list[str]) -> None:
        """Raises SavimaeError, with the clips of all processes, for a value that is not finite."""
        if not math.isfinite(value):
            listed = [name for of_rank in self.world.gather(clip_names) for name in of_rank]
            raise SavimaeError(self._broken(f"{what} is {value} at", listed))

    def _apply(self, scale: float, lr: float, measure: bool) -> float | None:
        """Update the parameters with their gradients times `scale`; the gradients' norm if asked.

        Nothing is updated if the norm is known and not finite.
        """
        gradients = [each.grad for each in self.parameters if each.grad is not None]
        norm = None
        if scale != 1:
            torch._foreach_mul_(gradients, scale)
        if measure or self.config.clip_grad is not None:
            limit = math.inf if self.config.clip_grad is None else self.config.clip_grad
            norm = float(nn.utils.clip_grad_norm_(self.parameters, limit))
        if norm is None or math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            self.optimizer.step()
            self.task.after_step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    # -------------------------------------------------------------------------------- words

    def _interval_record(self) -> dict[str, Any]:
        """Fields of the log: what happened since its last line. Starts the next interval."""
        sums, self.interval = self.interval, self._no_sums()
        seconds = self.meter.restart()
        return {
            "loss": sums["loss_sum"] / sums["n_terms"],
            "clips_per_s": round(self.meter.clips_per_s, 4),
            "data_wait_share": round(self.meter.wait_share, 5),
            **self.task.log_fields(sums, seconds),
            "memory_gib": round(resident_gib(), 3),
            "time": round(time.time(), 1),
        }

    def _status(self, record: dict[str, Any]) -> str:
        epochs = math.ceil(self.total_steps / self.plan.steps_per_epoch)
        epoch = min(int(record["epoch"]) + 1, epochs)
        return (
            f"epoch {epoch}/{epochs}, step {self.step}/{self.total_steps}, "
            f"loss {record['loss']:.4f}, lr {record['lr']:.2e}, "
            f"{self.meter.clips_per_s:.2f} clips/s, {self.meter.wait_share:.1%} waiting for data"
        )

    def _stopped(self, number: signal.Signals | None) -> str:
        by = number.name if number is not None else "a signal to another process"
        return (
            f"stopped by {by} after step {self.step} of {self.total_steps}, saved in "
            f"{shown(self.config.out)}; run the same command again to go on "
            f"(exit code {EXIT_STOPPED})"
        )

    def _broken(self, what: str, clip_names: Sequence[str] = ()) -> str:
        last = last_checkpoint(self.config.out)
        epoch = self.plan.epoch_of(self.step)
        names = ", ".join(map(shown, clip_names))
        batch = f"; its clips: {names}" if clip_names else ""
        return (
            f"{what} step {self.step} (epoch {epoch}){batch}. Last good checkpoint: "
            f"{shown(last) if last else 'none'}. Lower the learning rate, or try --clip-grad 1 or "
            "--precision fp32"
        )
