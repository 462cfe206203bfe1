"""The training loop: steps, checkpoints, signals, log. What is trained is a `Task`.

The loss of a step is a mean over all its terms (tokens, for pretraining) in all processes and
micro-batches: each adds up its own, gradients and terms are summed, and one division makes the
mean. So a term weighs the same wherever its sample landed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import platform
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from savimae import __version__
from savimae.batches import MicroBatch, Plan, load_batches
from savimae.checkpoint import checkpoint_name, last_checkpoint, write_checkpoint
from savimae.distributed import GradientSum, World
from savimae.errors import EXIT_STOPPED, SavimaeError, one_line, shown
from savimae.progress import Progress
from savimae.runs import RunLog
from savimae.schedule import Schedule
from savimae.speed import Meter, resident_gib

BETAS = (0.9, 0.95)


class Task(Protocol):
    """What is trained, and how a loss comes of its samples."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def sum_names(self) -> Sequence[str]:
        """What `loss` adds up beside loss and terms, for the log."""

    def load(self, index: int, epoch: int) -> Any:
        """Sample `index` of the list as epoch `epoch` sees it. Called in threads."""

    def collate(self, samples: list[Any], epoch: int) -> Any:
        """A batch, on the device."""

    def n_terms(self, batch: Any) -> int:
        """Terms in the sum that `loss` returns."""

    def loss(self, batch: Any) -> tuple[Tensor, Sequence[float]]:
        """Sum of the batch's loss terms, a scalar with a gradient, and the `sum_names` sums."""

    def log_fields(self, sums: dict[str, float], seconds: float) -> dict[str, float | None]:
        """What the log shows of the sums over an interval of so many seconds."""

    def sample_name(self, sample: Any) -> str:
        """What to call a sample in an error."""

    def after_step(self) -> None:
        """The model's parameters have changed."""

    def is_test_due(self, epoch: int, is_last: bool) -> bool:
        """Whether to test after so many epochs."""

    def test(self, step: int, is_last: bool, signals: StopSignals) -> dict[str, float] | None:
        """Test what `step` steps made; all processes call it.

        Returns:
            What goes into the log; None if a process was asked to stop before the end.
        """

    def extra_state(self) -> dict[str, Any] | None:
        """What a checkpoint holds beside the model and the optimizer."""

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from what `extra_state` returned once."""


class PlainTask:
    """What a task does that keeps nothing of its own and has no test."""

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


@dataclasses.dataclass(frozen=True)
class SaveEvery:
    """When to save: every so many epochs, steps or minutes."""

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None

    @classmethod
    def parse(cls, text: str) -> SaveEvery:
        """ "10ep", "200steps" or "15min".

        Raises:
            ValueError: anything else.
        """
        for suffix, field in (("ep", "epochs"), ("steps", "steps"), ("min", "minutes")):
            number = text.removesuffix(suffix)
            if number != text and number.isdecimal() and int(number) > 0:
                return cls(**{field: int(number)})
        raise ValueError(f"{text!r} is not like 10ep, 200steps or 15min")


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How a run goes, whatever it trains."""

    out: str  # the run's folder
    epochs: int
    device: torch.device
    precision: str  # bf16 or fp32
    workers: int  # threads that load clips
    save_every: tuple[SaveEvery, ...]
    keep: int  # checkpoints, beside the last
    log_every: int  # steps
    clip_grad: float | None = None  # greatest norm of the gradient
    tensorboard: bool = False


