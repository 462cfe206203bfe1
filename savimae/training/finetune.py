"""Fine-tuning a classifier: from options to a run of the loop, and the test after it.

Legend: B clips, T frames, H, W sides of the input, C channels, K classes, labels or numbers, L
depth of the encoder, W width of what the last layer sees, V views of a video.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from savimae.data.fitting import CROP, PAD, PRESS, place_frame, place_part
from savimae.data.labels import (
    Labelled,
    check_overlap,
    labels_digest,
    match_labels,
    match_values,
    overlap_words,
)
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
)
from savimae.samples.balance import BalancedSamples
from savimae.samples.clips import (
    ClipConfig,
    FrameResizer,
    clip_indices,
    is_flipped,
)
from savimae.samples.multi_view import TEST_CLIPS, TEST_CROPS, ViewReader, Views
from savimae.samples.randomness import PARTNER, integer_below, sample_keys
from savimae.system.errors import SavimaeError, UsageError, shown
from savimae.system.signals import StopSignals
from savimae.system.sizes import FrameSize, Sides, frame_size
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
    result_of,
    tested_predictions,
    write_result,
)
from savimae.training.distributed import World
from savimae.training.launch import check_launch, launch, print_steps
from savimae.training.loaded_weights import ClipShape, adapted
from savimae.training.loop import Loop, PlainTask
from savimae.training.machine import DTYPES
from savimae.training.objectives import (
    LOSSES,
    Objective,
    OfClasses,
    OfLabels,
    OfValues,
    class_weights,
    label_weights,
    scale_of,
)
from savimae.training.optimizer import FINETUNING_BETAS, parameter_groups
from savimae.training.outputs import (
    CLASSIFY,
    KIND_OF_LISTS,
    MULTILABEL,
    REGRESS,
    TASKS,
    Outputs,
)
from savimae.training.scores import MEASURED
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

    task: str = CLASSIFY  # of `outputs.TASKS`: one class, several labels, or numbers
    loss: str | None = None  # of `objectives.LOSSES`, for numbers; None: mse
    class_weights: str = "none"  # or "balanced": rare ones count as much as frequent ones
    sampling: str = "natural"  # every video once an epoch; "balanced": every class equally often
    freeze: int = 0  # blocks that keep their weights, with the patch embedding; 0: nothing does

    num_frames: int | None = None  # None: as the model was pretrained
    input_size: FrameSize | None = None  # the same
    channels: int | None = None  # None: as the model was pretrained
    sampling_rate: int | None = None  # None: as the model was pretrained, else 4
    fit: str | None = None  # of whole frames, and padded parts; None: as the model was pretrained
    smallest_crop: float = 0.08  # of the frame's area; 1: whole frames
    hflip: bool = True
    erasing: float = 0.25  # share of the clips
    mixup: float | None = None  # None: 0.8, of numbers 0
    cutmix: float | None = None  # None: 1, of numbers 0
    label_smoothing: float | None = None  # None: 0.1 of classes, else 0

    layer_decay: float = 0.75
    drop_path: float = 0.1
    head_dropout: float = 0.0
    head_scale: float = 0.001
    ema: float = 0.0  # decay of the averaged weights; 0: none

    pool: str = "mean"  # see `HeadConfig`
    standardize: bool = False

    test_clips: int = TEST_CLIPS
    test_crops: int | None = TEST_CROPS  # None: whole frames
    test_every: int = 0  # epochs; 0: at the end only

    default_epochs: ClassVar[int] = 100
    default_base_lr: ClassVar[float] = 5e-4
    default_min_lr: ClassVar[float] = 1e-6
    longest_warmup: ClassVar[float] = 5
    resume_advice: ClassVar[str] = "Choose another --out, or repeat the settings it was made with"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_size is not None:
            object.__setattr__(self, "input_size", frame_size(self.input_size))
        for name in ("erasing", "label_smoothing", "drop_path", "head_dropout", "ema"):
            value = getattr(self, name)
            if value is None or (name == "erasing" and value == 1):
                continue
            if not 0 <= value < 1:
                raise ValueError(f"{name} {value} is not in [0, 1)")
        for name in ("smallest_crop", "layer_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is not in (0, 1]")
        for name in ("mixup", "cutmix", "head_scale", "test_every", "freeze"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must be at least 0, not {value}")
        if (self.test is None) == (self.dataset is None):
            raise ValueError("give --test and a list for --train, or --dataset and a folder for it")
        if self.splits is not None and self.dataset is None:
            raise ValueError("--splits goes with --dataset")
        if self.dataset is None and self.split is not None:
            raise ValueError("--split goes with --dataset; two lists are a split of their own")
        if self.dataset is not None and self.root is not None:
            raise ValueError("--root is for lists; --dataset takes the folder of all its videos")
        self._check_task()
        Views(self.test_clips, self.test_crops)
        if self.head.standardize and self.batch_size < 2:
            raise ValueError(
                "--standardize compares the clips of a batch; give --batch-size 2 or more"
            )

    def _check_task(self) -> None:
        """Raises ValueError for an option that the task has no use for."""
        for name, known in (
            ("task", TASKS), ("loss", (None, *LOSSES)), ("class_weights", ("none", "balanced")),
            ("sampling", ("natural", "balanced")),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                words = ", ".join(each for each in known if each)
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {words}")
        if self.task != CLASSIFY and self.dataset is not None:
            raise ValueError(f"--dataset has one class a video, which --task {self.task} is not")
        if self.loss is not None and self.task != REGRESS:
            raise ValueError(f"--loss is for --task regress; that of {self.task} is cross-entropy")
        if self.task == REGRESS and self.class_weights != "none":
            raise ValueError("--class-weights is for classes and labels; --task regress has none")
        if self.task == REGRESS and self.label_smoothing:
            raise ValueError("--label-smoothing is for labels; --task regress has none")
        if self.task != CLASSIFY and self.sampling != "natural":
            raise ValueError(
                f"--sampling {self.sampling} is for one class a video, --task classify; of several "
                "labels --class-weights balanced evens out the numbers"
                if self.task == MULTILABEL
                else f"--sampling {self.sampling} is for classes; --task regress has none"
            )

    @property
    def mixing(self) -> tuple[float, float]:
        """Parameters of mixup and cutmix."""
        is_plain = self.task == REGRESS
        mixup = (0.0 if is_plain else 0.8) if self.mixup is None else self.mixup
        cutmix = (0.0 if is_plain else 1.0) if self.cutmix is None else self.cutmix
        return mixup, cutmix

    @property
    def smoothing(self) -> float:
        """Of labels."""
        if self.label_smoothing is None:
            return 0.1 if self.task == CLASSIFY else 0.0
        return self.label_smoothing

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
    pixels: np.ndarray  # uint8 [T, H, W, C]
    target: np.ndarray  # float32 [K], see `Objective.target`
    branches: np.ndarray  # float32 [L, 2]
    features: np.ndarray  # float32 [W]


class Batch(NamedTuple):
    """Samples on the device."""

    pixels: Tensor  # uint8 [B, T, H, W, C]
    targets: Tensor  # float32 [B, K]
    branches: Tensor  # float32 [L, 2, B]
    features: Tensor  # float32 [B, W]


class Finetuning(PlainTask):
    """The task of the loop: clips of labelled videos, and the loss of what is wanted of them."""

    def __init__(
        self,
        model: VideoClassifier,
        labelled: Labelled,
        overlap: int,
        clips: ClipConfig,
        config: FinetuneConfig,
        setup: Setup,
        outputs: Outputs,
    ):
        self.model = model
        self.videos = labelled.train
        self.test_videos = labelled.test
        self.outputs = outputs
        self.objective = make_objective(config, labelled, outputs)
        self.balanced: BalancedSamples | None = None
        if config.sampling == "balanced":
            self.balanced = BalancedSamples(list(map(label_of, self.videos)), config.seed)
        self.about_classes = {
            **({} if config.task == REGRESS else {"labels_in_the_training_list": labelled.numbers}),
            **({"test_videos_in_training": overlap} if overlap else {}),
        }
        self.clips = clips
        self.config = config
        self.setup = setup
        self.averaged: AveragedModel | None = None
        if config.ema:
            self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))

    @property
    def sum_names(self) -> Sequence[str]:
        return self.objective.sum_names

    def _video(self, index: int, epoch: int) -> Video:
        """The video at place `index` of an epoch, before the places are shuffled."""
        return self.videos[index if self.balanced is None else self.balanced.video(index, epoch)]

    def load(self, index: int, epoch: int) -> Sample:
        """Clip `index` of `epoch`, mixed with that of another video.

        Raises:
            SavimaeError: a video cannot be decoded.
        """
        config = self.config
        key = sample_keys(config.seed, epoch, np.array([index]))[0]
        video = self._video(index, epoch)
        pixels, other = self._clip(video, key), video
        mixing = draw_mixing(self.clips.sides, *config.mixing, key)
        if mixing.share < 1:
            partner = integer_below(len(self.videos), key, PARTNER)
            other = self._video(partner, epoch)
            of_partner = sample_keys(config.seed, epoch, np.array([partner]))[0]
            pixels = mix_clips(pixels, self._clip(other, of_partner), mixing)
        target = self.objective.target(video, other, mixing.share)
        shape = self.model.config
        branches = drop_path_branches(key, config.drop_path, shape.encoder_depth)
        branches[: config.freeze] = 1  # what is frozen is as in a test
        features = dropout_features(key, config.head_dropout, self.model.head.in_features)
        return Sample(video, pixels, target, branches, features)

    def _clip(self, video: Video, key: np.uint64) -> np.ndarray:
        """A clip as `key` draws it, cropped, mirrored and erased: uint8 `[T, H, W, C]`."""
        with naming_video(video.path):
            frames, _ = open_video(video.path).read_clip(
                lambda n_frames: clip_indices(n_frames, self.clips, key),
                channels=self.clips.channels,
            )
        clips, size = self.clips, self.clips.sides
        pixels = np.empty((len(frames), *size, clips.channels), np.uint8)
        resizer, flipped = FrameResizer(clips.channels), is_flipped(clips, key)
        for frame, out in zip(frames, pixels, strict=True):
            height, width, _ = frame.shape
            placed = place_frame(height, width, size, clips.patch_size, clips.fit)
            if self.config.smallest_crop < 1:  # parts in the input's shape, padded ones in theirs
                like = Sides(height, width) if clips.fit == PAD else size
                part = resized_crop_box(height, width, like, self.config.smallest_crop, key)
                placed = place_part(part, size, clips.patch_size, clips.fit)
            resizer.place(frame, placed.mirrored(size) if flipped else placed, flipped, out)
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
        """Sum over the clips; see `Objective.loss`."""
        logits = self.model(batch.pixels, batch.branches, batch.features).float()
        return self.objective.loss(logits, batch.targets)

    def log_fields(self, sums: dict[str, float], seconds: float) -> dict[str, float | None]:
        del seconds
        return {**self.objective.log_fields(sums)}

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
        """Scores on the test videos, see `scores`; after the last step also in `test.json`, and
        what is predicted of every video in `predictions.csv`.

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
            len(self.outputs.names),
            ViewReader(self.clips, config.views),
            setup.plan.batch_size, setup.device, setup.precision, setup.world, self.outputs.finish,
        )  # fmt: skip
        tested = self.model if self.averaged is None else self.averaged
        if config.standardize:  # with the first process's running means, which checkpoints hold
            setup.world.share_state(tested)
        found = of_classifier.run(tested, signals)
        self.model.train()
        if found is None:
            return None
        result = result_of(found, self.test_videos, self.outputs)
        if setup.world.is_main:
            if is_last:
                predictions = tested_predictions(found, self.test_videos, self.outputs)
                whole = {"step": step, **result, **self.about_classes}
                write_result(config.out, whole, predictions)
            of_classifier.forget()
        scores = {
            f"test_{score.name}": result[score.name] for score in MEASURED[config.task].scores
        }
        return {name: value for name, value in scores.items() if value is not None}


