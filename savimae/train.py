"""Pretraining: from options to a run of the loop.

Legend: B clips, T frames, S input size, N tokens of a clip. Masks: True = masked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from savimae.arrays import array_path
from savimae.batches import Plan
from savimae.checkpoint import (
    last_checkpoint,
    read_training_checkpoint,
    remove_temporary,
)
from savimae.clips import Clip, ClipConfig, ClipReader
from savimae.config import CONFIG, SaliencyConfig, record_config
from savimae.convert import check_parameters, load_weights
from savimae.cores import available_cores
from savimae.devices import PRECISIONS, check_compiler, choose_device, choose_precision
from savimae.distributed import World, find_world, joined
from savimae.errors import SavimaeError, UsageError, shown
from savimae.files import read_json
from savimae.kernels.patches import compile_kernels
from savimae.lists import Video, VideoList, find_videos
from savimae.loop import Loop, LoopConfig, SaveEvery, StopSignals, make_optimizer, versions
from savimae.masking import MaskSpec, draw_masks
from savimae.model import VideoMAE, VideoMAEConfig, model_config, step_flops
from savimae.progress import duration
from savimae.randomness import REPLACEMENT, sample_keys, uniform
from savimae.runs import check_tensorboard
from savimae.schedule import MIN_LR, Schedule, default_warmup_epochs
from savimae.video import VideoError

BASE_LR = 1.5e-4  # per 256 clips of the effective batch
SMALL_LR = 1e-5  # below it AdamW hardly moves in a run of ordinary length
BAD_VIDEO_POLICIES = ("stop", "skip")
MAX_REPLACEMENTS = 20  # videos that may fail one after the other
RESUME_AUTO, RESUME_NEVER = "auto", "never"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that `savimae train` can be told."""

    data: str  # a list, or a folder of videos
    out: str  # the run's folder
    root: str | None = None  # where a list's relative paths start
    saliency_root: str | None = None
    saliency_threshold: float | None = None  # where it is computed from the clips; None: 0.5

    model: str = "base"
    init: str | None = None  # weights to start from
    decoder_depth: int = 4
    tubelet_size: int = 2
    patch_size: int | None = None  # None: what the model's name says, else 16
    input_size: int | None = None  # None: what the model's name says, else 224

    mask_type: str = "savi"
    mask_ratio: float = 0.9
    salient_mask_ratio: float = 0.85
    nonsalient_mask_ratio: float = 0.95
    decoder_mask_ratio: float = 0.0

    num_frames: int = 16
    sampling_rate: int = 4
    augment: str = "none"
    hflip: bool = False
    on_bad_video: str = "stop"

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

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.on_bad_video not in BAD_VIDEO_POLICIES:
            known = ", ".join(BAD_VIDEO_POLICIES)
            raise ValueError(f"on_bad_video {self.on_bad_video!r} is not one of {known}")
        if self.lr is not None and self.base_lr is not None:
            raise ValueError("give --lr or --base-lr, not both")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ValueError(f"clip_grad must be above 0, not {self.clip_grad}")
        if self.saliency_threshold is not None and self.saliency_root and self.augment == "none":
            raise ValueError(
                "--saliency-threshold is for saliency that is computed from the clips; the arrays "
                "of --saliency-root have theirs, see `savimae preprocess --threshold`"
            )
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, not {self.weight_decay}")

    def of_model(self) -> VideoMAEConfig:
        """Shape of the model. Raises ValueError for a shape that cannot be."""
        given = {"image_size": self.input_size, "patch_size": self.patch_size}
        return model_config(
            self.model,
            **{name: value for name, value in given.items() if value is not None},
            num_frames=self.num_frames,
            tubelet_size=self.tubelet_size,
            decoder_depth=self.decoder_depth,
            decoder_mask_ratio=self.decoder_mask_ratio,
            checkpoint_activations=self.checkpoint_activations,
        )

    def of_masks(self) -> MaskSpec:
        """Raises ValueError for an unknown type or a ratio out of range."""
        model = self.of_model()
        return MaskSpec(
            self.mask_type, model.time_steps, model.grid_size,
            self.mask_ratio, self.salient_mask_ratio, self.nonsalient_mask_ratio,
        )  # fmt: skip

    def of_clips(self) -> ClipConfig:
        """Raises ValueError for an unknown augmentation or a size below 1."""
        size = self.of_model().image_size
        return ClipConfig(self.num_frames, self.sampling_rate, size, self.augment, self.hflip)

    def of_saliency(self) -> SaliencyConfig:
        model = self.of_model()
        if self.saliency_threshold is None:
            return SaliencyConfig(model.image_size, model.patch_size)
        return SaliencyConfig(model.image_size, model.patch_size, self.saliency_threshold)

    def schedule(self, plan: Plan) -> Schedule:
        """Raises ValueError for a warm-up as long as the run, or rates that do not fit."""
        peak = self.lr
        if peak is None:
            base_lr = BASE_LR if self.base_lr is None else self.base_lr
            peak = base_lr * plan.effective_batch / 256
        min_lr = min(MIN_LR, peak / 10) if self.min_lr is None else self.min_lr
        warmup = self.warmup_epochs
        if warmup is None:
            warmup = default_warmup_epochs(self.epochs)
        if not 0 <= warmup < self.epochs:
            raise ValueError(
                f"a warm-up of {warmup:g} epochs leaves nothing of a run of {self.epochs}; give a "
                "shorter --warmup-epochs or more --epochs"
            )
        steps = plan.steps_per_epoch
        return Schedule(peak, min_lr, self.epochs * steps, int(warmup * steps))