def versions() -> dict[str, str]:
    return {
        "savimae": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with the published betas; no weight decay on biases, norms and the mask token."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (others if parameter.ndim <= 1 or name == "mask_token" else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=True)


def _is_plain(value: torch.Tensor) -> bool:
    """Whether it holds floating-point numbers that are all there."""
    is_there = value.layout == torch.strided and value.device.type != "meta"
    return is_there and value.is_floating_point()


class StopSignals:
    """SIGTERM, SIGINT and SIGUSR1 ask for a stop after the step; a second SIGINT kills at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.may_save = True

    def __enter__(self) -> StopSignals:
        names = ("SIGTERM", "SIGINT", "SIGUSR1")
        known = [getattr(signal, name) for name in names if hasattr(signal, name)]
        self._before = {number: signal.signal(number, self._handle) for number in known}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop_unsaved(self) -> None:
        """Ask for a stop that writes nothing; another thread may call this."""
        self.may_save = False
        self.received = self.received or signal.SIGTERM

    def _handle(self, number: int, _: object) -> None:
        self.received = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


class Loop:
    """One run of a task, from its first step or from a checkpoint to its last step."""

    def __init__(
        self,
        task: Task,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        schedule: Schedule,
        config: LoopConfig,
        settings: dict[str, Any],
        model_config: dict[str, Any],
        check_writer: Callable[[], None] = lambda: None,
    ):
        """`check_writer` is called before anything is written; it raises if that must not be."""
        self.task = task
        self.optimizer = optimizer
        self.plan = plan
        self.schedule = schedule
        self.config = config
        self.settings = settings
        self.model_config = model_config
        self.check_writer = check_writer
        self.world: World = plan.world
        self.total_steps = config.epochs * plan.steps_per_epoch
        self.step = 0
        self.saved_step: int | None = None
        self.is_tested = False  # after `step` steps, if a test is due then
        self.names = ("loss_sum", "n_terms", "n_samples", *task.sum_names)
        self.interval = np.zeros(len(self.names))
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        self.parameters: list[nn.Parameter] = parameters
        self.gradients = GradientSum(self.world, parameters)

    # ------------------------------------------------------------------------- checkpoints

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds; see `checkpoint`."""
        extra = self.task.extra_state()
        return {
            **({} if extra is None else {"extra": extra}),
            **({"is_tested": True} if self.is_tested else {}),
            "model": self.task.model.state_dict(),
            "config": self.model_config,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "settings": self.settings,
            "interval": self.interval.tolist(),
            "versions": versions(),
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Continue from what `content` returned once.

        Raises:
            SavimaeError: it is damaged: something is missing, or of another kind or shape.
        """
        try:
            self.task.model.load_state_dict(content["model"])
            self._restore_optimizer(content["optimizer"])
            if "extra" in content:
                self.task.load_extra_state(content["extra"])
            step, interval = content["step"], np.array(content["interval"])
            if type(step) is not int or not 0 <= step <= self.total_steps:
                raise ValueError(f"step is {step!r}")
            if interval.shape != self.interval.shape or interval.dtype.kind not in "if":
                raise ValueError("interval is not one number for each sum")
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise SavimaeError(
                f"the checkpoint to resume from is damaged ({one_line(error)}); delete it to go on "
                "from an older one, or begin anew in another folder"
            ) from error
        self.step = self.saved_step = step
        self.is_tested = content.get("is_tested", False) is True
        self.interval = interval.astype(float)

    def _restore_optimizer(self, state: dict[str, Any]) -> None:
        """As `load_state_dict`, which takes any tensor and any setting for good."""
        names = ("params", "weight_decay", "lr_scale", "betas", "eps", "amsgrad", "maximize")
        ours = self.optimizer.state_dict()["param_groups"]
        theirs = state["param_groups"]
        wanted = [{name: group[name] for name in names if name in group} for group in ours]
        found = [{name: group[name] for name in names if name in group} for group in theirs]
        if found != wanted:
            raise ValueError("the optimizer has other groups of parameters")
        for index, parameter in enumerate(self.parameters):
            of_parameter = state["state"].get(index, {})
            if not isinstance(of_parameter, dict):
                raise TypeError(f"the state of parameter {index} is no dictionary")
            for name in ("exp_avg", "exp_avg_sq") if of_parameter else ():
                value = of_parameter[name]
                if value.shape != parameter.shape or not _is_plain(value):
                    raise ValueError(f"{name} of parameter {index} does not fit")
            if of_parameter and (of_parameter["step"].numel() != 1 or len(of_parameter) != 3):
                raise ValueError(f"the state of parameter {index} is not AdamW's")
        self.optimizer.load_state_dict(state)

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
        """A gradient may overflow in a step whose loss was finite."""
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

        `start_event` is what the log says of this beginning.
        """
        self.saved_at = time.monotonic()
        self.task.model.train()
        batches = load_batches(
            self.plan, range(self.step, self.total_steps), self.task.load, self.config.workers
        )
        share = self.step / self.total_steps
        with (
            contextlib.closing(batches),
            RunLog(self.config.out, self.step, self.config.tensorboard, self.world.is_main) as log,
            Progress("training", start=share, quiet=not self.world.is_main) as progress,
        ):
            log.write(start_event)
            self.meter = Meter()
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
        """All steps are, and the test after them if there is one."""
        return self.step == self.total_steps and not self._is_test_due()

    def _is_test_due(self) -> bool:
        epoch, rest = divmod(self.step, self.plan.steps_per_epoch)
        if self.step == 0 or rest or self.is_tested:
            return False
        return self.task.is_test_due(epoch, self.step == self.total_steps)

    def _train(
        self,
        batches: Iterator[MicroBatch[Any]],
        signals: StopSignals,
        log: RunLog,
        progress: Progress,
    ) -> bool:
        """One step, with what is logged and saved after it; False if asked to stop instead."""
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
        """The test that is due, with what is logged and saved after it; False if asked to stop."""
        with self.meter.paused():
            found = self.task.test(self.step, self.step == self.total_steps, signals)
        if found is None:
            return False
        epoch = self.step // self.plan.steps_per_epoch
        log.write({"step": self.step, "epoch": epoch, **found})
        words = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        progress.write(f"after epoch {epoch}: {words}")
        self.is_tested = True
        if self.saved_step == self.step:  # a checkpoint that says that the test is done
            self.saved_step = None
            self.save()
        return True

    def _leave_together(self) -> None:
        """Wait for the last checkpoint: srun may end all processes when the first has ended."""
        self.world.sum([0])

    def _step(
        self, batches: Iterator[MicroBatch[Any]], signals: StopSignals
    ) -> dict[str, Any] | None:
        """One step; None if a process was asked to stop instead."""
        sums = np.zeros(len(self.names))
        count, done = 1, 0
        denominator = 0.0
        names: list[str] = []
        while done < count:
            with self.meter.waiting():
                micro = next(batches)
            count = micro.count
            batch = self.task.collate(micro.samples, self.plan.epoch_of(micro.step))
            n_terms = 0 if micro.is_filler else self.task.n_terms(batch)
            if done == 0:
                # Stop together; and divide by what is known of the terms, exact for one batch.
                terms, stops = self.world.sum([n_terms, signals.received is not None])
                if stops:
                    return None
                denominator = terms * count
            names += [self.task.sample_name(sample) for sample in micro.samples]
            done += 1
            if done == count:
                self.gradients.arm()
            with torch.autocast(
                self.config.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
            ):
                loss_sum, extra = self.task.loss(batch)
            (loss_sum * (0.0 if micro.is_filler else 1 / denominator)).backward()
            if not micro.is_filler:
                sums += [float(loss_sum.detach()), n_terms, len(micro.samples), *extra]
        self.gradients.wait()
        sums = self.world.sum(sums.tolist())
        loss = sums[0] / sums[1]
        if not math.isfinite(loss):
            listed = [name for of_rank in self.world.gather(names) for name in of_rank]
            raise SavimaeError(self._broken(f"the loss is {loss} at", listed))
        lr = self.schedule.at(self.step)
        logged = (self.step + 1) % self.config.log_every == 0 or self.step + 1 == self.total_steps
        norm = self._apply(denominator / sums[1], lr, logged)
        if norm is not None and not math.isfinite(norm):
            listed = [name for of_rank in self.world.gather(names) for name in of_rank]
            raise SavimaeError(self._broken(f"the gradient is {norm} at", listed))
        self.step += 1
        self.interval += sums
        self.meter.count_step(sums[self.names.index("n_samples")])
        return {
            "step": self.step,
            "epoch": round(self.step / self.plan.steps_per_epoch, 4),
            "loss": loss,
            "lr": lr,
            "grad_norm": norm,
        }

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
        """What happened since the last line of the log; starts the next interval."""
        sums = dict(zip(self.names, self.interval.tolist(), strict=True))
        self.interval = np.zeros(len(self.names))
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
        epoch = min(int(record["epoch"]) + 1, self.config.epochs)
        return (
            f"epoch {epoch}/{self.config.epochs}, step {self.step}/{self.total_steps}, "
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

    def _broken(self, what: str, clips: Sequence[str] = ()) -> str:
        last = last_checkpoint(self.config.out)
        epoch = self.plan.epoch_of(self.step)
        batch = f"; its clips: {', '.join(map(shown, clips))}" if clips else ""
        return (
            f"{what} step {self.step} (epoch {epoch}){batch}. Last good checkpoint: "
            f"{shown(last) if last else 'none'}. Lower the learning rate, or try --clip-grad 1 or "
            "--precision fp32"
        )
