"""A pretrained model together with how its clips and masks were made, for all that looks at it."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from savimae.arrays import cut_words, find_cut
from savimae.batches import Plan, load_batches
from savimae.clips import ClipConfig, ClipReader
from savimae.config import SaliencyConfig
from savimae.convert import load_weights
from savimae.cores import available_cores
from savimae.devices import choose_device, choose_precision
from savimae.distributed import World
from savimae.errors import SavimaeError, UsageError, shown
from savimae.lists import Video, VideoList, distinct_videos, find_videos, root_for
from savimae.masking import MaskSpec, refuse_idle_ratios
from savimae.model import VideoMAE
from savimae.progress import Progress

Sample = TypeVar("Sample")
SAMPLING_RATE = 4  # where a checkpoint does not say


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
        if workers is None:
            workers = max(1, torch.get_num_threads() // 4)
        return cls(chosen, choose_precision(precision, chosen), batch_size, workers)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def batches(
        self,
        n: int,
        load: Callable[[int, int], Sample],
        title: str,
        rounds: int = 1,
        done: int = 0,
    ) -> Iterator[list[Sample]]:
        """Batches of `load(index, round)` for all indices below n, in a fixed order, loaded ahead.

        Args:
            title: what the progress is called.
            rounds: how often every index comes.
            done: batches to leave out at the start.
        """
        plan = Plan(n, self.batch_size)
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
class Pretrained:
    """A model in evaluation mode, and the settings of its training as far as they are known."""

    path: str
    model: VideoMAE
    settings: Mapping[str, Any]

    def clips(self, sampling_rate: int | None = None) -> ClipConfig:
        """Clips as the model was trained on, whole frames; or with another sampling rate.

        Raises:
            ValueError: a rate below 1.
        """
        shape = self.model.config
        rate = self._setting(sampling_rate, "sampling_rate", SAMPLING_RATE)
        return ClipConfig(shape.num_frames, rate, shape.image_size)

    def saliency(self, threshold: float | None = None) -> SaliencyConfig:
        """Raises ValueError for a threshold out of range."""
        shape = self.model.config
        threshold = self._setting(threshold, "saliency_threshold", SaliencyConfig.threshold)
        return SaliencyConfig(shape.image_size, shape.patch_size, threshold)

    def masks(self, options: MaskOptions) -> MaskSpec:
        """Raises ValueError for an unknown type, or a ratio out of range or without effect."""
        shape = self.model.config
        kind = self._setting(options.mask_type, "mask_type", MaskSpec.kind)
        refuse_idle_ratios(
            kind, options.mask_ratio, options.salient_mask_ratio, options.nonsalient_mask_ratio
        )
        return MaskSpec(
            kind,
            shape.time_steps,
            shape.grid_size,
            self._setting(options.mask_ratio, "mask_ratio", MaskSpec.ratio),
            self._setting(options.salient_mask_ratio, "mask_salient_ratio", MaskSpec.salient_ratio),
            self._setting(
                options.nonsalient_mask_ratio, "mask_nonsalient_ratio", MaskSpec.nonsalient_ratio
            ),
        )

    def _setting(self, given: Any, name: str, default: Any) -> Any:
        return self.settings.get(name, default) if given is None else given

    def reader(
        self,
        sampling_rate: int | None,
        saliency_root: str | None,
        threshold: float | None,
        array_cut: int,
    ) -> ClipReader:
        """Reads clips as the model was trained on, with their saliency; see `ClipReader`.

        Raises:
            ValueError: a number out of range, or a threshold for arrays, which have theirs.
        """
        if saliency_root is not None and threshold is not None:
            raise ValueError(
                "--saliency-threshold is for saliency that is computed from the clips; the arrays "
                "of --saliency-root have theirs, see `savimae preprocess --threshold`"
            )
        return ClipReader(
            self.clips(sampling_rate), self.saliency(threshold),
            self.model.config.tubelet_size, saliency_root, array_cut,
        )  # fmt: skip


def load_pretrained(path: str, device: torch.device) -> Pretrained:
    """The model at `path`: a checkpoint of any layout, or the folder of a run.

    Raises:
        SavimaeError: as `load_weights`.
    """
    weights = load_weights(path)
    model = VideoMAE(weights.config)
    model.load_state_dict(weights.state)
    return Pretrained(path, model.to(device).eval(), weights.settings)


def find_readable_videos(data: str, root: str | None = None, quiet: bool = False) -> VideoList:
    """The videos of a list or folder.

    Raises:
        UsageError: as `find_videos`.
        SavimaeError: a folder among them cannot be read, or holds nothing.
    """
    found = find_videos(data, root, weigh=False, quiet=quiet)
    for path, reason in found.unreadable:
        raise SavimaeError(f"{shown(path)}: {reason}; mend or remove it")
    return found


def find_labelled_videos(data: str, root: str | None = None, quiet: bool = False) -> VideoList:
    """The videos of a list with labels, or of a folder of class folders.

    Raises:
        UsageError: one has no label.
        SavimaeError: as `find_readable_videos`.
    """
    found = find_readable_videos(data, root, quiet)
    for video in found.videos:
        if video.label is None:
            raise UsageError(
                f"{shown(data)}: {shown(video.path)} has no label; write `path label` lines, or "
                "make the list with `savimae index`"
            )
    return found


def find_both_sides(
    train: str, test: str, root: str | None = None, quiet: bool = False
) -> tuple[VideoList, VideoList]:
    """Training and test videos, each of a list with labels or of a folder of class folders.

    Args:
        root: where relative paths of lists start; one side at least must be a list.

    Raises: as `find_labelled_videos`.
    """
    both = (train, test)
    found = [find_labelled_videos(path, root_for(path, both, root), quiet) for path in both]
    return found[0], found[1]


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


def stacked(arrays: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
    """Arrays of one shape -> a tensor with an axis more, on `device`."""
    return torch.from_numpy(np.stack(arrays)).to(device)
