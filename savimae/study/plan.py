"""What a study does: its ways of pretraining, its budget, its cells, and what becomes of each.

A way is a set of options of `savimae train`. A cell is one way with one seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from savimae.data.fitting import PAD, PRESS
from savimae.saliency.config import CHANGE, FRAME_MEAN, fit_of_arrays, kind_of_arrays
from savimae.samples.masking import SALIENT_KINDS
from savimae.system.errors import UsageError
from savimae.training.setup import RunConfig, options_of

if TYPE_CHECKING:
    from savimae.training.finetune import FinetuneConfig
    from savimae.training.pretrain import TrainConfig

CELLS = "cells"  # folder of a study
RESULT = "result.json"  # of a cell that is done
BUDGETS = ("steps", "minutes", "flops")
# What the cells are given, and options that are theirs alone.
OF_CELLS = ("data", "out", "root", "seed", "steps", "epochs", "resume", "allocator")
# What does not change what a cell finds.
NOT_COMPARED = (
    "data",
    "test",
    "out",
    "root",
    "device",
    "threads",
    "workers",
    "save_every",
    "keep",
    "log_every",
    "tensorboard",
)
UNSAFE = re.compile(r"[^A-Za-z0-9.+=_-]+")


@dataclasses.dataclass(frozen=True)
class Way:
    """One way of pretraining."""

    name: str  # the values that are varied and count, such as "savi, change"
    config: TrainConfig  # of a cell, without its folder, seed and length


def cell_folder(study: str, way: str, seed: int) -> str:
    """Where a cell of the study in the folder `study` lies."""
    name = UNSAFE.sub("-", way).strip("-") or "way"
    return os.path.join(study, CELLS, name, f"seed-{seed}")


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every cell may cost: so many optimizer steps, minutes, or floating point operations."""

    kind: str  # of BUDGETS
    amount: float

    def __post_init__(self) -> None:
        if not 0 < self.amount < float("inf"):
            raise ValueError(f"--{self.kind} must be above 0, not {self.amount:g}")

    @property
    def steps(self) -> int | None:
        """What every cell does; None where each finds it out."""
        return int(self.amount) if self.kind == "steps" else None

    @property
    def words(self) -> str:
        """Such as "2000 steps"."""
        unit = {"steps": "steps", "minutes": "minutes", "flops": "floating point operations"}
        return f"{self.amount:g} {unit[self.kind]}"


@dataclasses.dataclass(frozen=True)
class Judges:
    """How every encoder is judged; as the options of `savimae probe`."""

    pool: str = "time"
    layer: int | None = None
    attentive: bool = False
    label_counts: tuple[int | None, ...] = (None,)
    allow_overlap: bool = False


@dataclasses.dataclass(frozen=True)
class Cell:
    """One way with one seed, in a folder of its own."""

    way: Way
    seed: int
    folder: str
    with_baselines: bool  # the first way of each shape does them too

    @property
    def name(self) -> str:
        return f"{self.way.name}, seed {self.seed}"

    @property
    def result(self) -> str:
        """The file that is there when the cell is done."""
        return os.path.join(self.folder, RESULT)


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything that `savimae study` can be told."""

    data: str  # videos to pretrain on
    train: str  # labelled videos
    test: str
    out: str
    ways: tuple[Way, ...]
    seeds: int
    budget: Budget
    judges: Judges
    finetuning: FinetuneConfig | None  # without its checkpoint and folder; None: none
    root: str | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for a fine-tuning that would be refused after the pretraining."""
        tuning = self.finetuning
        if tuning is None or tuning.test_crops is None or tuning.fit not in (None, PAD):
            return
        for way in self.ways:
            with contextlib.suppress(ValueError):  # said when its cell begins
                if tuning.fit == PAD or way.config.saliency_config().fit == PAD:
                    raise UsageError(
                        f"{way.name}: padded frames (--fit pad) are tested whole; say "
                        "--test-crops 0 in --finetune"
                    )

    def cells(self) -> list[Cell]:
        """All cells: every way with the first seed, then with the next."""
        firsts = {
            way.name for number, way in enumerate(self.ways)
            if self.shape_of(way) not in [self.shape_of(other) for other in self.ways[:number]]
        }  # fmt: skip
        return [
            Cell(way, seed, cell_folder(self.out, way.name, seed), way.name in firsts)
            for seed in range(1, self.seeds + 1)
            for way in self.ways
        ]

    def shape_of(self, way: Way) -> Any:
        """What an untrained encoder and raw pixels depend on.

        Raises:
            ValueError: a way that cannot be.
        """
        shape = dataclasses.replace(way.config.model_shape(), checkpoint_activations=False)
        fit = way.config.saliency_config().fit
        return dataclasses.replace(shape, decoder_depth=1), way.config.sampling_rate, fit

    def settings(self) -> dict[str, Any]:
        """What a study that goes on must repeat. More seeds may be asked for later."""
        judges = dataclasses.asdict(self.judges)
        return {
            "output": "study",
            **{name: os.path.abspath(getattr(self, name)) for name in ("data", "train", "test")},
            "budget": self.budget.words,
            "ways": {way.name: own_options(way.config) for way in self.ways},
            **judges,
            "label_counts": list(judges["label_counts"]),
            "finetuning": None if self.finetuning is None else own_options(self.finetuning),
        }