def make_objective(config: FinetuneConfig, labelled: Labelled, outputs: Outputs) -> Objective:
    """What a run minimises."""
    n, is_balanced = len(outputs.names), config.class_weights == "balanced"
    if outputs.scale is not None:
        return OfValues(outputs.scale, config.loss or LOSSES[0])
    if config.task == MULTILABEL:
        of_labels = label_weights(labelled.train, n) if is_balanced else None
        return OfLabels(n, config.smoothing, of_labels)
    weights = class_weights(labelled.train, n) if is_balanced else None
    return OfClasses(n, config.smoothing, weights)


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
    """Training and test videos of a run, with the same labels or numbers on both sides.

    Raises:
        UsageError: a video without a label, a class of the test that training does not have, or
            numbers that are others.
        SavimaeError: videos that a list or an official split names are not there.
    """
    train, test = _find_videos(config, quiet)
    match = match_values if config.task == REGRESS else match_labels
    return match(train, test, config.data, config.test or config.data)


def _find_videos(config: FinetuneConfig, quiet: bool) -> tuple[VideoList, VideoList]:
    """Training and test videos: of two lists, or of an official split."""
    if config.dataset is None:
        kind = KIND_OF_LISTS[config.task]
        return find_both_sides(config.data, str(config.test), config.root, quiet, kind)
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


