"""Fine-tuning a classifier: from options to a run of the loop, and the test after it.

Legend: B clips, T frames, S input size, C channels, K classes, L depth of the encoder, W width of
what the last layer sees, V views of a video.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from savimae.data.labels import Labelled, check_overlap, labels_digest, match_labels, overlap_words
from savimae.data.lists import (
    Video,
    VideoList,
    find_both_sides,
    find_readable_videos,
    find_split_folder,
    label_of,
    match_split,
    names_digest,
    read_split,
    shared_groups,
)
from savimae.data.video import naming_video, open_video
from savimae.model.classifier import HeadConfig, VideoClassifier
from savimae.model.config import VideoMAEConfig
from savimae.model.videomae import pixel_statistics
from savimae.samples.augment import (
    draw_mixing,
    drop_path_branches,
    dropout_features,
    erase,
    mix_clips,
    resized_crop_box,
    soft_target,
)
from savimae.samples.clips import (
    Box,
    ClipConfig,
    FrameResizer,
    clip_indices,
    is_flipped,
)
from savimae.samples.multi_view import TEST_CLIPS, TEST_CROPS, ViewReader, Views
from savimae.samples.randomness import PARTNER, integer_below, sample_keys
from savimae.system.errors import SavimaeError, UsageError, shown
from savimae.system.signals import StopSignals
from savimae.training.attention_choice import (
    AUTO,
    AttentionShape,
    check_ways,
    choose_ways,
    use_ways,
    ways_of,
)
from savimae.training.classifier_test import (
    PARTIAL,
    ClassifierTest,
    summarize,
    tested_predictions,
    write_result,
)
from savimae.training.distributed import World
from savimae.training.launch import check_launch, launch, print_steps
from savimae.training.loaded_weights import in_channels
from savimae.training.loop import Loop, PlainTask
from savimae.training.machine import DTYPES
from savimae.training.optimizer import FINETUNING_BETAS, parameter_groups
from savimae.training.setup import (
    RunConfig,
    Setup,
    common_settings,
    named_process,
    print_setup,
    set_up,
    set_up_elsewhere,
)
from savimae.training.weights import read_weights


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(RunConfig):
    """Everything that `savimae finetune` can be told; the defaults are the published recipe."""

    checkpoint: str = ""  # weights of any layout, whose encoder is taken
    test: str | None = None  # a list, or a folder of class folders
    dataset: str | None = None  # ucf101 or hmdb51: an official split of the videos below `data`
    splits: str | None = None  # the folder of its split files; None: where it usually lies
    split: int | None = None  # None: 1
    untrained: bool = False  # take the checkpoint's shape only
    allow_overlap: bool = False  # of training and test videos; the result says so

    channels: int | None = None  # None: as the model was pretrained
    sampling_rate: int | None = None  # None: as the model was pretrained, else 4
    smallest_crop: float = 0.08  # of the frame's area; 1: whole frames, pressed
    hflip: bool = True
    erasing: float = 0.25  # share of the clips
    mixup: float = 0.8
    cutmix: float = 1.0
    label_smoothing: float = 0.1

    layer_decay: float = 0.75
    drop_path: float = 0.1
    head_dropout: float = 0.0
    head_scale: float = 0.001
    ema: float = 0.0  # decay of the averaged weights; 0: none

    pool: str = "mean"  # see `HeadConfig`
    standardize: bool = False

    test_clips: int = TEST_CLIPS
    test_crops: int | None = TEST_CROPS  # None: whole frames, pressed
    test_every: int = 0  # epochs; 0: at the end only

    default_epochs: ClassVar[int] = 100
    default_base_lr: ClassVar[float] = 5e-4
    default_min_lr: ClassVar[float] = 1e-6
    longest_warmup: ClassVar[float] = 5
    resume_advice: ClassVar[str] = "Choose another --out, or repeat the settings it was made with"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("erasing", "label_smoothing", "drop_path", "head_dropout", "ema"):
            if not 0 <= getattr(self, name) < 1 and not (name == "erasing" and self.erasing == 1):
                raise ValueError(f"{name} {getattr(self, name)} is not in [0, 1)")
        for name in ("smallest_crop", "layer_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is not in (0, 1]")
        for name in ("mixup", "cutmix", "head_scale", "test_every"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if (self.test is None) == (self.dataset is None):
            raise ValueError("give --test and a list for --train, or --dataset and a folder for it")
        if self.splits is not None and self.dataset is None:
            raise ValueError("--splits goes with --dataset")
        if self.dataset is None and self.split is not None:
            raise ValueError("--split goes with --dataset; two lists are a split of their own")
        if self.dataset is not None and self.root is not None:
            raise ValueError("--root is for lists; --dataset takes the folder of all its videos")
        Views(self.test_clips, self.test_crops)
        if self.head.standardize and self.batch_size < 2:
            raise ValueError(
                "--standardize compares the clips of a batch; give --batch-size 2 or more"
            )

    @property
    def views(self) -> Views:
        """Of each test video."""
        return Views(self.test_clips, self.test_crops)

    @property
    def head(self) -> HeadConfig:
        return HeadConfig(self.pool, self.standardize)


# ---------------------------------------------------------------------------------- the task


class Sample(NamedTuple):
    """One clip of an epoch, augmented and mixed."""

    video: Video
    pixels: np.ndarray  # uint8 [T, S, S, C]
    target: np.ndarray  # float32 [K], probabilities
    branches: np.ndarray  # float32 [L, 2]
    features: np.ndarray  # float32 [W]


class Batch(NamedTuple):
    """Samples on the device."""

    pixels: Tensor  # uint8 [B, T, S, S, 3]
    targets: Tensor  # float32 [B, K]
    branches: Tensor  # float32 [L, 2, B]
    features: Tensor  # float32 [B, W]


class Finetuning(PlainTask):
    """The task of the loop: cross-entropy between predicted and wanted probabilities."""

    sum_names = ("hits",)

    def __init__(
        self,
        model: VideoClassifier,
        labelled: Labelled,
        overlap: int,
        clips: ClipConfig,
        config: FinetuneConfig,
        setup: Setup,
    ):
        self.model = model
        self.videos = labelled.train
        self.test_videos = labelled.test
        self.classes = labelled.classes
        self.about_classes = {
            "labels_in_the_training_list": labelled.numbers,
            **({"test_videos_in_training": overlap} if overlap else {}),
        }
        self.clips = clips
        self.config = config
        self.setup = setup
        self.n_classes = model.head.out_features
        self.averaged: AveragedModel | None = None
        if config.ema:
            self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))

    def load(self, index: int, epoch: int) -> Sample:
        """Clip `index` of `epoch`, mixed with that of another video.

        Raises:
            SavimaeError: a video cannot be decoded.
        """
        config = self.config
        key = sample_keys(config.seed, epoch, np.array([index]))[0]
        video = self.videos[index]
        pixels, other = self._clip(video, key), video
        mixing = draw_mixing(self.clips.input_size, config.mixup, config.cutmix, key)
        if mixing.share < 1:
            partner = integer_below(len(self.videos), key, PARTNER)
            other = self.videos[partner]
            of_partner = sample_keys(config.seed, epoch, np.array([partner]))[0]
            pixels = mix_clips(pixels, self._clip(other, of_partner), mixing)
        target = soft_target(
            label_of(video), label_of(other), mixing.share, self.n_classes, config.label_smoothing
        )
        shape = self.model.config
        branches = drop_path_branches(key, config.drop_path, shape.encoder_depth)
        features = dropout_features(key, config.head_dropout, self.model.head.in_features)
        return Sample(video, pixels, target, branches, features)

    def _clip(self, video: Video, key: np.uint64) -> np.ndarray:
        """A clip as `key` draws it, cropped, mirrored and erased: uint8 `[T, S, S, C]`."""
        with naming_video(video.path):
            frames, _ = open_video(video.path).read_clip(
                lambda n_frames: clip_indices(n_frames, self.clips, key),
                channels=self.clips.channels,
            )
        size = self.clips.input_size
        pixels = np.empty((len(frames), size, size, self.clips.channels), np.uint8)
        resizer = FrameResizer(size, self.clips.channels)
        for frame, out in zip(frames, pixels, strict=True):
            height, width, _ = frame.shape
            box = Box(0, 0, width, height)
            if self.config.smallest_crop < 1:
                box = resized_crop_box(height, width, self.config.smallest_crop, key)
            resizer.resize(frame, box, is_flipped(self.clips, key), out)
        erase(pixels, self.config.erasing, key, *pixel_statistics(self.model.config))
        return pixels

    def sample_name(self, sample: Sample) -> str:
        return sample.video.path

    def collate(self, samples: list[Sample], epoch: int) -> Batch:
        del epoch
        device = self.setup.device
        return Batch(
            torch.from_numpy(np.stack([sample.pixels for sample in samples])).to(device),
            torch.from_numpy(np.stack([sample.target for sample in samples])).to(device),
            torch.from_numpy(np.stack([sample.branches for sample in samples], -1)).to(device),
            torch.from_numpy(np.stack([sample.features for sample in samples])).to(device),
        )

    def n_terms(self, batch: Batch) -> int:
        """Clips."""
        return len(batch.pixels)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Sum of cross-entropies, and how often the likeliest class is the most wanted one."""
        logits = self.model(batch.pixels, batch.branches, batch.features).float()
        losses = nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
        hits = (logits.argmax(1) == batch.targets.argmax(1)).sum()
        return losses, {"hits": float(hits)}

    def log_fields(self, sums: dict[str, float], seconds: float) -> dict[str, float | None]:
        del seconds
        return {"train_top1": sums["hits"] / sums["n_samples"]}

    # -------------------------------------------------------------- averaged weights, the test

    def after_step(self) -> None:
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    def extra_state(self) -> dict[str, Any] | None:
        return None if self.averaged is None else {"ema": self.averaged.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if self.averaged is not None:
            self.averaged.load_state_dict(state["ema"])

    def is_test_due(self, epoch: int, is_last: bool) -> bool:
        every = self.config.test_every
        return is_last or bool(every and epoch % every == 0)

    def test(self, step: int, is_last: bool, signals: StopSignals) -> dict[str, float] | None:
        """Top-1 and top-5 on the test videos; after the last step also in `test.json`, and the
        probabilities of every video in `predictions.csv`.

        The averaged weights are tested if there are any. What is known of the test is kept in
        `test.partial.npz`, for a run that is stopped before its end.

        Raises:
            SavimaeError: a video cannot be decoded.
        """
        config, setup = self.config, self.setup
        of_classifier = ClassifierTest(
            os.path.join(config.out, PARTIAL),
            {
                "step": step, "test_videos": names_digest(self.test_videos),
                "test_clips": config.test_clips, "test_crops": config.test_crops,
            },
            self.test_videos,
            len(self.classes),
            ViewReader(self.clips, config.views),
            setup.plan.batch_size, setup.device, setup.precision, setup.world,
        )  # fmt: skip
        tested = self.model if self.averaged is None else self.averaged
        if config.standardize:  # with the first process's running means, which checkpoints hold
            setup.world.share_state(tested)
        found = of_classifier.run(tested, signals)
        self.model.train()
        if found is None:
            return None
        result = summarize(found, self.test_videos, self.classes)
        if setup.world.is_main:
            if is_last:
                predictions = tested_predictions(found, self.test_videos, self.classes)
                whole = {"step": step, **result, **self.about_classes}
                write_result(config.out, whole, predictions)
            of_classifier.forget()
        return {f"test_{name}": result[name] for name in ("top1", "top5")}


# ------------------------------------------------------------------------------------ the run


def finetune(config: FinetuneConfig) -> int:
    """Fine-tune as `config` says; returns the exit code, 0 or `errors.EXIT_STOPPED`.

    Raises:
        UsageError: options that do not fit each other, the data or the run's folder.
        SavimaeError: data or a checkpoint that cannot be read, a loss that is not finite, a
            process that is gone.
    """
    with named_process() as world:
        labelled = find_labelled(config, quiet=not world.is_main)
        setup = set_up(config, world, len(labelled.train))
        return launch(setup, FinetuningRun(config, setup, labelled))


def check_finetuning(config: FinetuneConfig, world: World) -> None:
    """Raise what `finetune` would raise before its first step, if other machines start it later.

    Nothing is written, no model is made, and no video is opened.

    Args:
        world: its `size` is the number of processes.

    Raises:
        UsageError, SavimaeError: as `finetune`.
    """
    labelled = find_labelled(config)
    setup = set_up_elsewhere(config, world, len(labelled.train))
    check_launch(setup, FinetuningRun(config, setup, labelled))


def find_labelled(config: FinetuneConfig, quiet: bool = False) -> Labelled:
    """Training and test videos of a run, with the same labels on both sides.

    Raises:
        UsageError: a video without a label, or a class of the test that training does not have.
        SavimaeError: videos that a list or an official split names are not there.
    """
    train, test = _find_videos(config, quiet)
    return match_labels(train, test, config.data, config.test or config.data)


def _find_videos(config: FinetuneConfig, quiet: bool) -> tuple[VideoList, VideoList]:
    """Training and test videos: of two lists, or of an official split."""
    if config.dataset is None:
        return find_both_sides(config.data, str(config.test), config.root, quiet)
    root = os.path.normpath(config.data)
    folder = config.splits or find_split_folder(config.dataset, root)
    official = read_split(folder, config.split or 1)
    found = find_readable_videos(root, quiet=quiet)
    both = []
    for part, entries in (("training", official.train), ("test", official.test)):
        videos, missing = match_split(entries, official.classes, found)
        if missing:
            raise SavimaeError(
                f"{shown(root)}: {len(missing)} of {len(entries)} {part} videos of the split are "
                f"not there, such as {shown(missing[0])}; make lists of what there is with "
                "`savimae index --splits`"
            )
        both.append(VideoList(videos, root, official.classes))
    return both[0], both[1]


class FinetuningRun:
    """Fine-tuning as a run of the loop. Raises as `finetune`."""

    def __init__(self, config: FinetuneConfig, setup: Setup, labelled: Labelled):
        self.config = config
        self.setup = setup
        self.labelled = labelled
        self.train, self.test = labelled.train, labelled.test
        self.classes = labelled.classes
        self.n_classes = len(labelled.classes)
        self.settled: dict[str, Any] = {}  # values of open settings
        self.overlap = check_overlap(self.train, self.test, config.allow_overlap)
        self.weights = in_channels(
            config.checkpoint, read_weights(config.checkpoint), config.channels
        )
        rate = config.sampling_rate
        if rate is None:
            rate = self.weights.settings.get("sampling_rate", ClipConfig.sampling_rate)
        shape = self.shape
        try:
            self.clips = ClipConfig(
                shape.num_frames, rate, shape.input_size, hflip=config.hflip,
                channels=shape.channels,
            )  # fmt: skip
        except ValueError as error:
            raise UsageError(str(error)) from None

    @property
    def shape(self) -> VideoMAEConfig:
        return dataclasses.replace(
            self.weights.config, checkpoint_activations=self.config.checkpoint_activations
        )

    @property
    def model_config(self) -> dict[str, Any]:
        return {
            **self.shape.recorded(),
            "n_classes": self.n_classes,
            "classes": self.classes,
            "views": dataclasses.asdict(self.config.views),
        }

    @property
    def settings(self) -> dict[str, Any]:
        config = self.config
        names = (
            "untrained", "smallest_crop", "hflip", "erasing", "mixup", "cutmix", "label_smoothing",
            "layer_decay", "drop_path", "head_dropout", "head_scale", "ema",
        )  # fmt: skip
        shape = self.shape.recorded()
        del shape["checkpoint_activations"]
        return {
            "output": "classifier",
            "videos": names_digest(self.train),
            "test_videos": names_digest(self.test),
            "labels": labels_digest([*self.train, *self.test], self.classes),
            "checkpoint": config.checkpoint,
            "sampling_rate": self.clips.sampling_rate,
            **shape,
            **{name: getattr(config, name) for name in names},
            **({"pool": config.pool} if config.pool != HeadConfig.pool else {}),
            **({"standardize": True} if config.standardize else {}),
            **({"attention": self.ways} if self.ways else {}),
            **common_settings(self.setup),
        }

    @property
    def ways(self) -> dict[str, str]:
        """How attention is computed where it is not written out, by part of the model."""
        return ways_of(self.config.attention, ["encoder"], self.settled.get("attention", {}))

    def open_settings(self) -> list[str]:
        return ["attention"] if self.config.attention == AUTO else []

    def find_settings(self) -> dict[str, Any]:
        if self.config.attention != AUTO or self.setup.device.type != "cpu":
            return {}
        shape = self.shape
        rows = torch.full((self.config.batch_size,), shape.n_tokens)
        encoder = AttentionShape(rows, shape.encoder_dim, shape.encoder_heads)
        ways = choose_ways({"encoder": encoder}, DTYPES[self.setup.precision])
        self.take_settings({"attention": ways} if ways else {})
        return self.settled

    def take_settings(self, found: dict[str, Any]) -> None:
        check_ways(found.get("attention", {}), ["encoder"])
        self.settled = found

    def build(self, is_new: bool) -> Finetuning:
        config = self.config
        model = VideoClassifier(self.shape, self.n_classes, config.head_scale, config.head)
        if is_new and not config.untrained:
            model.load_encoder(self.weights.state)
        use_ways(model, self.ways)
        model.to(self.setup.device)
        return Finetuning(model, self.labelled, self.overlap, self.clips, config, self.setup)

    def make_optimizer(self, task: Finetuning) -> torch.optim.Optimizer:
        groups = parameter_groups(
            task.model.named_parameters(), self.shape.encoder_depth, self.config.weight_decay,
            self.config.layer_decay,
        )  # fmt: skip
        return torch.optim.AdamW(groups, lr=0.0, betas=FINETUNING_BETAS, fused=True)

    def blocks(self, task: Finetuning) -> list[nn.Module]:
        return list(task.model.encoder.blocks)

    def start_event(self) -> dict[str, Any]:
        return {
            "test": self.config.test or f"{self.config.dataset}, split {self.config.split or 1}"
        }

    def print_plan(self, loop: Loop, task: Finetuning) -> None:
        shape, config = self.shape, self.config
        n_parameters = sum(each.numel() for each in task.model.parameters()) / 1e6
        start = "untrained" if config.untrained else f"from {shown(config.checkpoint)}"
        print_setup(
            self.setup,
            f"clips of {shape.num_frames} frames, {self.clips.sampling_rate} apart, "
            f"{shape.input_size}x{shape.input_size}",
            f"classifier of {self.n_classes} classes, {start}: {n_parameters:.2f} M parameters",
        )
        for note in self.labelled.notes:
            print(note, flush=True)
        if self.overlap:
            print(overlap_words(self.overlap, len(self.test)), flush=True)
        shared = shared_groups((v.name for v in self.train), (v.name for v in self.test))
        if shared:
            print(
                f"warning: training and test videos share {len(shared)} recordings, such as "
                f"{shown(shared[0])}: what is learned from one leaks into the other",
                flush=True,
            )
        crops = config.test_crops or 1
        print(
            f"test: {len(self.test)} videos, {config.test_clips} clips x {crops} crops each",
            flush=True,
        )
        print_steps(loop, None)