def own_options(config: RunConfig) -> list[str]:
    """Options that say what is done, without where things are and what the machine is."""
    return options_of(config, NOT_COMPARED)


def make_ways(
    common: Mapping[str, Any],
    varied: Mapping[str, Sequence[tuple[str, Any]]],
    make: Callable[[dict[str, Any]], TrainConfig],
    recipe: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda _typed: {},
) -> tuple[Way, ...]:
    """Every combination of the varied options, with those left out that do not count in it.

    Combinations that differ in nothing else are one way: `tube` masks know no saliency.

    Args:
        common: options that all ways are given, by name.
        varied: by name, the values as typed and as they are.
        make: a config from such options; raises UsageError for those that do not fit.
        recipe: what a recipe says beside varied options, by name; it need not count anywhere.

    Raises:
        UsageError: an option that counts in no way, a way that cannot be, or only one.
    """
    ways: dict[str, Way] = {}
    idle = {*common, *varied}
    for combination in itertools.product(*varied.values()):
        chosen = dict(zip(varied, combination, strict=True))
        typed = {name: value for name, (_, value) in chosen.items()}
        try:
            options = options_that_count({**recipe(typed), **common, **typed})
        except ValueError as error:
            raise UsageError(str(error)) from None
        idle -= options.keys()
        name = ", ".join(words for key, (words, _) in chosen.items() if key in options)
        if name not in ways:
            try:
                ways[name] = Way(name, make(options))
            except UsageError as error:
                raise UsageError(f"{name}: {error}") from None
    if idle:
        names = ", ".join(sorted(f"--{name.replace('_', '-')}" for name in idle))
        raise UsageError(f"{names} counts in none of the ways of this study; leave it out")
    if len({cell_folder("", name, 1) for name in ways}) < len(ways):
        raise UsageError("two values of --vary cannot be told apart by their letters and digits")
    if len(ways) < 2:
        raise UsageError("a study compares: give a --vary with two values that count, or more")
    return tuple(ways.values())


def options_that_count(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that have no effect on masks, or on saliency, of this kind.

    Raises:
        ValueError: arrays that were fitted in a way that does not exist.
    """
    mask_type = options.get("mask_type", "savi")
    is_savi = mask_type in SALIENT_KINDS
    root = options.get("saliency_root")
    kind = options.get("saliency") or (root and kind_of_arrays(root)) or FRAME_MEAN
    is_change = kind == CHANGE
    uses_saliency = is_savi or options.get("decode") == "salient"
    counts = {
        "salient_mask_ratio": is_savi,
        "nonsalient_mask_ratio": is_savi,
        "equal_count": is_savi,
        "visible_tokens": is_savi,
        "mask_ratio": not is_savi,
        "saliency": uses_saliency,
        "saliency_root": uses_saliency,
        "salient_share": uses_saliency and is_change,
        "saliency_threshold": uses_saliency and not is_change,
    }
    counted = {name: value for name, value in options.items() if counts.get(name, True)}
    if root and not uses_saliency and options.get("augment", "none") == "none":
        # Frames are fitted as they are in the cells that read the arrays.
        fit = fit_of_arrays(str(root)) or PRESS
        counted |= {"fit": fit} if fit != PRESS else {}
    return counted


def check_free(given: Collection[str]) -> None:
    """Raises UsageError for options of `savimae train` that the study sets for each cell."""
    for name in OF_CELLS:
        if name in given:
            hint = ""
            if name in ("steps", "epochs"):
                hint = "; say what a cell may cost with --steps, --minutes or --flops"
            raise UsageError(f"--{name} is what `savimae study` sets itself{hint}")