# What a run makes, for people; {n} classes, labels or numbers.
WORDS = {
    CLASSIFY: "classifier of {n} classes", MULTILABEL: "classifier of {n} labels, any of a video",
    REGRESS: "regression of {n} numbers",
}  # fmt: skip


class FinetuningRun:
    """Fine-tuning as a run of the loop. Raises as `finetune`."""

    def __init__(self, config: FinetuneConfig, setup: Setup, labelled: Labelled):
        self.config = config
        self.setup = setup
        self.labelled = labelled
        self.train, self.test = labelled.train, labelled.test
        self.classes = labelled.classes
        self.settled: dict[str, Any] = {}  # values of open settings
        self.overlap = check_overlap(self.train, self.test, config.allow_overlap)
        clips = ClipShape(config.num_frames, config.input_size, config.channels, config.fit)
        self.weights = adapted(config.checkpoint, read_weights(config.checkpoint), clips)
        rate = config.sampling_rate
        if rate is None:
            rate = self.weights.settings.get("sampling_rate", ClipConfig.sampling_rate)
        shape = self.shape
        try:
            self._check_frozen()
            self.clips = ClipConfig(
                shape.num_frames, rate, shape.input_size, hflip=config.hflip,
                channels=shape.channels, patch_size=shape.patch_size,
                fit=self.weights.settings.get("fit", PRESS),
            )  # fmt: skip
            ViewReader(self.clips, config.views)
            self._check_fit()
            scale = scale_of(self.train) if config.task == REGRESS else None
            self.outputs = Outputs(labelled.classes, config.task, scale)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def _check_fit(self) -> None:
        """Raises ValueError for a fit that nothing sees."""
        config = self.config
        if config.fit == CROP and config.smallest_crop < 1 and config.test_crops is not None:
            raise ValueError(
                "--fit crop is for whole frames, and neither training nor test sees them; give "
                "--smallest-crop 1 or --test-crops 0, or leave it out"
            )

    def _check_frozen(self) -> None:
        """Raises ValueError for more frozen blocks than there are, or what none of them leaves."""
        config, depth = self.config, self.shape.encoder_depth
        if config.freeze > depth:
            raise ValueError(
                f"--freeze {config.freeze}: the encoder of {shown(config.checkpoint)} has {depth} "
                "blocks"
            )
        of_blocks = {
            "drop-path": config.drop_path not in (FinetuneConfig.drop_path, 0),
            "layer-decay": config.layer_decay not in (FinetuneConfig.layer_decay, 1),
            "checkpoint-activations": config.checkpoint_activations,
        }
        given = [name for name, is_given in of_blocks.items() if is_given]
        if config.freeze == depth and given:
            raise ValueError(
                f"--{given[0]} is for blocks that learn, and --freeze {depth} leaves none"
            )

    @property
    def shape(self) -> VideoMAEConfig:
        return dataclasses.replace(
            self.weights.config, checkpoint_activations=self.config.checkpoint_activations
        )

    @property
    def model_config(self) -> dict[str, Any]:
        return {
            **self.shape.recorded(),
            "n_classes": len(self.classes),
            "classes": self.classes,
            **self.outputs.in_config(),
            "views": dataclasses.asdict(self.config.views),
        }

    @property
    def settings(self) -> dict[str, Any]:
        config = self.config
        names = (
            "untrained", "smallest_crop", "hflip", "erasing",
        )  # fmt: skip
        mixup, cutmix = config.mixing
        loss = config.loss or LOSSES[0] if config.task == REGRESS else None
        others = ("layer_decay", "drop_path", "head_dropout", "head_scale", "ema")
        # Left out as they were before there was a choice, so that older runs go on.
        chosen = {
            "task": (config.task, CLASSIFY), "loss": (loss, None),
            "class_weights": (config.class_weights, "none"),
            "sampling": (config.sampling, "natural"), "freeze": (config.freeze, 0),
            "pool": (config.pool, HeadConfig.pool), "standardize": (config.standardize, False),
        }  # fmt: skip
        shape = self.shape.recorded()
        del shape["checkpoint_activations"]
        return {
            "output": "classifier",
            "videos": names_digest(self.train),
            "test_videos": names_digest(self.test),
            "labels": labels_digest([*self.train, *self.test], self.classes),
            "checkpoint": config.checkpoint,
            "sampling_rate": self.clips.sampling_rate,
            **({"fit": self.clips.fit} if self.clips.fit != PRESS else {}),
            **shape,
            **{name: getattr(config, name) for name in names},
            "mixup": mixup,
            "cutmix": cutmix,
            "label_smoothing": config.smoothing,
            **{name: getattr(config, name) for name in others},
            **{name: value for name, (value, usual) in chosen.items() if value != usual},
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
        model = VideoClassifier(self.shape, len(self.classes), config.head_scale, config.head)
        if is_new and not config.untrained:
            model.load_encoder(self.weights.state)
        use_ways(model, self.ways)
        model.encoder.freeze(config.freeze)
        model.to(self.setup.device)
        return Finetuning(
            model, self.labelled, self.overlap, self.clips, config, self.setup, self.outputs
        )

    def make_optimizer(self, task: Finetuning) -> torch.optim.Optimizer:
        learned = [each for each in task.model.named_parameters() if each[1].requires_grad]
        groups = parameter_groups(
            learned, self.shape.encoder_depth, self.config.weight_decay,
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
            f"clips of {shape.num_frames} frames, {self.clips.sampling_rate} apart, {shape.sides}",
            f"{WORDS[config.task].format(n=len(self.classes))}, {start}: {n_parameters:.2f} M "
            f"parameters{self._frozen_words(task)}",
        )
        if config.class_weights == "balanced":
            print(_weight_words(task.objective), flush=True)
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

    def _frozen_words(self, task: Finetuning) -> str:
        if not self.config.freeze:
            return ""
        kept = sum(each.numel() for each in task.model.parameters() if not each.requires_grad) / 1e6
        return (
            f", of which {kept:.2f} M keep their values (patch embedding and "
            f"{self.config.freeze} of {self.shape.encoder_depth} blocks)"
        )


def _weight_words(objective: Objective) -> str:
    """Which weights a run's classes or labels have."""
    if isinstance(objective, OfClasses) and objective.weights is not None:
        low, high = float(objective.weights.min()), float(objective.weights.max())
        return f"class weights n / (K n_k): {low:.3g} to {high:.3g}"
    if isinstance(objective, OfLabels):
        low, high = float(objective.weights[:, 1].min()), float(objective.weights[:, 1].max())
        return f"weights of videos with a label, n / (2 n_k): {low:.3g} to {high:.3g}"
    raise AssertionError("numbers have no weights")
