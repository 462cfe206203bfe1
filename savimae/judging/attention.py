"""Pictures of what an encoder looks at: the attention that tokens receive, beside the saliency.

Legend: T frames of a clip, N tokens.

The clip is whole and unmasked, as for features, and from the middle of its video. Softmax weights
say what a head reads, not what the features are made of: values and later blocks have their part.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, NamedTuple

import numpy as np
import torch

from savimae.data.lists import Video, distinct_videos, find_readable_videos
from savimae.data.video import naming_video, open_video
from savimae.judging.load import ClipOptions, Machine, Trained, find_arrays, load_trained
from savimae.judging.pictures import (
    FRAMES_PER_S,
    draw_attention,
    write_animation,
    write_picture,
)
from savimae.samples.clips import Clip, ClipReader
from savimae.samples.multi_view import spread_clips
from savimae.system.errors import SavimaeError, UsageError, shown
from savimae.system.files import atomic_file, refuse_file, write_json
from savimae.system.progress import Progress
from savimae.training.loaded_weights import AS_TRAINED, ClipShape

KEY = np.uint64(0)  # breaks ties between tokens that change equally; nothing else is drawn


@dataclasses.dataclass(frozen=True)
class AttentionDrawings:
    """What is drawn of the attention."""

    layer: int | None = None  # from 1; None: the last block
    heads: bool = False  # each head in a row of its own, too
    n_videos: int = 4  # the first ones
    animation: str = "mp4"  # mp4, gif or none


class Agreement(NamedTuple):
    """How attention goes with saliency in one clip."""

    correlation: float | None  # Pearson's, over tokens; None where one of the two is constant
    on_salient: float  # share of all attention that salient tokens receive


@dataclasses.dataclass(frozen=True)
class DrawnAttention:
    """What was drawn."""

    written: list[str]
    records: list[dict[str, Any]]  # one a clip, as in attention.json


def draw_attention_maps(
    checkpoint: str,
    source: str,
    out: str,
    machine: Machine,
    clips: ClipOptions,
    drawings: AttentionDrawings,
    clip_shape: ClipShape = AS_TRAINED,
) -> DrawnAttention:
    """Draw the middle clip of each of the first videos: `OUT/Class/video.png` and an animation.

    `OUT/Class/video.npz` has the numbers, see `_write_numbers`; `OUT/attention.json` says for each
    clip how they go with the saliency.

    Args:
        checkpoint: of any layout.
        source: a list, a folder or a video.
        clip_shape: of clips of another shape than the model was trained with.

    Raises:
        UsageError: options that do not fit the model, or `out` is a file.
        SavimaeError: a checkpoint, video or array that cannot be read.
    """
    refuse_file(out)
    videos = distinct_videos(find_readable_videos(source, clips.root).videos)[: drawings.n_videos]
    cut = find_arrays(clips.saliency_root, videos)
    trained = load_trained(checkpoint, machine.device, clip_shape)
    depth = trained.config.encoder_depth
    if drawings.layer is not None and not 1 <= drawings.layer <= depth:
        raise UsageError(
            f"{shown(checkpoint)}: --layer {drawings.layer} is not one of the {depth} blocks of "
            "this encoder"
        )
    reader = trained.clip_reader(clips, cut)
    drawn = DrawnAttention([], [])
    with Progress("drawing", delay_s=1.0) as progress:
        for number, video in enumerate(videos):
            progress.show(number / len(videos), f"{number}/{len(videos)} clips")
            written, record = _draw(trained, reader, video, out, machine, drawings)
            drawn.written.extend(written)
            drawn.records.append(record)
    path = os.path.join(out, "attention.json")
    write_json(path, drawn.records)
    drawn.written.append(path)
    return drawn


def _draw(
    trained: Trained,
    reader: ClipReader,
    video: Video,
    out: str,
    machine: Machine,
    drawings: AttentionDrawings,
) -> tuple[list[str], dict[str, Any]]:
    """Draw the clip of one video: the files that were written, and its record."""
    shape = trained.config
    with naming_video(video.path):
        clip = reader.read(video, KEY, lambda n: spread_clips(n, reader.config, 1)[0])
    with torch.no_grad(), machine.autocast():
        pixels = torch.from_numpy(clip.pixels)[None].to(machine.device)
        received = trained.encoder.received_attention(pixels, drawings.layer)
    by_head = received[0].cpu().numpy()  # [heads, N]
    if not np.isfinite(by_head).all():
        raise SavimaeError(
            f"{shown(trained.path)}: its attention is no finite numbers; the weights are "
            "damaged, or try --precision fp32"
        )
    layer = drawings.layer or shape.encoder_depth
    mean = by_head.mean(0)
    found = agreement(mean, clip.saliency)
    n_heads = len(by_head)
    rows, maps = ["all heads" if drawings.heads else "attention"], [mean]
    if drawings.heads:
        rows += [f"head {number}" for number in range(1, n_heads + 1)]
        maps += [*by_head]
    title = (
        f"attention in block {layer} of {shape.encoder_depth}, mean of {n_heads} heads   "
        f"{clip.saliency.mean():.0%} of the tokens are salient and receive "
        f"{found.on_salient:.0%} of the attention"
    )
    picture, frames = draw_attention(
        clip, np.stack(maps) * shape.n_tokens, rows, shape.patch_size, shape.tubelet_size,
        shown(os.path.basename(video.name)), title,
    )  # fmt: skip
    base = os.path.join(out, video.name)
    written = [f"{base}.png"]
    write_picture(written[0], picture)
    if drawings.animation != "none":
        written.append(f"{base}.{drawings.animation}")
        rate = open_video(video.path).frames_per_s or FRAMES_PER_S
        write_animation(written[-1], frames, rate / reader.config.sampling_rate)
    written.append(f"{base}.npz")
    _write_numbers(written[-1], by_head, clip, layer, (shape.time_steps, *shape.grid))
    return written, {
        "video": video.path,
        "frames": clip.frame_indices.tolist(),
        "layer": layer,
        "salient_share": round(float(clip.saliency.mean()), 4),
        **_rounded(found),
        "heads": [_rounded(agreement(each, clip.saliency)) for each in by_head],
    }


def agreement(attention: np.ndarray, salient: np.ndarray) -> Agreement:
    """How attention float `[N]` that adds up to 1 goes with salient tokens bool `[N]`."""
    weights, chosen = attention.astype(np.float64), salient.astype(np.float64)
    on_salient = float(weights[salient].sum() / weights.sum())
    if np.ptp(weights) == 0 or np.ptp(chosen) == 0:
        return Agreement(None, on_salient)
    return Agreement(float(np.corrcoef(weights, chosen)[0, 1]), on_salient)


def _rounded(found: Agreement) -> dict[str, float | None]:
    correlation = None if found.correlation is None else round(found.correlation, 4)
    return {"correlation": correlation, "attention_on_salient": round(found.on_salient, 4)}


def _write_numbers(
    path: str, by_head: np.ndarray, clip: Clip, layer: int, grid: tuple[int, int, int]
) -> None:
    """Write what was drawn, for others.

    `attention` float32 `[heads, t_n, H_p, W_p]` (the sum of a head is 1), `salient` bool `[t_n,
    H_p, W_p]`, `frames` int64 `[T]` in the video, `layer`.
    """
    with atomic_file(path) as file:
        np.savez(
            file, attention=by_head.reshape(-1, *grid),
            salient=clip.saliency.reshape(grid),
            frames=clip.frame_indices, layer=np.array(layer),
        )  # fmt: skip
