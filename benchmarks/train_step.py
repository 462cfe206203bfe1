"""One training step (forward, backward, AdamW), as a share of the machine's matrix product rate.

    python benchmarks/train_step.py [--model base] [--input-size 224] [--batch 2 8] [--steps 5]
        [--precision bf16 fp32] [--rounds 3] [--before FOLDER] [--compile MODE] [--huggingface]

Every setting runs in a process of its own, which first and last times 2048-cubed products (on a GPU
8192-cubed ones) in the same dtype on the same threads; the share is the step's FLOPs over the
median of those. Medians over the steps, warm-up apart. The settings take turns, `--rounds` times,
since a shared machine has good and bad minutes: the ratios at the end are medians of ratios within
one round. Clips are random; savi masks have the variable lengths that saliency shares between 10
and 50 % give. `--before` times another commit beside this one, from its checkout. Prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

with contextlib.suppress(ImportError):  # an older commit knows no such thing
    from savimae.system.cores import wait_briefly

    wait_briefly()  # as the command does, before torch is imported
import torch

try:
    from savimae.model.config import VideoMAEConfig, model_config, step_flops
    from savimae.model.videomae import VideoMAE, build_model
    from savimae.samples.masking import MaskSpec, draw_decoded, draw_masks
    from savimae.samples.randomness import sample_keys
    from savimae.system.allocator import keep_memory
except ModuleNotFoundError:  # an older commit, where the package had no rooms
    from savimae.allocator import keep_memory
    from savimae.masking import MaskSpec, draw_masks
    from savimae.randomness import sample_keys

    from savimae.model import VideoMAE, VideoMAEConfig, build_model, model_config, step_flops

ROOT = str(Path(__file__).resolve().parents[1])
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def product_rates(dtype: torch.dtype, device: str, repeats: int = 8) -> list[float]:
    """FLOP/s of 2048-cubed products; of 8192-cubed ones on a GPU."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    rates = []
    for index in range(repeats + 2):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        if index >= 2:
            rates.append(2 * size**3 / (time.perf_counter() - start))
    return rates


