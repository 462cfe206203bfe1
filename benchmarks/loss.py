"""The loss of a training step, forward and backward: the kernels against the same in torch.

    python benchmarks/loss.py > benchmarks/results/loss-YYYY-MM-DD.json

Tokens as of a batch of 32 clips of the tiny model at 112 px, or of 8 of base at 224: the loss takes
the same values in both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch
from hardware import hardware, versions

from savimae.kernels.token_loss import compile_token_kernels
from savimae.model.config import VideoMAEConfig
from savimae.model.loss import targets, token_losses
from savimae.system.allocator import keep_memory

N_TOKENS, N_PREDICTED = 12544, 11264


def seconds_of(way: str, dtype: torch.dtype, rounds: int) -> float:
    """The median time of a loss and its gradient."""
    config = VideoMAEConfig()
    tokens = torch.randint(0, 256, (N_TOKENS, config.token_values)).byte()
    wanted = torch.randperm(N_TOKENS)[:N_PREDICTED].sort().values
    taken = []
    for _ in range(rounds + 1):
        prediction = torch.randn(N_PREDICTED, config.token_values).to(dtype).requires_grad_()
        start = time.perf_counter()
        if way == "kernels":
            total, _ = token_losses(tokens, wanted, prediction, N_PREDICTED, config)
        else:
            errors = (prediction.float() - targets(tokens[wanted], True)).square()
            errors.detach().mean(1)
            total = errors.sum()
        total.backward()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    keep_memory()
    compile_token_kernels()
    readings = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            ours, plain = (seconds_of(way, dtype, options.rounds) for way in ("kernels", "torch"))
            readings.append({
                "threads": threads, "precision": name, "kernels_ms": round(1e3 * ours, 1),
                "torch_ms": round(1e3 * plain, 1), "ratio": round(plain / ours, 2),
            })  # fmt: skip
    result = {
        "hardware": hardware(), "versions": versions("savimae", "torch", "numba"),
        "tokens": N_PREDICTED, "readings": readings,
    }  # fmt: skip
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
