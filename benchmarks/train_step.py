"""One training step (forward, backward, AdamW), as a share of the machine's matrix product rate.

    python benchmarks/train_step.py [--model base] [--batch 2 8] [--steps 5] [--huggingface]

Every setting runs in a process of its own, which first and last times 2048-cubed products in the
same dtype on the same threads; the share is the step's FLOPs over the median of those. Medians over
the steps, warm-up apart. Clips are random; savi masks have the variable lengths that saliency
shares between 10 and 50 % give. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from hardware import hardware, versions

from savimae.model.config import model_config, step_flops
from savimae.model.videomae import VideoMAE, build_model
from savimae.samples.masking import MaskSpec, draw_decoded, draw_masks
from savimae.samples.randomness import sample_keys
from savimae.system.allocator import keep_memory

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def product_rates(dtype: torch.dtype, device: str, repeats: int = 8) -> list[float]:
    """FLOP/s of 2048-cubed products."""
    a, b = (torch.randn(2048, 2048, device=device).to(dtype) for _ in range(2))
    rates = []
    for index in range(repeats + 2):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        if index >= 2:
            rates.append(2 * 2048**3 / (time.perf_counter() - start))
    return rates


def masks_of(
    kind: str, batch: int, model: VideoMAE, decoder_ratio: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masked and decoded tokens of a batch, bool [B, N], at the published ratios."""
    shape = model.config
    spec = MaskSpec(kind, shape.time_steps, shape.grid_size, decoder_ratio=decoder_ratio)
    shares = np.linspace(0.1, 0.5, batch)[:, None]
    salient = np.random.default_rng(0).random((batch, spec.n_tokens)) < shares
    keys = sample_keys(0, 0, np.arange(batch))
    mask = draw_masks(spec, keys, salient)
    return torch.from_numpy(mask), torch.from_numpy(draw_decoded(spec, keys, mask))


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


def measure(options: argparse.Namespace) -> dict[str, object]:
    """One setting, in this process."""
    allocator = options.allocator == "keep" and keep_memory()
    torch.manual_seed(0)
    device, dtype = options.device, DTYPES[options.precision]
    before = product_rates(dtype, device)
    config = model_config(options.model)
    model = build_model(options.model).to(device)
    c = config
    clips = torch.randint(
        0, 256, (options.batch[0], c.num_frames, c.image_size, c.image_size, 3), dtype=torch.uint8
    ).to(device)
    mask, to_decode = (
        each.to(device)
        for each in masks_of(options.mask, options.batch[0], model, options.decoder_mask_ratio)
    )
    visible = (~mask).sum(1).tolist()
    if options.code == "huggingface":
        import transformers

        theirs = transformers.VideoMAEConfig(norm_pix_loss=True)  # base, decoder depth 4
        model = transformers.VideoMAEForPreTraining(theirs)  # type: ignore[assignment]
        pixels = (clips.permute(0, 1, 4, 2, 3) / 255 - 0.45) / 0.225
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    decoded = (config.n_tokens - np.array(visible)).tolist()

    def step() -> None:
        nonlocal decoded
        with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bf16"):
            if options.code == "huggingface":
                loss = model(pixels, mask).loss
            else:
                output = model(clips, mask, to_decode)
                decoded = output.decoded.sum(1).tolist()
                loss = output.loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

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
    flops = step_flops(config, visible, decoded)
    result = {
        "code": options.code,
        "precision": options.precision,
        "batch": options.batch[0],
        "mask": options.mask,
        "decoder_mask_ratio": options.decoder_mask_ratio,
        "allocator_keeps_memory": allocator,
        "visible_tokens": visible,
        "step_s": round(median, 3),
        "step_s_range": [round(min(times), 3), round(max(times), 3)],
        "clips_per_s": round(options.batch[0] / median, 2),
        "product_gflop_per_s": round(rate / 1e9, 1),
        "share_of_product_rate": round(flops / median / rate, 3),
        "peak_memory_gib": round(
            torch.cuda.max_memory_allocated() / 2**30
            if device == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            2,
        ),
    }
    if options.mask == "savi":
        result["masks"] = mask_share("savi", options.batch[0], median)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="base")
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--huggingface", action="store_true", help="time its base model as well")
    parser.add_argument("--only", help="JSON of one setting; used by this script itself")
    options = parser.parse_args()
    if options.only:
        for name, value in json.loads(options.only).items():
            setattr(options, name, value)
        json.dump(measure(options), sys.stdout)
        return
    common = {"code": "savimae", "mask": "tube", "allocator": "keep", "decoder_mask_ratio": 0.0}
    settings = [
        {**common, "precision": precision, "batch": [batch], "mask": mask}
        for precision in DTYPES
        for batch in options.batch
        for mask in ("tube", "savi")
    ]
    largest = [max(options.batch)]
    settings.append({**common, "precision": "bf16", "batch": largest, "allocator": "default"})
    settings.append({**common, "precision": "bf16", "batch": largest, "decoder_mask_ratio": 0.5})
    if options.huggingface:
        theirs = {**common, "code": "huggingface", "batch": largest}
        # As its users have it, and with our allocator setting.
        for allocator in ("default", "keep"):
            settings += [
                {**theirs, "precision": precision, "allocator": allocator} for precision in DTYPES
            ]
    results = []
    for setting in settings:
        arguments = ["--model", options.model, "--steps", str(options.steps)]
        arguments += ["--device", options.device, "--only", json.dumps(setting)]
        done = subprocess.run(
            [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True
        )
        results.append(json.loads(done.stdout))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    json.dump(
        {
            "hardware": {**hardware(), "threads": torch.get_num_threads()},
            "versions": versions("savimae", "torch", "numpy"),
            "masks of 64 clips, against the fastest step above": mask_share(
                "savi", 64, 64 / max(result["clips_per_s"] for result in results)
            ),
            "settings": results,
        },
        sys.stdout,
        indent=2,
    )
    print()


if __name__ == "__main__":
    main()
