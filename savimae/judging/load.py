"""A pretrained model together with how its clips and masks were made, for all that looks at it."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from savimae.data.fitting import PRESS
from savimae.data.lists import Video, distinct_videos
from savimae.data.video import naming_video
from savimae.model.classifier import VideoClassifier
from savimae.model.config import VideoMAEConfig
from savimae.model.videomae import Encoder, VideoMAE
from savimae.saliency.array_source import cut_words, find_cut
from savimae.saliency.config import (
    FRAME_MEAN,
    SaliencyConfig,
    choose_saliency,
    kind_of_arrays,
)
from savimae.samples.clips import Clip, ClipConfig, ClipReader
from savimae.samples.masking import MaskSpec, draw_masks, refuse_idle_ratios
from savimae.samples.multi_view import TEST_CLIPS, TEST_CROPS, Views
from savimae.samples.randomness import sample_keys
from savimae.system.cores import available_cores
from savimae.system.errors import UsageError, shown
from savimae.system.progress import Progress
from savimae.training.distributed import World
from savimae.training.loaded_weights import (
    AS_TRAINED,
    ClipShape,
    adapted,
    check_time_means,
    classifier_of,
    encoder_of,
)
from savimae.training.machine import autocast, choose_device, choose_precision, default_workers
from savimae.training.outputs import Outputs
from savimae.training.plan import Plan, load_batches
from savimae.training.weights import load_weights, read_weights

Sample = TypeVar("Sample")
LIBRARY_BATCH = 8  # views at a time


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a model is run on, and how."""

    device: torch.device
    precision: str  # bf16 or fp32
    batch_size: int
    workers: int  # threads that load clips

    @classmethod
    def choose(
        cls,
        device: str,
        precision: str,
        threads: int | None,
        batch_size: int = 1,
        workers: int | None = None,
    ) -> Machine:
        """From options; sets the threads of this process.

        Raises:
            UsageError: CUDA is asked for and not there.
        """
        torch.set_num_threads(threads or available_cores())
        chosen = choose_device(device, World())
        workers = default_workers() if workers is None else workers
        return cls(chosen, choose_precision(precision, chosen), batch_size, workers)

    @classmethod
    def here(cls, device: str, precision: str) -> Machine:
        """For the library: as `choose`, and PyTorch's threads stay what they are.

        Raises:
            UsageError: CUDA is asked for and not there.
        """
        chosen = choose_device(device, World())
        return cls(chosen, choose_precision(precision, chosen), LIBRARY_BATCH, default_workers())

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.precision)

    def batches(
        self,
        n: int,
        load: Callable[[int, int], Sample],
        title: str,
        rounds: int = 1,
        done: int = 0,
    ) -> Iterator[list[Sample]]:
        """Batches of `load(index, round)` for all indices below n, in order, loaded ahead.

        Args:
            title: what the progress is called.
            rounds: how often every index comes.
            done: batches to leave out at the start.
        """
        plan = Plan(n, self.batch_size, shuffled=False)
        total = rounds * plan.steps_per_epoch
        loaded = load_batches(plan, range(done, total), load, self.workers)
        with (
            contextlib.closing(loaded),
            Progress(title, start=done / total, delay_s=1.0) as progress,
        ):
            n_clips = 0
            for number, batch in enumerate(loaded, done + 1):
                yield batch.samples
                n_clips += len(batch.samples)
                rate = n_clips / max(progress.elapsed_s, 1e-9)
                progress.show(number / total, f"batch {number}/{total}, {rate:.2f} clips/s")


@dataclasses.dataclass(frozen=True)
class MaskOptions:
    """How to mask; None: as the model was trained, or the defaults of training."""

    mask_type: str | None = None
    mask_ratio: float | None = None
    salient_mask_ratio: float | None = None
    nonsalient_mask_ratio: float | None = None


@dataclasses.dataclass(frozen=True)
class ClipOptions:
    """How clips are cut and where their saliency comes from."""

    seed: int = 0  # of clip starts and masks
    root: str | None = None  # where a list's relative paths start
    sampling_rate: int | None = None  # None: as the model was trained, else 4
    saliency_root: str | None = None  # arrays of `savimae preprocess`; None: from the clips
    saliency: str | None = None  # its kind; None: that of the arrays, or as trained
    saliency_threshold: float | None = None  # where it is computed; None: as trained, else 0.5
    salient_share: float | None = None  # of change; None: as trained, else 0.25


