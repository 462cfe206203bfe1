"""What pretraining is worth on the demo's videos: probes and fine-tuning, with several seeds.

Many videos have no labels. A few have two labels: which object moves (a single frame shows it),
and in which direction (a single frame does not). The same probes are run on an untrained encoder
and on raw pixels.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence

from savimae.demo.run import DIRECTIONS, OBJECTS, DemoSet, make_demo_set, say
from savimae.judging.load import Machine
from savimae.judging.probe import check_sklearn, probe
from savimae.saliency.makers import ArrayMaker
from savimae.saliency.preprocess import WalkOptions, process
from savimae.system.errors import shown
from savimae.system.files import read_json, refuse_file, write_json
from savimae.system.tables import table
from savimae.training.classifier_test import RESULT
from savimae.training.finetune import FinetuneConfig, finetune
from savimae.training.pretrain import TrainConfig, train
from savimae.training.setup import options_of

SEEDS = (1, 2, 3)  # of weights, masks and order; the videos stay the same
# Videos of each object in each direction: 512 to pretrain on, 64 with labels, 128 to test on.
PRETRAINING_COPIES, LABELLED_COPIES, TEST_COPIES = 16, 2, 4
PRETRAINING_EPOCHS, FINETUNING_EPOCHS = 60, 20
INPUT_SIZE = 96  # pixels
CLASSES = {"object": OBJECTS, "direction": DIRECTIONS}
POOL_WORDS = {"mean": "mean of tokens", "tokens": "all tokens"}
COLUMNS = ("pretrained", "untrained", "raw pixels")


@dataclasses.dataclass(frozen=True)
class DemoScore:
    """Top-1 on the test videos of one way to use one kind of features, with one seed."""

    label: str  # of CLASSES
    way: str
    features: str  # of COLUMNS
    seed: int
    top1: float


def run_full_demo(out: str, seed: int, workers: int) -> int:
    """Make 704 videos, pretrain on 512 of them with three seeds, print what that is worth.

    Run again, it goes on. The scores are kept in `scores.json`.

    Returns:
        The exit code: 0, 1 if a video failed, or `errors.EXIT_STOPPED` if a run was stopped.

    Raises:
        UsageError: `out` holds a demo made with another seed, or is a file.
        SavimaeError: scikit-learn is not installed.
    """
    check_sklearn()
    refuse_file(out)
    say("making videos with labels, to test on, and to pretrain on")
    labelled = make_demo_set(os.path.join(out, "labelled"), seed, LABELLED_COPIES)
    test = make_demo_set(os.path.join(out, "test"), seed + 1, TEST_COPIES)
    unlabelled = make_demo_set(os.path.join(out, "unlabelled"), seed + 2, PRETRAINING_COPIES)
    arrays = os.path.join(out, "saliency")
    job = ArrayMaker(_pretraining(unlabelled, arrays, out, 0).saliency_config())
    say(f"savimae preprocess {shown(unlabelled.videos)} {shown(arrays)} --input-size {INPUT_SIZE}")
    report = process(unlabelled.videos, arrays, job, WalkOptions(workers))
    say(f"   {report.summary()}")
    if report.failures:
        return 1
    scores: list[DemoScore] = []
    for number in SEEDS:
        folder = os.path.join(out, f"seed-{number}")
        run = os.path.join(folder, "pretrained")
        pretraining = _pretraining(unlabelled, arrays, run, number)
        say(f"seed {number}: savimae train {' '.join(options_of(pretraining))}")
        if code := train(pretraining):
            return code
        for label in CLASSES:
            lists = _list_of(labelled, label), _list_of(test, label)
            scores += _probe(run, *lists, folder, label, number)
            for features in ("pretrained", "untrained"):
                classifier = os.path.join(folder, f"{label}-{features}")
                config = _finetuning(run, *lists, classifier, number, features == "untrained")
                say(f"seed {number}: savimae finetune {shown(run)} {' '.join(options_of(config))}")
                if code := finetune(config):
                    return code
                top1 = read_json(os.path.join(classifier, RESULT))["top1"]
                scores.append(DemoScore(label, "fine-tuned", features, number, top1))
    path = os.path.join(out, "scores.json")
    write_json(path, [dataclasses.asdict(score) for score in scores])
    say(scores_table(scores))
    say(f"wrote {shown(path)}")
    return 0


def _list_of(videos: DemoSet, label: str) -> str:
    return videos.object_list if label == "object" else videos.direction_list


def _probe(
    run: str, train_list: str, test_list: str, folder: str, label: str, seed: int
) -> Iterator[DemoScore]:
    """Probes of the mean of the tokens and of all tokens. Features are computed only once."""
    machine = Machine.choose("auto", "auto", None, batch_size=16)
    for pool, words in POOL_WORDS.items():
        out = os.path.join(folder, f"probe-{pool}")
        say(f"seed {seed}: savimae probe {shown(run)} --pool {pool} --train {shown(train_list)} …")
        for score in probe(run, train_list, test_list, out, machine, pool=pool, seed=seed).scores:
            yield DemoScore(label, f"{score.classifier}, {words}", score.features, seed, score.top1)


def _pretraining(videos: DemoSet, arrays: str, run: str, seed: int) -> TrainConfig:
    return TrainConfig(
        videos.direction_list, run, saliency_root=arrays, seed=seed,
        model="tiny", encoder_depth=3, decoder_depth=2, input_size=INPUT_SIZE, num_frames=8,
        salient_mask_ratio=0.75, decode="salient", epochs=PRETRAINING_EPOCHS, batch_size=32,
        optimizer="muon", lr=5e-3, log_every=100,
    )  # fmt: skip


def _finetuning(
    run: str, train_list: str, test_list: str, out: str, seed: int, untrained: bool
) -> FinetuneConfig:
    """With so few steps, most of the published recipe's regularisation does harm."""
    return FinetuneConfig(
        train_list, out, checkpoint=run, test=test_list, untrained=untrained, seed=seed,
        epochs=FINETUNING_EPOCHS, lr=1e-3, log_every=100, test_clips=1,
        test_crops=None, smallest_crop=1.0, hflip=False, erasing=0.0, mixup=0.0, cutmix=0.0,
        label_smoothing=0.0, drop_path=0.0,
    )  # fmt: skip


def scores_table(scores: Iterable[DemoScore]) -> str:
    """Rows: label and way; columns: features. Each cell: mean and spread over the seeds."""
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for score in scores:
        row = cells.setdefault((score.label, score.way), {})
        row.setdefault(score.features, []).append(score.top1)
    rows = [["top-1", *COLUMNS]]
    for (label, way), row in cells.items():
        ways = [other for of, other in cells if of == label]
        if way == ways[0]:
            rows.append([f"{label} (chance {1 / len(CLASSES[label]):.3f})", "", "", ""])
        rows.append([f"  {way}", *(_mean_and_spread(row.get(name, ())) for name in COLUMNS)])
    return table(rows)


def _mean_and_spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"
