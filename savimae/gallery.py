"""Pictures of what a model makes of hidden patches, and how near that comes to the truth."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from savimae.errors import SavimaeError, UsageError, shown
from savimae.evaluate import mask_words, read_clip
from savimae.figures import FRAMES_PER_S, draw_reconstruction, write_animation, write_picture
from savimae.files import refuse_file, write_json
from savimae.lists import distinct_videos
from savimae.masking import draw_masks
from savimae.pretrained import (
    Machine,
    MaskOptions,
    find_arrays,
    find_readable_videos,
    load_pretrained,
)
from savimae.progress import Progress
from savimae.randomness import sample_keys
from savimae.reconstruct import quality, reconstruct
from savimae.video import open_video

FROM = {  # how normalised predictions came back to pixels, as the pictures say it
    "visible": "mean and contrast from visible patches nearby",
    "target": "mean and contrast from the hidden pixels themselves: they leak the answer",
}


@dataclasses.dataclass(frozen=True)
class Gallery:
    """What was drawn."""

    written: list[str]
    records: list[dict[str, Any]]  # one a clip, as in reconstruction.json


def draw_reconstructions(
    checkpoint: str,
    source: str,
    out: str,
    machine: Machine,
    masks: MaskOptions,
    *,
    statistics: str | None = None,
    n_videos: int = 4,
    animation: str = "mp4",
    seed: int = 0,
    root: str | None = None,
    sampling_rate: int | None = None,
    saliency_root: str | None = None,
    saliency_threshold: float | None = None,
) -> Gallery:
    """Draw one clip of each of the first videos: `OUT/Class/video.png` and an animation beside it.

    `OUT/reconstruction.json` has, for each clip, its frames, mask, loss, and PSNR and SSIM of the
    hidden pixels: of the prediction, and of the means alone that it was put upon.

    Args:
        checkpoint: of any layout.
        source: a list, a folder or a video.
        statistics: "visible" (None: this one) or "target"; see `reconstruct`.
        animation: "mp4", "gif" or "none".
        saliency_root: arrays of `savimae preprocess`; else saliency is computed from the clips.

    Raises:
        UsageError: options that do not fit the model, or `out` is a file.
        SavimaeError: a checkpoint, video or array that cannot be read.
    """
    refuse_file(out)
    videos = distinct_videos(find_readable_videos(source, root).videos)[:n_videos]
    cut = find_arrays(saliency_root, videos)
    pretrained = load_pretrained(checkpoint, machine.device)
    shape = pretrained.model.config
    try:
        reader = pretrained.reader(sampling_rate, saliency_root, saliency_threshold, cut)
        spec = pretrained.masks(masks)
    except ValueError as error:
        raise UsageError(f"{shown(checkpoint)}: {error}") from None
    if statistics is not None and not shape.norm_target:
        raise UsageError(
            f"{shown(checkpoint)} predicts pixels as they are, so --statistics has no effect; "
            "leave it out"
        )
    statistics = statistics or "visible"
    gallery = Gallery([], [])
    with Progress("drawing", delay_s=1.0) as progress:
        for index, video in enumerate(videos):
            progress.show(index / len(videos), f"{index}/{len(videos)} clips")
            keys = sample_keys(seed, 0, np.array([index]))
            clip = read_clip(reader, video, keys[0])
            mask = draw_masks(spec, keys, clip.saliency[None])[0]
            with machine.autocast():
                result = reconstruct(pretrained.model, clip.pixels, mask, statistics)
            if not np.isfinite(result.pixels).all():
                raise SavimaeError(
                    f"{shown(checkpoint)}: its predictions are no finite numbers; the weights are "
                    "damaged, or try --precision fp32"
                )
            original = clip.pixels.astype(np.float32) / 255
            ours = quality(original, result.pixels, result.masked)
            means = quality(original, result.filled, result.masked)
            gallery.records.append({
                "video": video.path,
                "frames": clip.frame_indices.tolist(),
                "mask": mask_words(spec),
                "masked_share": round(float(mask.mean()), 4),
                "loss": round(result.loss, 4),
                "statistics": statistics if shape.norm_target else "none needed",
                "psnr_db": round(ours.psnr_db, 3),
                "ssim": round(ours.ssim, 4),
                "psnr_db_of_means": round(means.psnr_db, 3),
                "ssim_of_means": round(means.ssim, 4),
            })  # fmt: skip
            how = FROM[statistics] if shape.norm_target else "pixels as predicted"
            name = shown(os.path.basename(video.name))
            title = (
                f"{mask_words(spec)} mask, {mask.mean():.0%} hidden   "
                f"loss {result.loss:.3f}, PSNR {ours.psnr_db:.1f} dB (means alone "
                f"{means.psnr_db:.1f})   {how}"
            )
            picture, frames = draw_reconstruction(
                clip,
                result.pixels,
                result.masked,
                shape.patch_size,
                shape.tubelet_size,
                name,
                title,
            )
            target = os.path.join(out, f"{video.name}.png")
            write_picture(target, picture)
            gallery.written.append(target)
            if animation != "none":
                target = os.path.join(out, f"{video.name}.{animation}")
                rate = open_video(video.path).frames_per_s or FRAMES_PER_S
                write_animation(target, frames, rate / reader.config.sampling_rate)
                gallery.written.append(target)
    target = os.path.join(out, "reconstruction.json")
    write_json(target, gallery.records)
    gallery.written.append(target)
    return gallery