# ---------------------------------------------------------------------------------- the task


class Sample(NamedTuple):
    """One clip of an epoch."""

    place: int  # in the list; masks depend on it, also where the video was replaced
    video: Video
    clip: Clip
    n_replaced: int  # videos that could not be decoded in its stead


class Batch(NamedTuple):
    """Clips with their masks, on the device."""

    pixels: Tensor  # uint8 [B, T, S, S, 3]
    mask: Tensor  # bool [B, N], True = masked
    decoded: Tensor  # bool [B, N], the masked tokens that are reconstructed
    salient: Tensor  # bool [B, N]
    n_replaced: int


class Pretraining:
    """The task of the loop: masked clips, and the error of their reconstruction."""

    sum_names = (
        "salient_sum", "n_salient", "other_sum", "n_other", "visible", "flops", "replaced",
    )  # fmt: skip

    def __init__(
        self,
        model: VideoMAE,
        videos: Sequence[Video],
        reader: ClipReader,
        masks: MaskSpec,
        seed: int,
        on_bad_video: str,
        device: torch.device,
    ):
        self.model = model
        self.videos = videos
        self.reader = reader
        self.masks = masks
        self.seed = seed
        self.on_bad_video = on_bad_video
        self.device = device
        self.reported: set[str] = set()

    def load(self, index: int, epoch: int) -> Sample:
        """Clip `index` of `epoch`; a video that cannot be decoded stops the run or is replaced.

        Raises:
            SavimaeError: the video, or its saliency array, cannot be read.
        """
        key = sample_keys(self.seed, epoch, np.array([index]))[0]
        others = uniform(key, REPLACEMENT, MAX_REPLACEMENTS) * len(self.videos)
        for attempt, other in enumerate([index, *others.astype(int).tolist()]):
            video = self.videos[other]
            try:
                return Sample(index, video, self.reader.read(video, key), attempt)
            except VideoError as error:
                if self.on_bad_video == "stop":
                    raise SavimaeError(
                        f"{shown(video.path)}: {error}; mend it, take it off the list, or let "
                        "--on-bad-video skip replace it"
                    ) from error
                self._report(video, str(error))
        raise SavimaeError(
            f"{MAX_REPLACEMENTS} videos in a row cannot be decoded; look at the messages above"
        )

    def _report(self, video: Video, reason: str) -> None:
        if video.path not in self.reported:
            self.reported.add(video.path)
            print(f"replaced: {shown(video.path)}: {reason}", file=sys.stderr, flush=True)

    def sample_name(self, sample: Sample) -> str:
        return sample.video.path

    def collate(self, samples: list[Sample], epoch: int) -> Batch:
        pixels = np.stack([sample.clip.pixels for sample in samples])
        salient = np.stack([sample.clip.saliency for sample in samples])
        keys = sample_keys(self.seed, epoch, np.array([sample.place for sample in samples]))
        mask = torch.from_numpy(draw_masks(self.masks, keys, salient))
        return Batch(
            torch.from_numpy(pixels).to(self.device),
            mask.to(self.device),
            self.model.decoded_tokens(mask).to(self.device),
            torch.from_numpy(salient).to(self.device),
            sum(sample.n_replaced for sample in samples),
        )

    def n_terms(self, batch: Batch) -> int:
        """Values that are reconstructed."""
        return int(batch.decoded.sum()) * self.model.config.token_values

    def loss(self, batch: Batch) -> tuple[Tensor, Sequence[float]]:
        """Sum of squared errors, and what `sum_names` says."""
        output = self.model(batch.pixels, batch.mask)
        salient = batch.salient[output.decoded]
        of_salient = float(output.token_losses[salient].sum(dtype=torch.float64))
        of_all = float(output.token_losses.sum(dtype=torch.float64))
        n_salient = int(salient.sum())
        visible = (~batch.mask).sum(1).tolist()
        decoded = output.decoded.sum(1).tolist()
        return output.loss_sum, (
            of_salient, n_salient, of_all - of_salient, len(salient) - n_salient,
            sum(visible), step_flops(self.model.config, visible, decoded), batch.n_replaced,
        )  # fmt: skip

    def log_fields(self, sums: dict[str, float], seconds: float) -> dict[str, float | None]:
        def mean(total: str, count: str) -> float | None:
            return sums[total] / sums[count] if sums[count] else None

        return {
            "loss_salient": mean("salient_sum", "n_salient"),
            "loss_other": mean("other_sum", "n_other"),
            "visible_tokens": mean("visible", "n_samples"),
            "gflop_per_s": round(sums["flops"] / seconds / 1e9, 2),
            "replaced_videos": sums["replaced"],
        }