def masks_of(
    kind: str, batch: int, model: VideoMAE, decoder_mask_ratio: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masked and decoded tokens of a batch, bool [B, N], at the published ratios."""
    shape = model.config
    spec = MaskSpec(kind, shape.time_steps, shape.grid)
    shares = np.linspace(0.1, 0.5, batch)[:, None]
    salient = np.random.default_rng(0).random((batch, spec.n_tokens)) < shares
    keys = sample_keys(0, 0, np.arange(batch))
    mask = decoded = draw_masks(spec, keys, salient)
    if decoder_mask_ratio:  # the older commit is not asked for it
        decoded = draw_decoded(
            dataclasses.replace(spec, decoder_mask_ratio=decoder_mask_ratio), keys, mask
        )
    return torch.from_numpy(mask), torch.from_numpy(decoded)


def mask_share(kind: str, batch: int, step_s: float) -> dict[str, float]:
    """Time to draw the masks of a batch, and its share of a step."""
    spec = MaskSpec(kind)
    salient = np.random.default_rng(0).random((batch, spec.n_tokens)) < 0.3
    times = []
    for epoch in range(20):
        start = time.perf_counter()
        draw_masks(spec, sample_keys(0, epoch, np.arange(batch)), salient)
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    return {"ms": round(1e3 * median, 3), "share_of_step_percent": round(100 * median / step_s, 4)}


def choose_attention(
    model: VideoMAE, mask: torch.Tensor, decoded: torch.Tensor, dtype: torch.dtype
) -> None:
    """As a run does when it begins."""
    from savimae.training.attention_choice import AttentionShape, choose_ways, use_ways

    c = model.config
    rows = (~mask | decoded).sum(1)
    shapes = {
        "encoder": AttentionShape((~mask).sum(1), c.encoder_dim, c.encoder_heads),
        "decoder": AttentionShape(rows, c.decoder_dim, c.decoder_heads),
    }
    with contextlib.redirect_stdout(sys.stderr):
        use_ways(model, choose_ways(shapes, dtype))


def size_of_input(options: argparse.Namespace) -> dict[str, int]:
    """The side of frames in pixels, by the name that the code which is timed has for it."""
    name = "input_size" if hasattr(VideoMAEConfig(), "input_size") else "image_size"
    return {name: options.input_size}


def make_step(options: argparse.Namespace) -> tuple[Callable[[], None], list[int], list[int]]:
    """One step as a function, and the visible and the decoded tokens of its clips."""
    torch.manual_seed(0)
    device = options.device
    model = build_model(options.model, **size_of_input(options)).to(device)
    c = model.config
    size = (options.batch[0], c.num_frames, options.input_size, options.input_size, 3)
    clips = torch.randint(0, 256, size, dtype=torch.uint8).to(device)
    masks = masks_of(options.mask, options.batch[0], model, options.decoder_mask_ratio)
    mask, decoded = (each.to(device) for each in masks)
    if options.code == "savimae" and device == "cpu":
        choose_attention(model, mask, decoded, DTYPES[options.precision])
        if options.compile:
            for block in (*model.encoder.blocks, *model.decoder.blocks):
                block.compile(mode=options.compile, dynamic=True)
    if options.code == "huggingface":
        import transformers

        theirs = transformers.VideoMAEConfig(
            image_size=c.input_size, norm_pix_loss=True,
            hidden_size=c.encoder_dim, num_hidden_layers=c.encoder_depth,
            num_attention_heads=c.encoder_heads, intermediate_size=4 * c.encoder_dim,
            decoder_hidden_size=c.decoder_dim, decoder_num_hidden_layers=c.decoder_depth,
            decoder_num_attention_heads=c.decoder_heads,
            decoder_intermediate_size=4 * c.decoder_dim,
        )  # fmt: skip
        their_model = transformers.VideoMAEForPreTraining(theirs).to(device)
        pixels = (clips.permute(0, 1, 4, 2, 3) / 255 - 0.45) / 0.225
    trained = their_model if options.code == "huggingface" else model
    n_values = int(decoded.sum()) * c.token_values
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)

    def loss() -> torch.Tensor:
        if options.code == "huggingface":
            return their_model(pixels, mask).loss
        if hasattr(model, "losses"):
            return model.losses(clips, mask, decoded)[0] / n_values
        return model(clips, mask).loss  # an older commit

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bf16"):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, (~mask).sum(1).tolist(), decoded.sum(1).tolist()


def measure(options: argparse.Namespace) -> dict[str, object]:
    """One setting, in this process."""
    allocator = options.allocator == "keep" and keep_memory()
    device, dtype = options.device, DTYPES[options.precision]
    before = product_rates(dtype, device)
    step, visible, decoded = make_step(options)
    times = []
    for index in range(options.steps + 2):
        synchronize(device)
        start = time.perf_counter()
        step()
        synchronize(device)
        if index >= 2:
            times.append(time.perf_counter() - start)
    rate = statistics.median(before + product_rates(dtype, device))
    median = statistics.median(times)
    config = model_config(options.model, **size_of_input(options))
    flops = step_flops(config, visible, decoded)
    peak = (
        torch.cuda.max_memory_allocated() / 2**30
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )
    return {
        "code": options.code,
        "precision": options.precision,
        "batch": options.batch[0],
        "mask": options.mask,
        "decoder_mask_ratio": options.decoder_mask_ratio,
        "allocator_keeps_memory": allocator,
        "compile": options.compile,
        "visible_tokens": visible,
        "step_s": round(median, 3),
        "step_s_range": [round(min(times), 3), round(max(times), 3)],
        "clips_per_s": round(options.batch[0] / median, 3),
        "product_gflop_per_s": round(rate / 1e9, 1),
        "share_of_product_rate": round(flops / median / rate, 3),
        "peak_memory_gib": round(peak, 2),
    }


def settings_of(options: argparse.Namespace, is_first: bool) -> list[dict[str, object]]:
    """What is measured, each by its options; in the first round also what no ratio is made of."""
    common = {
        "code": "savimae", "mask": "tube", "allocator": "keep", "decoder_mask_ratio": 0.0,
        "compile": None,
    }  # fmt: skip
    settings: list[dict[str, object]] = [
        {**common, "precision": precision, "batch": [batch], "mask": mask}
        for precision in options.precision
        for batch in options.batch
        for mask in ("tube", "savi")
    ]
    for precision in options.precision:
        largest = {**common, "precision": precision, "batch": [max(options.batch)]}
        if is_first:
            settings.append({**largest, "allocator": "default"})
            settings.append({**largest, "decoder_mask_ratio": 0.5})
        settings += [{**largest, "compile": mode} for mode in options.compile_modes]
        if options.before:
            settings += [{**largest, "code": "before", "mask": mask} for mask in ("tube", "savi")]
        if options.huggingface:  # as its users have it, and with our allocator setting
            theirs = {**largest, "code": "huggingface"}
            settings += [{**theirs, "allocator": allocator} for allocator in ("default", "keep")]
    return settings


def run(setting: dict[str, object], options: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process of its own."""
    arguments = ["--model", options.model, "--steps", str(options.steps)]
    if options.input_size is not None:
        arguments += ["--input-size", str(options.input_size)]
    arguments += ["--device", options.device, "--only", json.dumps(setting)]
    folder = options.before if setting["code"] == "before" else ROOT
    done = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "PYTHONPATH": folder},
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def ratios(rounds: list[list[dict[str, Any]]]) -> dict[str, object]:
    """Medians over the rounds of what the targets are about, at the largest batch."""
    found: dict[str, list[float]] = {}
    for results in rounds:
        largest = max(result["batch"] for result in results)
        by_key = {
            (r["code"], r["mask"], r["precision"], r["allocator_keeps_memory"]): r
            for r in results
            if r["batch"] == largest and not r["decoder_mask_ratio"] and not r["compile"]
        }
        for precision in {key[2] for key in by_key}:
            ours = {mask: by_key["savimae", mask, precision, True] for mask in ("tube", "savi")}
            shares = {mask: each["share_of_product_rate"] for mask, each in ours.items()}
            rows = {
                "tube, share of product rate": shares["tube"],
                "share, savi over tube": shares["savi"] / shares["tube"],
            }
            for mask, each in ours.items():
                before = by_key.get(("before", mask, precision, True))
                if before:
                    ratio = each["clips_per_s"] / before["clips_per_s"]
                    rows[f"{mask}, clips/s over those before"] = ratio
            for compiled in (r for r in results if r["compile"] and r["precision"] == precision):
                ratio = compiled["clips_per_s"] / ours["tube"]["clips_per_s"]
                rows[f"tube, clips/s compiled ({compiled['compile']}) over plain"] = ratio
            for keeps, words in ((True, "with our allocator setting"), (False, "as it comes")):
                theirs = by_key.get(("huggingface", "tube", precision, keeps))
                if theirs:
                    ratio = ours["tube"]["clips_per_s"] / theirs["clips_per_s"]
                    rows[f"tube, clips/s over Hugging Face {words}"] = ratio
            for name, value in rows.items():
                found.setdefault(f"{precision}: {name}", []).append(value)
    return {
        name: {"median": round(statistics.median(each), 3), "rounds": [round(x, 3) for x in each]}
        for name, each in sorted(found.items())
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="base")
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--precision", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--before", metavar="FOLDER", help="checkout of a commit to time as well")
    parser.add_argument(
        "--compile", dest="compile_modes", nargs="+", default=[], metavar="MODE",
        help="time torch.compile as well: default, max-autotune",
    )  # fmt: skip
    parser.add_argument("--huggingface", action="store_true", help="time its model as well")
    parser.add_argument("--only", help="JSON of one setting; used by this script itself")
    options = parser.parse_args()
    if options.only:
        options.compile = None
        for name, value in json.loads(options.only).items():
            setattr(options, name, value)
        json.dump(measure(options), sys.stdout)
        return
    from hardware import hardware, versions  # not for an older commit, which has it elsewhere

    rounds: list[list[dict[str, Any]]] = []
    for number in range(options.rounds):
        rounds.append([])
        for setting in settings_of(options, number == 0):
            rounds[-1].append(run(setting, options))
            print(json.dumps(rounds[-1][-1]), file=sys.stderr, flush=True)
    best = max(result["clips_per_s"] for results in rounds for result in results)
    json.dump(
        {
            "hardware": {
                **hardware(),
                "threads": torch.get_num_threads(),
                **({"gpu": torch.cuda.get_device_name()} if options.device == "cuda" else {}),
            },
            "versions": versions("savimae", "torch", "numpy"),
            "model": options.model,
            "input_size": options.input_size,
            "masks of 64 clips, against the fastest step": mask_share("savi", 64, 64 / best),
            "ratios": ratios(rounds),
            "rounds": rounds,
        },
        sys.stdout,
        indent=2,
    )
    print()


if __name__ == "__main__":
    main()
