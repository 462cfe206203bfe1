"""One cell of a study: an ordinary run of pretraining, then its probes and its fine-tuning.

Whatever was begun goes on: the runs from their checkpoints, the features from what is there. The
file `result.json` is written when all is done.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from typing import Any

from savimae.judging.load import Machine
from savimae.judging.probe import Probe, probe
from savimae.study.plan import Budget, Cell, Study
from savimae.system.errors import EXIT_STOPPED, SavimaeError, shown
from savimae.system.files import read_json, write_json
from savimae.training.classifier_test import RESULT as TEST_RESULT
from savimae.training.finetune import FinetuneConfig, finetune
from savimae.training.log import read_log
from savimae.training.pretrain import TrainConfig, steps_of_flops, train

PRETRAINED, UNTRAINED = "pretrained", "untrained"
TRIAL, TRIAL_STEPS = "trial", 60  # a short run that measures how fast a way is on this machine
FEATURES = "probe"
FINE_TUNED = "fine-tuned"


def run_cell(study: Study, cell: Cell) -> int:
    """Do what is left of a cell; returns the exit code, 0 or `errors.EXIT_STOPPED`.

    Raises:
        UsageError, SavimaeError: as `train`, `probe` and `finetune`.
    """
    if os.path.exists(cell.result):
        return 0
    run = os.path.join(cell.folder, PRETRAINED)
    config = dataclasses.replace(cell.way.config, out=run, seed=cell.seed)
    steps = _steps(study.budget, config, cell)
    if steps is None:
        return EXIT_STOPPED
    config = dataclasses.replace(config, epochs=None, steps=steps)
    print(f"{cell.name}: pretraining, {steps} steps", flush=True)
    if code := train(config):
        return code
    probed = _probe(study, cell, run, config)
    scores = [_score(s.features, s.classifier, s.labels, s.top1) for s in probed.scores]
    if study.finetuning is not None:
        for encoder in (PRETRAINED, UNTRAINED) if cell.with_baselines else (PRETRAINED,):
            print(f"{cell.name}: fine-tuning, {encoder}", flush=True)
            tuned = _tuning(study, study.finetuning, cell, run, config, encoder)
            if code := finetune(tuned):
                return code
            test = read_json(os.path.join(tuned.out, TEST_RESULT))
            scores.append(_score(encoder, FINE_TUNED, None, test["top1"]))
    write_json(
        cell.result,
        {
            "way": cell.way.name,
            "seed": cell.seed,
            "steps": steps,
            **_summary(run),
            "n_train": probed.n_train,
            "n_test": probed.n_test,
            "classes": len(probed.classes),
            "chance": probed.chance,
            "scores": scores,
        },
    )
    shutil.rmtree(os.path.join(cell.folder, FEATURES), ignore_errors=True)
    return 0


def _steps(budget: Budget, config: TrainConfig, cell: Cell) -> int | None:
    """Steps of the cell's pretraining; None if their measurement was stopped.

    A cell keeps the number that was found when it began.
    """
    if budget.steps is not None:
        return budget.steps
    path = os.path.join(cell.folder, "steps.json")
    if os.path.exists(path):
        return int(read_json(path)["steps"])
    if budget.kind == "flops":
        steps = steps_of_flops(config, budget.amount)
    else:
        found = _steps_of_minutes(config, budget.amount, cell)
        if found is None:
            return None
        steps = found
    write_json(path, {"steps": steps})
    return steps


def _steps_of_minutes(config: TrainConfig, minutes: float, cell: Cell) -> int | None:
    """As many as this machine does in this time, by a short run; None if that was stopped."""
    trial = os.path.join(cell.folder, TRIAL)
    shutil.rmtree(trial, ignore_errors=True)
    print(f"{cell.name}: {TRIAL_STEPS} steps to see how fast this machine is", flush=True)
    short = dataclasses.replace(
        config, out=trial, epochs=None, steps=TRIAL_STEPS, warmup_epochs=None,
        log_every=TRIAL_STEPS // 3,
    )  # fmt: skip
    if train(short):
        return None
    clips_per_s = [line["clips_per_s"] for line in read_log(trial)][-1]
    shutil.rmtree(trial)
    of_step = config.batch_size * config.accumulate
    return max(1, round(60 * minutes * clips_per_s / of_step))


def _probe(study: Study, cell: Cell, run: str, config: TrainConfig) -> Probe:
    print(f"{cell.name}: probing", flush=True)
    machine = Machine.choose(
        config.device, config.precision, config.threads, config.batch_size, config.workers
    )
    return probe(
        run, study.train, study.test, os.path.join(cell.folder, FEATURES), machine,
        pool=study.judges.pool, layer=study.judges.layer, root=study.root, seed=cell.seed,
        baselines=cell.with_baselines, attentive=study.judges.attentive,
        label_counts=study.judges.label_counts, allow_overlap=study.judges.allow_overlap,
    )  # fmt: skip


def _score(encoder: str, measure: str, labels: int | None, top1: float) -> dict[str, Any]:
    return {"encoder": encoder, "measure": measure, "labels": labels, "top1": top1}


def _tuning(
    study: Study, tuning: FinetuneConfig, cell: Cell, run: str, config: TrainConfig, encoder: str
) -> FinetuneConfig:
    name = "classifier" if encoder == PRETRAINED else f"classifier-{UNTRAINED}"
    return dataclasses.replace(
        tuning, checkpoint=run, data=study.train, test=study.test, root=study.root,
        out=os.path.join(cell.folder, name), seed=cell.seed, untrained=encoder == UNTRAINED,
        device=config.device, precision=config.precision, threads=config.threads,
        workers=config.workers,
    )  # fmt: skip


def _summary(run: str) -> dict[str, Any]:
    """What pretraining cost and where it ended, from its log."""
    log = read_log(run)
    if not all("gflop" in line for line in log):
        raise SavimaeError(f"{shown(run)}: its log does not say what it cost")
    seconds = sum(line["gflop"] / line["gflop_per_s"] for line in log if line["gflop_per_s"])
    return {
        "epochs": log[-1]["epoch"],
        "flops": 1e9 * sum(line["gflop"] for line in log),
        "seconds": round(seconds, 1),
        "loss": log[-1]["loss"],
        "loss_salient": log[-1]["loss_salient"],
        "visible_tokens": log[-1]["visible_tokens"],
    }
