"""Pretraining: from options to a run of the loop.

Legend: B clips, T frames, S input size, N tokens of a clip. Masks: True = masked.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from savimae.arrays import array_path
from savimae.clips import Clip, ClipConfig, ClipReader
from savimae.config import CONFIG, SaliencyConfig
from savimae.convert import check_parameters, load_weights
from savimae.distributed import World
from savimae.errors import SavimaeError, UsageError, shown
from savimae.files import read_json
from savimae.lists import Video, VideoList, find_videos
from savimae.loop import Loop, PlainTask, make_optimizer
from savimae.masking import MaskSpec, draw_masks
from savimae.model import VideoMAE, VideoMAEConfig, model_config, step_flops
from savimae.randomness import REPLACEMENT, sample_keys, uniform
from savimae.run import (
    RunConfig,
    Setup,
    common_settings,
    named_process,
    names_digest,
    print_plan,
    print_steps,
    run,
    set_up,
)
from savimae.video import VideoError

BAD_VIDEO_POLICIES = ("stop", "skip")
MAX_REPLACEMENTS = 20  # videos that may fail one after the other


@dataclasses.dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Everything that `savimae train` can be told."""

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on_bad_video not in BAD_VIDEO_POLICIES:
            known = ", ".join(BAD_VIDEO_POLICIES)
            raise ValueError(f"on_bad_video {self.on_bad_video!r} is not one of {known}")
        if self.saliency_threshold is not None and self.saliency_root and self.augment == "none":
            raise ValueError(
                "--saliency-threshold is for saliency that is computed from the clips; the arrays "
                "of --saliency-root have theirs, see `savimae preprocess --threshold`"
            )

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


class Pretraining(PlainTask):
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
    with named_process() as world:
        found = find_videos(config.data, config.root, weigh=False, quiet=not world.is_main)
        setup = set_up(config, world, len(found.videos))
        return run(setup, PretrainingJob(config, setup, found))


class PretrainingJob:
    """Pretraining as a job of `run`.

    Raises:
        UsageError: options that do not fit each other or the data.
        SavimaeError: data that cannot be read.
    """

    def __init__(self, config: TrainConfig, setup: Setup, found: VideoList):
        self.config = config
        self.setup = setup
        self.videos = found.videos
        try:
            self.masks, self.shape = config.of_masks(), config.of_model()
            self.reader = ClipReader(
                config.of_clips(), config.of_saliency(), self.shape.tubelet_size,
                config.saliency_root,
            )  # fmt: skip
        except ValueError as error:
            raise UsageError(str(error)) from None
        _report_unreadable(found, config.on_bad_video, setup.world)
        if self.reader.saliency_root is not None:
            check_arrays(found.videos, self.reader.saliency_root, self.shape)

    @property
    def model_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self.shape)

    @property
    def settings(self) -> dict[str, Any]:
        config, masks, reader = self.config, self.masks, self.reader
        ratios = ["salient_ratio", "nonsalient_ratio"] if masks.uses_saliency else ["ratio"]
        shape = dataclasses.asdict(self.shape)
        del shape["checkpoint_activations"]
        return {
            "output": "pretraining",
            "videos": names_digest(self.videos),
            "mask_type": masks.kind,
            **{f"mask_{name}": getattr(masks, name) for name in ratios},
            "saliency": "computed" if reader.saliency_root is None else "arrays",
            **({} if reader.saliency_root else {"saliency_threshold": reader.saliency.threshold}),
            "sampling_rate": config.sampling_rate,
            "augment": config.augment,
            "hflip": config.hflip,
            **shape,
            "init": config.init,
            **common_settings(self.setup),
        }

    def build(self, is_new: bool) -> Pretraining:
        model = VideoMAE(self.shape)
        if self.config.init is not None and is_new:
            _initialize_from(model, self.config.init)
        return Pretraining(
            model.to(self.setup.device), self.videos, self.reader, self.masks, self.config.seed,
            self.config.on_bad_video, self.setup.device,
        )  # fmt: skip

    def make_optimizer(self, task: Pretraining) -> torch.optim.Optimizer:
        return make_optimizer(task.model, self.config.weight_decay)

    def blocks(self, task: Pretraining) -> list[nn.Module]:
        return [*task.model.encoder.blocks, *task.model.decoder.blocks]

    def start_event(self) -> dict[str, Any]:
        return {"saliency_root": self.config.saliency_root}

    def print_plan(self, loop: Loop, task: Pretraining) -> None:
        config, shape = self.config, self.shape
        n_parameters = sum(each.numel() for each in task.model.parameters()) / 1e6
        print_plan(
            self.setup,
            f"clips of {shape.num_frames} frames, {config.sampling_rate} apart, "
            f"{shape.image_size}x{shape.image_size}",
            f"{config.model}: {n_parameters:.2f} M parameters, {shape.n_tokens} tokens a clip",
        )
        source = f"arrays of {shown(config.saliency_root)}" if config.saliency_root else "the clips"
        if config.saliency_root and self.reader.saliency_root is None:
            source = "the cropped clips (crops move the grid of the arrays)"
        visible, seconds_a_clip = _try_clips(loop, task, self.setup.precision)
        print(
            f"{config.mask_type} masks, saliency from {source}: about {visible:.0f} of "
            f"{shape.n_tokens} tokens visible"
        )
        print_steps(loop, seconds_a_clip)


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


def _initialize_from(model: VideoMAE, path: str) -> None:
    """Start from weights of any layout that `convert` knows; their shape must be the model's."""
    weights = load_weights(path)
    check_parameters(path, weights.state, model.config)
    model.load_state_dict(weights.state)


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
