"""Pretraining: from options to a run of the loop.

Legend: B clips, T frames, H, W sides of the input, C channels, N tokens of a clip. Masks: True =
masked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from savimae.data.fitting import PRESS
from savimae.data.lists import Video, VideoList, distinct_videos, find_videos, names_digest
from savimae.data.video import VideoError, naming_video
from savimae.model.channels import gray_config
from savimae.model.config import (
    GRAY,
    PUBLISHED,
    VideoMAEConfig,
    describe,
    model_config,
    step_flops,
)
from savimae.model.videomae import VideoMAE
from savimae.saliency.array_source import cut_words, find_cut
from savimae.saliency.config import (
    CHANGE,
    FRAME_MEAN,
    SaliencyConfig,
    choose_saliency,
    mostly_salient,
)
from savimae.samples.clips import Clip, ClipConfig, ClipReader, refuse_fitted_crops
from savimae.samples.masking import MaskSpec, draw_decoded, draw_masks, refuse_idle_ratios
from savimae.samples.randomness import (
    REPLACEMENT,
    epoch_order,
    repeat_keys,
    sample_keys,
    uniform,
)
from savimae.system.errors import SavimaeError, UsageError, shown
from savimae.system.files import read_json
from savimae.system.progress import Progress
from savimae.system.settings import CONFIG, named_as_now
from savimae.system.sizes import FrameSize, frame_size, recorded_size
from savimae.training.attention_choice import (
    AUTO,
    AttentionShape,
    check_ways,
    choose_ways,
    use_ways,
    ways_of,
)
from savimae.training.checkpoint import last_checkpoint
from savimae.training.distributed import World
from savimae.training.launch import check_launch, launch, print_steps
from savimae.training.loaded_weights import in_channels
from savimae.training.loop import Loop, PlainTask
from savimae.training.machine import DTYPES, autocast
from savimae.training.optimizer import OPTIMIZERS, make_optimizer
from savimae.training.schedule import FrameSchedule
from savimae.training.setup import (
    RESUME_AUTO,
    RunConfig,
    Setup,
    common_settings,
    named_process,
    print_setup,
    set_up,
    set_up_elsewhere,
)
from savimae.training.weights import check_parameters, load_weights

BAD_VIDEO_POLICIES = ("stop", "skip")
DEFAULT_MODEL = "base"
STOP_REMEDY = "mend it, take it off the list, or let --on-bad-video skip replace it"
PARTS = ("encoder", "decoder")  # of the model, which compute attention each in their way
CLIPS_TO_COUNT = 256  # whose salient tokens say how many clips of an equal count show
SALIENT_SHARE = 0.3  # of made-up clips, to measure with
MAX_REPLACEMENTS = 20  # videos that may fail one after the other


@dataclasses.dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Everything that `savimae train` can be told."""

    saliency_root: str | None = None
    saliency: str | None = None  # its kind; None: that of the arrays, else frame-mean
    saliency_threshold: float | None = None  # where it is computed from the clips; None: 0.5
    salient_share: float | None = None  # of a clip's tokens, of change; None: 0.25

    optimizer: str = "adamw"

    init: str | None = None  # weights to start from
    # Shape of the model. None: take it from the weights to start from, else from the model's name,
    # else from the defaults of VideoMAEConfig.
    model: str | None = None  # None without weights: base
    encoder_depth: int | None = None
    decoder_depth: int | None = None
    tubelet_size: int | None = None
    patch_size: int | None = None
    input_size: FrameSize | None = None
    num_frames: int | None = None
    num_frames_schedule: FrameSchedule | None = None  # short clips first; ends with num_frames
    channels: int | None = None
    # Of pixels in 0 to 1, numbers with commas, one for each channel; None: ImageNet's.
    pixel_mean: str | None = None
    pixel_std: str | None = None

    mask_type: str = "savi"
    mask_ratio: float | None = None  # of tube and random masks; None: 0.9
    salient_mask_ratio: float | None = None  # of savi and savi-tube masks; None: 0.85
    nonsalient_mask_ratio: float | None = None  # None: 0.95
    equal_count: bool = False  # every clip shows as many tokens, what the ratios give on average
    visible_tokens: int | None = None  # or so many
    decoder_mask_ratio: float = 0.0
    decode: str = "all"
    repeat: int = 1  # masks of each clip that is loaded, each a sample of the batch

    sampling_rate: int = 4
    augment: str = "none"
    fit: str | None = None  # of whole frames; None: as the arrays were made, else press
    hflip: bool = False
    on_bad_video: str = "stop"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repeat < 1:
            raise ValueError(f"repeat must be at least 1, not {self.repeat}")
        if self.batch_size % self.repeat:
            raise ValueError(
                f"--batch-size {self.batch_size} is not a multiple of --repeat {self.repeat}; the "
                "batch counts every mask of a clip"
            )
        refuse_fitted_crops(self.fit, self.augment)
        if self.input_size is not None:
            object.__setattr__(self, "input_size", frame_size(self.input_size))
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r} is not one of {', '.join(OPTIMIZERS)}")
        if self.on_bad_video not in BAD_VIDEO_POLICIES:
            known = ", ".join(BAD_VIDEO_POLICIES)
            raise ValueError(f"on_bad_video {self.on_bad_video!r} is not one of {known}")
        for name in ("pixel_mean", "pixel_std"):
            _numbers(name, getattr(self, name))
        refuse_idle_ratios(
            self.mask_type, self.mask_ratio, self.salient_mask_ratio, self.nonsalient_mask_ratio,
            self.equal_count or self.visible_tokens is not None,
        )  # fmt: skip
        if self.equal_count and self.visible_tokens is not None:
            raise ValueError(
                "--visible-tokens is an equal count of its own; leave --equal-count out"
            )
        lengths = self.num_frames_schedule
        if lengths is not None and self.num_frames not in (None, lengths.parts[-1]):
            raise ValueError(
                f"--num-frames-schedule {lengths} ends with clips of {lengths.parts[-1]} frames, "
                f"--num-frames is {self.num_frames}; leave --num-frames out"
            )
        if self.saliency_threshold is not None and self.saliency_root and self.augment == "none":
            raise ValueError(
                "--saliency-threshold is for saliency that is computed from the clips; the arrays "
                "of --saliency-root have theirs, see `savimae preprocess --threshold`"
            )

    def model_shape(self) -> VideoMAEConfig:
        """Shape of the model.

        Raises:
            ValueError: a shape that cannot be, or not that of the weights to start from.
            SavimaeError: these cannot be read.
        """
        lengths = self.num_frames_schedule
        options = {
            "input_size": self.input_size,
            "patch_size": self.patch_size,
            "num_frames": self.num_frames if lengths is None else lengths.parts[-1],
            "tubelet_size": self.tubelet_size,
            "encoder_depth": self.encoder_depth,
            "decoder_depth": self.decoder_depth,
            "channels": self.channels,
            "pixel_mean": _numbers("pixel_mean", self.pixel_mean),
            "pixel_std": _numbers("pixel_std", self.pixel_std),
        }
        given: dict[str, Any] = {
            name: value for name, value in options.items() if value is not None
        }
        if self._init_shape is not None and self.model is not None:
            depth = {} if self.encoder_depth is None else {"encoder_depth": self.encoder_depth}
            named = model_config(self.model, **depth)
            if describe(named) != describe(self._init_shape):
                raise ValueError(
                    f"{shown(self.init or '')}: is {describe(self._init_shape)}, --model is "
                    f"{describe(named)}; leave --model out to go on with the former"
                )
            if self.model.startswith(PUBLISHED):
                sizes = {"input_size": named.input_size, "patch_size": named.patch_size}
                given = {**sizes, **given}
        given["checkpoint_activations"] = self.checkpoint_activations
        if self._init_shape is None:
            return model_config(self.model or DEFAULT_MODEL, **given)
        shape = self._init_shape
        if given.get("channels", shape.channels) != shape.channels:
            if given["channels"] != GRAY:
                raise ValueError(
                    f"--channels {given['channels']}: {shown(self.init or '')} is of gray videos; "
                    "leave it out, and the videos are made gray"
                )
            shape = gray_config(shape)
        # Parameters depend on these, but not on the size of the frames and their number.
        for name in ("patch_size", "tubelet_size", "encoder_depth", "decoder_depth"):
            value = getattr(self._init_shape, name)
            if given.get(name, value) != value:
                raise ValueError(
                    f"{name} is {given[name]}, that of {shown(self.init or '')} is {value}; leave "
                    f"--{name.replace('_', '-')} out to go on with the latter"
                )
        norm_target = VideoMAEConfig.norm_target
        return dataclasses.replace(shape, **{"norm_target": norm_target, **given})

    @functools.cached_property
    def _init_shape(self) -> VideoMAEConfig | None:
        """Shape of the weights to start from; None without.

        A run that goes on has its own recorded, and may outlive these weights.
        """
        if self.init is None:
            return None
        if self.resume == RESUME_AUTO and last_checkpoint(self.out) is not None:
            # A broken config.json is reported where it is used.
            with contextlib.suppress(OSError, ValueError, TypeError):
                recorded = named_as_now(read_json(os.path.join(self.out, CONFIG)))
                if recorded.get("init") == self.init:
                    names = [field.name for field in dataclasses.fields(VideoMAEConfig)]
                    return VideoMAEConfig(**{k: recorded[k] for k in names if k in recorded})
        return load_weights(self.init).config

    def mask_spec(self) -> MaskSpec:
        """Raises ValueError for an unknown type or a ratio out of range."""
        model = self.model_shape()
        given = {
            "mask_ratio": self.mask_ratio,
            "salient_mask_ratio": self.salient_mask_ratio,
            "nonsalient_mask_ratio": self.nonsalient_mask_ratio,
        }
        return MaskSpec(
            self.mask_type, model.time_steps, model.grid,
            **{name: value for name, value in given.items() if value is not None},
            visible_tokens=self.visible_tokens,
            decoder_mask_ratio=self.decoder_mask_ratio,
            decode=self.decode,
        )  # fmt: skip

    def clip_config(self) -> ClipConfig:
        """Raises ValueError for an unknown augmentation or a rate below 1; and as below."""
        model = self.model_shape()
        return ClipConfig(
            model.num_frames,
            self.sampling_rate,
            model.input_size,
            self.augment,
            self.hflip,
            model.channels,
            self.saliency_config().fit,
            model.patch_size,
        )

    def saliency_config(self) -> SaliencyConfig:
        """Raises ValueError for values out of range, of another kind, or not of the arrays."""
        model = self.model_shape()
        return choose_saliency(
            model.input_size, model.patch_size, self.saliency, self.saliency_root,
            self.saliency_threshold, self.salient_share, self.fit, self.augment != "none",
        )  # fmt: skip