@dataclasses.dataclass(frozen=True)
class MaskedClips:
    """Clips of videos, each with its mask. Both depend on the seed and the video's place only."""

    videos: Sequence[Video]
    reader: ClipReader
    masks: MaskSpec
    seed: int

    def read(self, index: int, number: int) -> tuple[Clip, np.ndarray]:
        """Clip `number` of video `index`, and its mask bool `[N]`, True = masked.

        Raises:
            SavimaeError: the video cannot be decoded, or its array cannot be read.
        """
        keys = sample_keys(self.seed, number, np.array([index]))
        video = self.videos[index]
        with naming_video(video.path):
            clip = self.reader.read(video, keys[0])
        return clip, draw_masks(self.masks, keys, clip.saliency[None])[0]


@dataclasses.dataclass(frozen=True)
class Trained:
    """An encoder in evaluation mode, and the settings of its training as far as they are known."""

    path: str
    encoder: Encoder
    settings: Mapping[str, Any]

    @property
    def config(self) -> VideoMAEConfig:
        """The shape of the model; of a classifier, what it says of a decoder plays no role."""
        return self.encoder.config

    def clips(self, sampling_rate: int | None = None) -> ClipConfig:
        """Clips as the model was trained on, whole frames; or with another sampling rate.

        Raises:
            ValueError: a rate below 1.
        """
        shape = self.config
        rate = self._setting(sampling_rate, "sampling_rate", ClipConfig.sampling_rate)
        return ClipConfig(
            shape.num_frames, rate, shape.input_size, channels=shape.channels,
            fit=self.settings.get("fit", PRESS), patch_size=shape.patch_size,
        )  # fmt: skip

    def saliency(self, options: ClipOptions) -> SaliencyConfig:
        """Raises ValueError for a value out of range or without effect; see `choose_saliency`."""
        shape, root = self.config, options.saliency_root
        trained = self.settings.get("saliency_kind", FRAME_MEAN)
        kind = options.saliency or (None if root and kind_of_arrays(root) else trained)
        found = choose_saliency(
            shape.input_size, shape.patch_size, kind, root,
            options.saliency_threshold, options.salient_share, self.settings.get("fit", PRESS),
        )  # fmt: skip
        threshold = self._setting(options.saliency_threshold, "saliency_threshold", found.threshold)
        share = self._setting(options.salient_share, "salient_share", found.share)
        return dataclasses.replace(found, threshold=threshold, share=share)

    def clip_reader(self, options: ClipOptions, array_cut: int) -> ClipReader:
        """Reads clips as the model was trained on, with their saliency.

        Args:
            array_cut: how the arrays are called, as `find_arrays` says.

        Raises:
            UsageError: options that do not fit the model.
        """
        try:
            if options.saliency_root is not None and options.saliency_threshold is not None:
                raise ValueError(
                    "--saliency-threshold is for saliency that is computed from the clips; the "
                    "arrays of --saliency-root have theirs, see `savimae preprocess --threshold`"
                )
            return ClipReader(
                self.clips(options.sampling_rate), self.saliency(options),
                self.config.tubelet_size, options.saliency_root, array_cut,
            )  # fmt: skip
        except ValueError as error:
            raise UsageError(f"{shown(self.path)}: {error}") from None

    def _setting(self, given: Any, name: str, default: Any) -> Any:
        return self.settings.get(name, default) if given is None else given