# ------------------------------------------------------------------------------------ the run


def train(config: TrainConfig) -> int:
    """Pretrain as `config` says; returns the exit code, 0 or `errors.EXIT_STOPPED`.

    Raises:
        UsageError: options that do not fit each other, the data or the run's folder.
        SavimaeError: data or a checkpoint that cannot be read, a loss that is not finite, a
            process that is gone.
    """
    world = find_world()
    try:
        return _train(config, world)
    except SavimaeError as error:
        if world.size == 1:
            raise
        raise type(error)(f"process {world.rank} of {world.size}: {error}") from error


def _train(config: TrainConfig, world: World) -> int:
    device = choose_device(config.device, world)
    torch.set_num_threads(config.threads or max(1, available_cores() // world.sharing))
    if config.tensorboard:
        check_tensorboard()
    if config.compile and device.type == "cpu":
        check_compiler()
    found = find_videos(config.data, config.root, weigh=False, quiet=not world.is_main)
    try:
        plan = Plan(len(found.videos), config.batch_size, config.accumulate, world, config.seed)
        schedule = config.schedule(plan)
        masks, shape = config.of_masks(), config.of_model()
        reader = ClipReader(
            config.of_clips(), config.of_saliency(), shape.tubelet_size, config.saliency_root
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    _report_unreadable(found, config.on_bad_video, world)
    if reader.saliency_root is not None:
        check_arrays(found.videos, reader.saliency_root, shape)
    precision = choose_precision(_begun_with(config), device)
    settings = _settings(config, plan, schedule, found.videos, reader, precision)
    # Signals end the process at once until it has met the others: there is nothing to save yet.
    with joined(world, device), StopSignals() as signals:
        # Everything that all processes check by themselves has passed; from here the first leads.
        if world.is_main:
            content = _checkpoint_to_resume(config, settings)
            _record(config.out, settings)
            remove_temporary(config.out)
            compile_kernels()
        world.sum([0])
        if not world.is_main:
            content = _checkpoint_to_resume(config, settings)

        torch.manual_seed(config.seed)
        model = VideoMAE(shape)
        if config.init is not None and content is None:
            _initialize_from(model, config.init)
        model.to(device)
        if config.compile:
            for block in (*model.encoder.blocks, *model.decoder.blocks):
                block.compile(dynamic=True)
        task = Pretraining(
            model, found.videos, reader, masks, config.seed, config.on_bad_video, device
        )
        workers = config.workers
        if workers is None:
            workers = max(1, torch.get_num_threads() // 4)
        loop_config = LoopConfig(
            config.out, config.epochs, device, precision, workers, config.save_every,
            config.keep, config.log_every, config.clip_grad, config.tensorboard,
        )  # fmt: skip
        loop = Loop(
            task, make_optimizer(model, config.weight_decay), plan, schedule, loop_config,
            settings, dataclasses.asdict(shape),
        )  # fmt: skip
        if content is not None:
            loop.restore(content)
        world.share_state(model)
        if loop.step == loop.total_steps:
            if world.is_main:
                print(f"{shown(config.out)}: all {loop.total_steps} steps are done")
            return 0
        _print_plan(config, loop, task, precision, workers)
        code = loop.run(signals, _start_event(config, loop, workers))
        if world.is_main and code == 0:
            print(f"{shown(config.out)}: {loop.total_steps} steps done")
        return code


def _begun_with(config: TrainConfig) -> str:
    """The precision that is asked for; of a run that goes on, auto is the one it began with."""
    if config.precision == "auto":
        # A new run has none; a broken config.json is reported where it is used.
        with contextlib.suppress(OSError, ValueError):
            recorded = read_json(os.path.join(config.out, CONFIG)).get("precision")
            if recorded in PRECISIONS:
                return str(recorded)
    return config.precision


def _report_unreadable(found: VideoList, policy: str, world: World) -> None:
    """Folders that could not be listed, and empty ones: treated like videos that do not decode.

    Raises:
        SavimaeError: there are some, and the policy is to stop.
    """
    for path, reason in found.unreadable:
        if policy == "stop":
            raise SavimaeError(
                f"{shown(path)}: {reason} ({len(found.unreadable)} such in the data); mend or "
                "remove it, or let --on-bad-video skip leave it out"
            )
        if world.is_main:
            print(f"left out: {shown(path)}: {reason}", file=sys.stderr, flush=True)


def check_arrays(videos: Sequence[Video], root: str, shape: VideoMAEConfig) -> None:
    """Every video has an array, made with the model's sizes. Looks at names only, not into files.

    Raises:
        UsageError: the arrays are of other sizes.
        SavimaeError: some are missing.
    """
    if not os.path.isdir(root):
        raise UsageError(
            f"{shown(root)}: no such folder of arrays; make it with `savimae preprocess`"
        )
    try:
        recorded = read_json(os.path.join(root, CONFIG))
    except (OSError, ValueError):  # arrays of another tool
        recorded = {}
    for name, wanted in (("input_size", shape.image_size), ("patch_size", shape.patch_size)):
        if recorded.get(name, wanted) != wanted:
            raise UsageError(
                f"{shown(root)} was made with {name} {recorded[name]}, the model wants {wanted}; "
                "preprocess with the model's sizes, or leave --saliency-root out"
            )
    listings: dict[str, set[str]] = {}
    missing = []
    for video in videos:
        folder, name = os.path.split(array_path(root, video.name))
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in listings[folder]:
            missing.append(video)
    if missing:
        raise SavimaeError(
            f"{shown(array_path(root, missing[0].name))}: no such array "
            f"({len(missing)} of {len(videos)} are missing); run `savimae preprocess` on the data "
            "again, or train on the list that its --list writes"
        )


def _settings(
    config: TrainConfig,
    plan: Plan,
    schedule: Schedule,
    videos: Sequence[Video],
    reader: ClipReader,
    precision: str,
) -> dict[str, Any]:
    """What makes two runs the same run. How it is spread over processes does not."""
    masks = config.of_masks()
    ratios = ["salient_ratio", "nonsalient_ratio"] if masks.uses_saliency else ["ratio"]
    shape = dataclasses.asdict(config.of_model())
    del shape["checkpoint_activations"]
    names = "\n".join(video.name for video in videos).encode("utf-8", "surrogateescape")
    return {
        "output": "pretraining",
        "videos": f"{len(videos)} ({hashlib.sha256(names).hexdigest()[:12]})",
        "mask_type": masks.kind,
        **{f"mask_{name}": getattr(masks, name) for name in ratios},
        "saliency": "computed" if reader.saliency_root is None else "arrays",
        **({} if reader.saliency_root else {"saliency_threshold": reader.saliency.threshold}),
        "sampling_rate": config.sampling_rate,
        "augment": config.augment,
        "hflip": config.hflip,
        **shape,
        "init": config.init,
        "epochs": config.epochs,
        "effective_batch": plan.effective_batch,
        "lr": schedule.peak_lr,
        "min_lr": schedule.min_lr,
        "warmup_steps": schedule.warmup_steps,
        "weight_decay": config.weight_decay,
        "clip_grad": config.clip_grad,
        "seed": config.seed,
        "precision": precision,
    }


def _checkpoint_to_resume(config: TrainConfig, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint to go on from, if there is one.

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
    content = read_training_checkpoint(path)
    recorded = content["settings"]
    differing = [
        f"{key} is {recorded.get(key)!r} there and {settings.get(key)!r} here"
        for key in sorted(settings.keys() | recorded.keys())
        if settings.get(key) != recorded.get(key)
    ]
    if differing:
        raise UsageError(
            f"{shown(path)} is of a run with other settings: {'; '.join(differing)}. To start from "
            "its weights only, choose another --out and give it to --init"
        )
    return content


def _record(run: str, settings: dict[str, Any]) -> None:
    """Write config.json, or refuse a folder that holds another run or something else.

    Raises:
        UsageError, SavimaeError: as `record_config`; or `run` is a file.
    """
    if os.path.exists(run) and not os.path.isdir(run):
        raise UsageError(f"{shown(run)} is a file; name a folder for the run")
    path = os.path.join(run, CONFIG)
    if last_checkpoint(run) is None:  # a run that failed before it saved anything: begin again
        with contextlib.suppress(OSError, ValueError):
            if read_json(path).get("output") == settings["output"]:
                os.unlink(path)
    record_config(run, settings)


def _initialize_from(model: VideoMAE, path: str) -> None:
    """Start from weights of any layout that `convert` knows; their shape must be the model's."""
    weights = load_weights(path)
    check_parameters(path, weights.state, model.config)
    model.load_state_dict(weights.state)


# ---------------------------------------------------------------------------- what is printed


def _print_plan(
    config: TrainConfig, loop: Loop, task: Pretraining, precision: str, workers: int
) -> None:
    """What is about to happen, before the first step: sizes, rates, visible tokens, time."""
    if not loop.world.is_main:
        return
    plan, shape = loop.plan, task.model.config
    n_parameters = sum(each.numel() for each in task.model.parameters())
    print(
        f"{shown(config.data)}: {plan.n_samples} videos; clips of {shape.num_frames} frames, "
        f"{config.sampling_rate} apart, {shape.image_size}x{shape.image_size}\n"
        f"{config.model}: {n_parameters / 1e6:.2f} M parameters, {shape.n_tokens} tokens a clip; "
        f"{precision} on {task.device.type}, {torch.get_num_threads()} threads, "
        f"{workers} loading clips\n"
        f"effective batch {plan.effective_batch} = {plan.batch_size} clips x {plan.accumulate} "
        f"accumulated x {plan.world.size} processes\n"
        f"learning rate up to {loop.schedule.peak_lr:.3g}, {_explained(config, plan)}; "
        f"{loop.schedule.warmup_steps} steps of warm-up, then down to {loop.schedule.min_lr:.3g}",
        flush=True,
    )
    if loop.schedule.peak_lr < SMALL_LR:
        print(
            f"note: a learning rate of {loop.schedule.peak_lr:.3g} is very small; --accumulate "
            "makes the effective batch larger, --lr sets the rate itself",
            flush=True,
        )
    source = f"arrays of {shown(config.saliency_root)}" if config.saliency_root else "the clips"
    if config.saliency_root and task.reader.saliency_root is None:
        source = "the cropped clips (crops move the grid of the arrays)"
    visible, seconds_a_clip = _try_clips(loop, task, precision)
    left = loop.total_steps - loop.step
    n_clips = left / plan.steps_per_epoch * plan.n_samples
    expected_s = n_clips * seconds_a_clip / plan.world.size
    where = f"resuming at step {loop.step}, {left} left of" if loop.step else ""
    print(
        f"{config.mask_type} masks, saliency from {source}: about {visible:.0f} of "
        f"{shape.n_tokens} tokens visible\n"
        f"{where or 'steps:'} {loop.total_steps} ({config.epochs} epochs of "
        f"{plan.steps_per_epoch}); expected time about {duration(expected_s)}",
        flush=True,
    )


def _explained(config: TrainConfig, plan: Plan) -> str:
    if config.lr is not None:
        return "as given"
    return f"{config.base_lr or BASE_LR:.3g} x {plan.effective_batch} / 256"


def _try_clips(loop: Loop, task: Pretraining, precision: str) -> tuple[float, float]:
    """Visible tokens of the first clips on average, and seconds of training a clip, roughly.

    A step is three forward passes: the backward pass takes twice the forward one.
    """
    batch = loop.plan.micro_batches(loop.step)[0][:4]
    epoch = loop.plan.epoch_of(loop.step)
    task.model.train()
    few = task.collate([task.load(int(index), epoch) for index in batch], epoch)
    visible = float((~few.mask).sum(1).double().mean())
    seconds = 0.0
    with (
        torch.no_grad(),
        torch.autocast(task.device.type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        for _ in range(2):  # the first one is slow
            start = time.perf_counter()
            task.loss(few)
            seconds = time.perf_counter() - start
    return visible, 3 * seconds / len(batch)


def _start_event(config: TrainConfig, loop: Loop, workers: int) -> dict[str, Any]:
    return {
        "event": "start",
        "step": loop.step,
        "total_steps": loop.total_steps,
        "time": round(time.time(), 1),
        "data": config.data,
        "saliency_root": config.saliency_root,
        "processes": loop.world.size,
        "batch_size": config.batch_size,
        "accumulate": config.accumulate,
        "device": loop.config.device.type,
        "threads": torch.get_num_threads(),
        "workers": workers,
        "versions": versions(),
    }