# ---------------------------------------------------------------------------------- the task


def _padding(clips: Sequence[Clip]) -> np.ndarray | None:
    """Tokens beside the videos: bool `[C, N]`; None: there are none."""
    if all(clip.padding is None for clip in clips):
        return None
    return np.stack([clip.padded for clip in clips])


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    """`0.485,0.456,0.406` as numbers. Raises ValueError for other text."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        option = name.replace("_", "-")
        raise ValueError(f"--{option} {text}: numbers with commas between are wanted") from None


class Sample(NamedTuple):
    """One clip of an epoch."""

    place: int  # in the list; masks depend on it, also where the video was replaced
    video: Video
    clip: Clip
    n_replaced: int  # videos that failed before one could be decoded


class Batch(NamedTuple):
    """Clips with their masks, on the device."""

    pixels: Tensor  # uint8 [B, T, H, W, C]
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
        repeat: int,
        on_bad_video: str,
        device: torch.device,
        num_frames: Callable[[int], int],
    ):
        self.model = model
        self.videos = videos
        self.reader = reader
        self.masks = masks
        self.seed = seed
        self.repeat = repeat
        self.on_bad_video = on_bad_video
        self.device = device
        self.num_frames = num_frames  # epoch -> frames of its clips
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
                clip = self.reader.read(video, key, num_frames=self.num_frames(epoch))
                return Sample(index, video, clip, attempt)
            except VideoError as error:
                if self.on_bad_video == "stop":
                    with naming_video(video.path, STOP_REMEDY):
                        raise
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
        padding = _padding([sample.clip for sample in samples])
        if self.repeat > 1:  # [clips, …] -> [B, …]: every clip as often as it has masks
            pixels, salient = (np.repeat(each, self.repeat, axis=0) for each in (pixels, salient))
            padding = None if padding is None else np.repeat(padding, self.repeat, axis=0)
            keys = repeat_keys(keys, self.repeat)
        masks = self._masks(epoch)
        mask = draw_masks(masks, keys, salient)
        return Batch(
            torch.from_numpy(pixels).to(self.device),
            torch.from_numpy(mask).to(self.device),
            torch.from_numpy(draw_decoded(masks, keys, mask, salient, padding)).to(self.device),
            torch.from_numpy(salient).to(self.device),
            sum(sample.n_replaced for sample in samples),
        )

    def _masks(self, epoch: int) -> MaskSpec:
        shape = self.model.config
        n_frames = self.num_frames(epoch)
        if n_frames == shape.num_frames:
            return self.masks
        return self.masks.of_time_steps(n_frames // shape.tubelet_size)

    def n_terms(self, batch: Batch) -> int:
        """Values that are reconstructed."""
        return int(batch.decoded.sum()) * self.model.config.token_values

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Sum of squared errors, and the sums by name."""
        loss_sum, losses = self.model.losses(batch.pixels, batch.mask, batch.decoded)
        salient = batch.salient[batch.decoded]
        of_salient = float(losses[salient].sum(dtype=torch.float64))
        of_all = float(losses.sum(dtype=torch.float64))
        n_salient = int(salient.sum())
        visible = (~batch.mask).sum(1).tolist()
        decoded = batch.decoded.sum(1).tolist()
        return loss_sum, {
            "salient_sum": of_salient,
            "n_salient": n_salient,
            "other_sum": of_all - of_salient,
            "n_other": len(salient) - n_salient,
            "visible": sum(visible),
            "flops": step_flops(self.model.config, visible, decoded),
            "replaced": batch.n_replaced,
        }

    def log_fields(self, sums: dict[str, float], seconds: float) -> dict[str, float | None]:
        def mean(total: str, count: str) -> float | None:
            return sums[total] / sums[count] if sums[count] else None

        return {
            "loss_salient": mean("salient_sum", "n_salient"),
            "loss_other": mean("other_sum", "n_other"),
            "visible_tokens": mean("visible", "n_samples"),
            "gflop": round(sums["flops"] / 1e9, 3),
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
        setup = set_up(config, world, len(found.videos), config.repeat)
        run = PretrainingRun(config, setup, found)
        run.check_data()
        return launch(setup, run)


def check_training(config: TrainConfig, world: World, source: str | None = None) -> None:
    """Raise what `train` would raise before its first step, if other machines start it later.

    Nothing is written, no model is made, and no video is opened.

    Args:
        world: its `size` is the number of processes.
        source: the videos that the list `config.data` will be made of, where that list and the
            arrays do not exist yet.

    Raises:
        UsageError, SavimaeError: as `train`.
    """
    found = find_videos(source or config.data, config.root, weigh=False)
    setup = set_up_elsewhere(config, world, len(found.videos), config.repeat)
    run = PretrainingRun(config, setup, found)
    if source is None:
        run.check_data()
    # How many videos have arrays decides how long the warm-up is.
    goes_on = check_launch(setup, run, () if source is None else ("videos", "warmup_steps"))
    if config.init is not None and not goes_on:
        _initial_weights(config.init, run.shape)


def steps_of_flops(config: TrainConfig, flops: float) -> int:
    """Steps, at least one, in which a run of one process does about so many operations.

    Counted as `model.config.step_flops` does, from the masks of the first clips.

    Raises:
        UsageError, SavimaeError: as `train`.
    """
    world = World()
    found = find_videos(config.data, config.root, weigh=False)
    setup = set_up_elsewhere(config, world, len(found.videos), config.repeat)
    run = PretrainingRun(config, setup, found)
    run.check_data()
    run.take_settings(run.count_visible())
    plan = setup.plan
    of_epoch = run.flops_a_clip() * plan.n_samples * plan.repeat
    epochs, rest = divmod(flops, of_epoch)
    of_step = of_epoch / plan.n_samples * plan.clips_per_step
    return max(1, int(epochs) * plan.steps_per_epoch + round(rest / of_step))


class PretrainingRun:
    """Pretraining as a run of the loop.

    Raises:
        UsageError: options that do not fit each other.
    """

    def __init__(self, config: TrainConfig, setup: Setup, found: VideoList):
        self.config = config
        self.setup = setup
        self.found = found
        self.videos = found.videos
        self.settled: dict[str, Any] = {}  # values of open settings
        try:
            self.masks, self.shape = config.mask_spec(), config.model_shape()
            clips, saliency = config.clip_config(), config.saliency_config()
        except ValueError as error:
            raise UsageError(str(error)) from None
        # Crops move the grid of the arrays: none is read.
        root = config.saliency_root if clips.augment == "none" else None
        self.reader = ClipReader(clips, saliency, self.shape.tubelet_size, root)
        self._check_lengths()

    def _check_lengths(self) -> None:
        """Raises UsageError for clips of part of a token, or more lengths than epochs."""
        lengths, t = self.config.num_frames_schedule, self.shape.tubelet_size
        if lengths is None:
            return
        for n_frames in lengths.parts:
            if n_frames % t:
                raise UsageError(
                    f"--num-frames-schedule {lengths}: {n_frames} is not a multiple of the tubelet "
                    f"size {t}"
                )
        if self.n_epochs < len(lengths.parts):
            raise UsageError(
                f"--num-frames-schedule {lengths} has {len(lengths.parts)} lengths, the run has "
                f"{self.n_epochs} epochs; give more --epochs, or fewer lengths"
            )
        try:
            self.masks.of_time_steps(lengths.parts[0] // t)
        except ValueError as error:
            raise UsageError(f"--num-frames-schedule {lengths}: {error}") from None

    @property
    def n_epochs(self) -> int:
        return math.ceil(self.setup.schedule.total_steps / self.setup.plan.steps_per_epoch)

    def num_frames(self, epoch: int) -> int:
        """Frames of the clips of `epoch`, from 0."""
        lengths = self.config.num_frames_schedule
        return self.shape.num_frames if lengths is None else lengths.at(epoch, self.n_epochs)

    def check_data(self) -> None:
        """Look whether all videos could be listed and have their arrays, and how those are called.

        Raises:
            UsageError: the arrays are of other sizes.
            SavimaeError: something is missing.
        """
        _report_unreadable(self.found, self.config.on_bad_video, self.setup.world)
        if self.reader.saliency_root is not None:
            self.reader.array_cut = check_arrays(self.videos, self.reader.saliency_root, self.shape)

    @property
    def model_config(self) -> dict[str, Any]:
        return self.shape.recorded()

    @property
    def settings(self) -> dict[str, Any]:
        config, masks, reader = self.config, self.masks, self.reader
        of_savi = ["salient_mask_ratio", "nonsalient_mask_ratio"]
        ratios = of_savi if masks.uses_saliency else ["mask_ratio"]
        shape = self.shape.recorded()
        del shape["checkpoint_activations"]
        return {
            "output": "pretraining",
            "videos": names_digest(self.videos),
            "mask_type": masks.mask_type,
            **{name: getattr(masks, name) for name in ratios},
            "saliency": "computed" if reader.saliency_root is None else "arrays",
            **_saliency_settings(reader),
            "sampling_rate": config.sampling_rate,
            "augment": config.augment,
            **({"fit": reader.config.fit} if reader.config.fit != PRESS else {}),
            "hflip": config.hflip,
            **shape,
            "decoder_mask_ratio": masks.decoder_mask_ratio,
            # Older versions never reconstructed half of the tokens: their runs are not resumed.
            **({"decoder_mask_start": "drawn for each clip"} if masks.decoder_mask_ratio else {}),
            **({"decode": masks.decode} if masks.decode != "all" else {}),
            **(
                {}
                if config.num_frames_schedule is None
                else {"num_frames_schedule": str(config.num_frames_schedule)}
            ),
            **({"optimizer": config.optimizer} if config.optimizer != "adamw" else {}),
            **({"repeat": config.repeat} if config.repeat > 1 else {}),
            **({"equal_count": True} if config.equal_count else {}),
            **(
                {"visible_tokens": masks.visible_tokens} if masks.visible_tokens is not None else {}
            ),
            **({"attention": self.ways} if self.ways else {}),
            "init": config.init,
            **common_settings(self.setup),
        }

    @property
    def ways(self) -> dict[str, str]:
        """How attention is computed where it is not written out, by part of the model."""
        return ways_of(self.config.attention, PARTS, self.settled.get("attention", {}))

    def open_settings(self) -> list[str]:
        count = ["visible_tokens"] if self.config.equal_count else []
        return count + (["attention"] if self.config.attention == AUTO else [])

    def find_settings(self) -> dict[str, Any]:
        found = self.count_visible()
        self.take_settings(found)
        if self.config.attention == AUTO and self.setup.device.type == "cpu":
            ways = choose_ways(self._attention_shapes(), DTYPES[self.setup.precision])
            found |= {"attention": ways} if ways else {}
        self.take_settings(found)
        return found

    def take_settings(self, found: dict[str, Any]) -> None:
        check_ways(found.get("attention", {}), PARTS)
        self.settled = found
        if "visible_tokens" in found:
            self.masks = dataclasses.replace(self.masks, visible_tokens=found["visible_tokens"])

    def count_visible(self) -> dict[str, Any]:
        """The setting of an equal count: visible tokens of every clip. Raises as `_first_clips`."""
        if not self.config.equal_count:
            return {}
        _, salient, _ = self._first_clips()
        share = float(np.mean([self.masks.salient_share(each) for each in salient]))
        return {"visible_tokens": self.masks.equal_count(share)}

    def flops_a_clip(self) -> float:
        """Operations of training a clip, over the first clips. Raises as `_first_clips`.

        Of clips of several lengths, the mean.
        """
        lengths = self.config.num_frames_schedule
        of_lengths = []
        for n_frames in (self.shape.num_frames,) if lengths is None else lengths.parts:
            keys, salient, padding = self._first_clips(n_frames)
            masks = self.masks.of_time_steps(n_frames // self.shape.tubelet_size)
            mask = draw_masks(masks, keys, salient)
            decoded = draw_decoded(masks, keys, mask, salient, padding)
            visible, rebuilt = (each.sum(1).tolist() for each in (~mask, decoded))
            of_lengths.append(step_flops(self.shape, visible, rebuilt) / len(keys))
        return float(np.mean(of_lengths))

    def _first_clips(
        self, num_frames: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Of the first clips: keys uint64 `[C]`, salient tokens and padding bool `[C, N]`.

        Args:
            num_frames: of each clip; None: those of the model.

        Raises:
            SavimaeError: none of them can be read.
        """
        seed = self.config.seed
        places = epoch_order(seed, 0, len(self.videos))[:CLIPS_TO_COUNT]
        keys, clips = [], []
        with Progress("counting salient tokens", delay_s=1.0) as progress:
            for number, key in enumerate(sample_keys(seed, 0, places)):
                progress.show(number / len(places), f"{number}/{len(places)} clips")
                with contextlib.suppress(VideoError):  # training says so when it meets it
                    video = self.videos[places[number]]
                    clip = self.reader.read(video, key, num_frames=num_frames)
                    clips.append(clip._replace(pixels=clip.pixels[:0]))
                    keys.append(key)
        if not keys:
            raise SavimaeError("not one of the first videos can be decoded; look at the data")
        return np.array(keys), np.stack([clip.saliency for clip in clips]), _padding(clips)

    def _attention_shapes(self) -> dict[str, AttentionShape]:
        shape, keys = self.shape, sample_keys(0, 0, np.arange(self.config.batch_size))
        salient = np.random.default_rng(0).random((len(keys), shape.n_tokens)) < SALIENT_SHARE
        mask = draw_masks(self.masks, keys, salient)
        in_decoder = ~mask | draw_decoded(self.masks, keys, mask, salient)
        visible, rows = (torch.from_numpy(each.sum(1)) for each in (~mask, in_decoder))
        return {
            "encoder": AttentionShape(visible, shape.encoder_dim, shape.encoder_heads),
            "decoder": AttentionShape(rows, shape.decoder_dim, shape.decoder_heads),
        }

    def build(self, is_new: bool) -> Pretraining:
        model = VideoMAE(self.shape)
        if self.config.init is not None and is_new:
            _initialize_from(model, self.config.init)
        use_ways(model, self.ways)
        return Pretraining(
            model.to(self.setup.device), self.videos, self.reader, self.masks, self.config.seed,
            self.config.repeat, self.config.on_bad_video, self.setup.device, self.num_frames,
        )  # fmt: skip

    def make_optimizer(self, task: Pretraining) -> torch.optim.Optimizer:
        return make_optimizer(task.model, self.config.weight_decay, self.config.optimizer)

    def blocks(self, task: Pretraining) -> list[nn.Module]:
        return [*task.model.encoder.blocks, *task.model.decoder.blocks]

    def start_event(self) -> dict[str, Any]:
        return {"saliency_root": self.config.saliency_root}

    def print_plan(self, loop: Loop, task: Pretraining) -> None:
        config, shape = self.config, self.shape
        n_parameters = sum(each.numel() for each in task.model.parameters()) / 1e6
        print_setup(
            self.setup,
            f"clips of {config.num_frames_schedule or shape.num_frames} frames, "
            f"{config.sampling_rate} apart, {shape.sides}{_fit_words(self.reader.config)}"
            f"{', gray' if shape.channels == GRAY else ''}",
            f"{config.model or describe(shape)}: {n_parameters:.2f} M parameters, "
            f"{shape.n_tokens} tokens a clip",
        )
        source = f"arrays of {shown(config.saliency_root)}" if config.saliency_root else "the clips"
        if config.saliency_root and self.reader.saliency_root is None:
            source = "the cropped clips (crops move the grid of the arrays)"
        if self.reader.saliency_root is not None and self.reader.array_cut:
            name = self.videos[0].name
            print(cut_words(self.reader.saliency_root, name, self.reader.array_cut))
        n_tokens, visible, salient_share, seconds_a_clip = _try_clips(
            loop, task, self.setup.precision
        )
        lengths, epoch = config.num_frames_schedule, loop.plan.epoch_of(loop.step)
        if lengths is not None:  # what is to come takes longer
            seconds_a_clip *= lengths.mean(epoch, self.n_epochs) / self.num_frames(epoch)
        print(
            f"{config.mask_type} masks, saliency from {source}: about {visible:.0f} of "
            f"{n_tokens} tokens visible"
        )
        warning = mostly_salient(salient_share, "tokens of the first clips")
        if warning and self.masks.uses_saliency and self.reader.saliency.kind == FRAME_MEAN:
            print(warning, flush=True)
        print_steps(loop, seconds_a_clip)


def _fit_words(clips: ClipConfig) -> str:
    return "" if clips.fit == PRESS else f" (--fit {clips.fit})"


def _saliency_settings(reader: ClipReader) -> dict[str, Any]:
    """What a run records of how tokens become salient."""
    saliency = reader.saliency
    if saliency.kind == CHANGE:
        return {"saliency_kind": CHANGE, "salient_share": saliency.share}
    return {} if reader.saliency_root else {"saliency_threshold": saliency.threshold}


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


def check_arrays(videos: Sequence[Video], root: str, shape: VideoMAEConfig) -> int:
    """Every video has an array, made with the model's sizes. Looks at names only, not into files.

    Returns:
        How the arrays are called, as `find_cut`.

    Raises:
        UsageError: no such folder, the arrays are of other sizes, or two videos would share one.
        SavimaeError: some are missing.
    """
    try:
        recorded = read_json(os.path.join(root, CONFIG))
    except (OSError, ValueError):  # arrays of another tool
        recorded = {}
    sizes = ("input_size", recorded_size(shape.input_size)), ("patch_size", shape.patch_size)
    for name, wanted in sizes:
        if recorded.get(name, wanted) != wanted:
            found, want = ("x".join(map(str, e)) if isinstance(e, list) else e
                           for e in (recorded[name], wanted))  # fmt: skip
            raise UsageError(
                f"{shown(root)} was made with {name} {found}, the model wants {want}; "
                "preprocess with the model's sizes, or leave --saliency-root out"
            )
    distinct_videos(videos)
    return find_cut(root, [video.name for video in videos])


def _initialize_from(model: VideoMAE, path: str) -> None:
    """Start from weights of any layout that `convert` knows; their shape must be the model's."""
    model.load_state_dict(_initial_weights(path, model.config))


def _initial_weights(path: str, shape: VideoMAEConfig) -> dict[str, Tensor]:
    weights = in_channels(path, load_weights(path), shape.channels)
    check_parameters(path, weights.state, shape)
    return weights.state


def _try_clips(loop: Loop, task: Pretraining, precision: str) -> tuple[int, float, float, float]:
    """Of the first clips: tokens, the visible ones on average, the salient share, and seconds of
    training a clip, roughly.

    A step is three forward passes: the backward pass takes twice the forward one.
    """
    batch = loop.plan.micro_batches(loop.step)[0][:4]
    epoch = loop.plan.epoch_of(loop.step)
    task.model.train()
    few = task.collate([task.load(int(index), epoch) for index in batch], epoch)
    visible = float((~few.mask).sum(1).double().mean())
    salient_share = float(few.salient.double().mean())
    seconds = 0.0
    with torch.no_grad(), autocast(task.device, precision):
        for _ in range(2):  # the first one is slow
            start = time.perf_counter()
            task.loss(few)
            seconds = time.perf_counter() - start
    return few.mask.shape[1], visible, salient_share, 3 * seconds / len(few.mask)
