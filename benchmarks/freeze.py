"""A step of fine-tuning with none, half and all blocks frozen: its time and the memory it needs.

    python benchmarks/freeze.py --model tiny --input-size 112 --batch 8

Every setting runs in a process of its own, and the settings take turns, `--rounds` times. Times are
those that the processor spent on the step (forward, backward, AdamW) with one thread, so that
neighbours on the machine hardly count; medians over the steps, the first apart. Memory is the most
the process held, less what it held before the model was made. Clips are random; loading them is not
part of it. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from hardware import hardware, versions

from savimae.model.attention import FUSED
from savimae.model.classifier import VideoClassifier
from savimae.model.config import model_config
from savimae.system.allocator import keep_memory
from savimae.training.optimizer import FINETUNING_BETAS, parameter_groups

GIB = 2**20  # kilobytes, of ru_maxrss on Linux


def one(options: argparse.Namespace, frozen: int) -> dict[str, float]:
    """Steps of one setting."""
    keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = model_config(options.model, input_size=options.input_size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = VideoClassifier(shape, 10, head_scale=1.0).train()
    model.encoder.attention = FUSED
    model.encoder.freeze(frozen)
    learned = [each for each in model.named_parameters() if each[1].requires_grad]
    groups = parameter_groups(learned, shape.encoder_depth, 0.05, 0.75)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=FINETUNING_BETAS, fused=True)
    size = (options.batch, shape.num_frames, shape.input_size, shape.input_size, 3)
    clips = torch.randint(0, 256, size, dtype=torch.uint8)
    labels = torch.arange(options.batch) % 10
    seconds = []
    for _ in range(1 + options.steps):
        start = time.process_time()
        torch.nn.functional.cross_entropy(model(clips), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - start)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "step_cpu_s": statistics.median(seconds[1:]),
        "memory_gib": (most - before) / GIB,
        "learned_parameters_millions": sum(each.numel() for _, each in learned) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--input-size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frozen", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.frozen is not None:
        print(json.dumps(one(options, options.frozen)))
        return
    depth = model_config(options.model).encoder_depth
    settings = (0, depth // 2, depth)
    found: dict[int, list[dict[str, float]]] = {frozen: [] for frozen in settings}
    for _ in range(options.rounds):
        for frozen in settings:
            words = [sys.executable, __file__, *sys.argv[1:], "--frozen", str(frozen)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            found[frozen].append(json.loads(done.stdout))
    rows = []
    for frozen, readings in found.items():
        pairs = zip(found[0], readings, strict=True)
        median = {key: statistics.median(each[key] for each in readings) for key in readings[0]}
        rows.append({
            "frozen_blocks": frozen, "of": depth,
            **{key: round(value, 4) for key, value in median.items()},
            "speed_over_none": round(statistics.median(
                none["step_cpu_s"] / each["step_cpu_s"] for none, each in pairs
            ), 3),
            "memory_over_none": round(
                median["memory_gib"] / statistics.median(e["memory_gib"] for e in found[0]), 3
            ),
        })  # fmt: skip
    about = {name: getattr(options, name) for name in ("model", "input_size", "batch", "steps")}
    print(json.dumps(
        {**about, "rounds": options.rounds, "precision": "fp32", "threads": 1, "settings": rows,
         "hardware": hardware(), "versions": versions("torch")}, indent=1,
    ))  # fmt: skip


if __name__ == "__main__":
    main()