@dataclasses.dataclass(frozen=True)
class Pretrained(Trained):
    """A pretrained model: its encoder, and the decoder that reconstructs what masks hide."""

    model: VideoMAE

    def masks(self, options: MaskOptions) -> MaskSpec:
        """Raises ValueError for an unknown type, or a ratio out of range or without effect."""
        shape = self.model.config
        kind = self._setting(options.mask_type, "mask_type", MaskSpec.mask_type)
        given = {
            "mask_ratio": options.mask_ratio,
            "salient_mask_ratio": options.salient_mask_ratio,
            "nonsalient_mask_ratio": options.nonsalient_mask_ratio,
        }
        refuse_idle_ratios(
            kind, options.mask_ratio, options.salient_mask_ratio, options.nonsalient_mask_ratio
        )
        is_as_trained = options.mask_type is None and set(given.values()) == {None}
        return MaskSpec(
            kind,
            shape.time_steps,
            shape.grid,
            **{
                name: self._setting(value, name, getattr(MaskSpec, name))
                for name, value in given.items()
            },
            visible_tokens=self.settings.get("visible_tokens") if is_as_trained else None,
        )

    def masked_clips(
        self, videos: Sequence[Video], clips: ClipOptions, masks: MaskOptions, array_cut: int
    ) -> MaskedClips:
        """Clips as the model was trained on, with their masks.

        Args:
            array_cut: how the arrays are called, as `find_arrays` says.

        Raises:
            UsageError: options that do not fit the model.
        """
        reader = self.clip_reader(clips, array_cut)
        try:
            return MaskedClips(videos, reader, self.masks(masks), clips.seed)
        except ValueError as error:
            raise UsageError(f"{shown(self.path)}: {error}") from None


def load_pretrained(path: str, device: torch.device) -> Pretrained:
    """The model at `path`: a checkpoint of any layout, or the folder of a run.

    Raises:
        SavimaeError: as `load_weights`.
    """
    weights = load_weights(path)
    model = VideoMAE(weights.config)
    model.load_state_dict(weights.state)
    model.to(device).eval()
    return Pretrained(path, model.encoder, weights.settings, model)


def load_trained(path: str, device: torch.device, clip_shape: ClipShape = AS_TRAINED) -> Trained:
    """The encoder of the model at `path`, pretrained or a classifier, of any layout.

    Raises:
        SavimaeError: as `read_weights`.
        UsageError: a `clip_shape` that does not fit it.
    """
    weights = adapted(path, read_weights(path), clip_shape)
    return Trained(path, encoder_of(weights).to(device).eval(), weights.settings)


@dataclasses.dataclass(frozen=True)
class TrainedClassifier(Trained):
    """A classifier: its encoder, its last layers, and what its outputs mean."""

    model: VideoClassifier
    outputs: Outputs
    test_views: Views  # of a video, in its own test

    @property
    def classes(self) -> Sequence[str]:
        """Names of its K classes, labels or numbers."""
        return self.outputs.names

    def views(self, clips: int | None, crops: int | None) -> Views:
        """Those of its own test, or with other numbers; 0 crops are whole frames.

        Raises:
            ValueError: numbers below.
        """
        n_clips = self.test_views.clips if clips is None else clips
        return Views(n_clips, self.test_views.crops if crops is None else crops or None)


def load_trained_classifier(
    path: str, device: torch.device, clip_shape: ClipShape = AS_TRAINED
) -> TrainedClassifier:
    """The classifier at `path`, of any layout.

    Raises:
        SavimaeError: as `read_weights`, or the weights of a pretraining model.
        UsageError: a `clip_shape` that does not fit it.
    """
    weights = read_weights(path)
    check_time_means(path, weights, clip_shape)
    weights = adapted(path, weights, clip_shape)
    model = classifier_of(path, weights).to(device).eval()
    views = weights.views or Views(TEST_CLIPS, TEST_CROPS)
    return TrainedClassifier(path, model.encoder, weights.settings, model, weights.outputs, views)


def untrained_twin(encoder: Encoder, seed: int) -> Encoder:
    """An encoder of the same shape with random weights, in evaluation mode on the same device."""
    torch.manual_seed(seed)
    twin = VideoMAE(encoder.config).encoder
    if isinstance(encoder.norm, nn.Identity):
        twin.norm = nn.Identity()
    return twin.to(encoder.positions.device).eval()


def find_arrays(saliency_root: str | None, videos: Sequence[Video]) -> int:
    """How the arrays of these videos are called, as `find_cut`; says so where it is not plain.

    Raises:
        UsageError: two videos would share an array; or as `find_cut`.
        SavimaeError: as `find_cut`.
    """
    if saliency_root is None:
        return 0
    distinct_videos(videos)
    cut = find_cut(saliency_root, [video.name for video in videos])
    if cut:
        print(cut_words(saliency_root, videos[0].name, cut), file=sys.stderr, flush=True)
    return cut
