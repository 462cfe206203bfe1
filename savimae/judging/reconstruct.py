"""Pictures of what a model makes of hidden patches, and how near that comes to the truth.

Legend: T frames, t tubelet size, P patch size, H, W sides of the input, N tokens of a clip, M
masked ones.

With normalised targets the model predicts a token's pixels up to their mean and deviation. The
picture says whose mean and deviation brought them back to pixels: those of visible tokens nearby
("visible"), or those of the hidden pixels themselves ("target"), which is what is commonly shown
and which leaks the answer.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from savimae.data.lists import Video, distinct_videos, find_readable_videos
from savimae.data.video import open_video
from savimae.judging.evaluate import mask_words
from savimae.judging.load import (
    ClipOptions,
    Machine,
    MaskedClips,
    MaskOptions,
    Pretrained,
    find_arrays,
    load_pretrained,
)
from savimae.judging.names import short_names
from savimae.judging.pictures import (
    FRAMES_PER_S,
    ROWS,
    Block,
    Verdict,
    above,
    as_pixels,
    blanked,
    draw_blocks,
    draw_reconstruction,
    draw_side_by_side,
    gain_words,
    write_animation,
    write_picture,
)
from savimae.model.config import VideoMAEConfig
from savimae.model.loss import TARGET_EPS
from savimae.model.videomae import VideoMAE
from savimae.samples.clips import Clip
from savimae.samples.masking import without_padding
from savimae.system.errors import SavimaeError, UsageError, shown
from savimae.system.files import refuse_file, write_json
from savimae.system.progress import Progress

Picture = tuple[Image.Image, list[np.ndarray]]  # a picture, and the frames of an animation
FROM = {  # how normalised predictions came back to pixels, as the pictures say it
    "visible": "mean and contrast from visible patches nearby",
    "target": "mean and contrast from the hidden pixels themselves: they leak the answer",
}
STATISTICS = ("visible", "target")
VIDEOS, SHEET_VIDEOS = 4, 12  # of a list, unless someone says how many
EXACT_DB = 54.15  # 20 log10(2 * 255): errors of half a gray level, which 8 bits cannot show
NEAREST = 4  # visible tokens whose statistics a hidden one is given


@dataclasses.dataclass(frozen=True)
class Drawings:
    """What is drawn of the reconstructions."""

    n_videos: int | None = None  # the first ones; None: 4, or 12 of a sheet
    animation: str | None = None  # mp4, gif or none; None: mp4. A sheet has none
    statistics: str | None = None  # of STATISTICS; None: visible
    sheet: bool = False  # many videos in one picture, instead of one for each

    def __post_init__(self) -> None:
        if self.sheet and self.animation is not None:
            raise ValueError(
                "--animation is for pictures of single videos; --sheet draws none, leave one out"
            )


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What was drawn."""

    written: list[str]
    records: list[dict[str, Any]]  # one a clip and checkpoint, as in reconstruction.json


class Model(NamedTuple):
    """A model, and what pictures call it."""

    name: str
    pretrained: Pretrained


@dataclasses.dataclass(frozen=True)
class Group:
    """Models with one grid of tokens and as many channels: they get the same clips and masks.

    These are as the first of them was trained, unless the options say otherwise.
    """

    clips: MaskedClips
    models: list[Model]


class Made(NamedTuple):
    """What the models of a group made of a clip."""

    group: Group
    clip: Clip
    mask: np.ndarray  # bool [N], True = masked
    results: list[Reconstruction]  # of each model
    records: list[dict[str, Any]]  # of each model, as in reconstruction.json


def draw_reconstructions(
    checkpoints: str | Sequence[str],
    source: str,
    out: str,
    machine: Machine,
    masks: MaskOptions,
    clips: ClipOptions,
    drawings: Drawings,
) -> Drawn:
    """Draw one clip of each of the first videos: `OUT/Class/video.png` and an animation beside it.

    Of several checkpoints with the predictions of each; as a sheet, `OUT/sheet.png` has all videos.
    `OUT/reconstruction.json` has, for each clip and checkpoint, its frames, mask, loss, and PSNR
    and SSIM of the hidden pixels: of the prediction, and of the means alone that it was put upon.

    Args:
        checkpoints: one or several, of any layout.
        source: a list, a folder or a video.

    Raises:
        UsageError: options that do not fit the models, or `out` is a file.
        SavimaeError: a checkpoint, video or array that cannot be read.
    """
    refuse_file(out)
    paths = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
    names = short_names(paths)
    n_videos = drawings.n_videos or (SHEET_VIDEOS if drawings.sheet else VIDEOS)
    videos = distinct_videos(find_readable_videos(source, clips.root).videos)[:n_videos]
    cut = find_arrays(clips.saliency_root, videos)
    groups: list[Group] = []
    for name, path in zip(names, paths, strict=True):
        model = Model(name, load_pretrained(path, machine.device))
        others = [group for group in groups if _grid(group.models[0]) == _grid(model)]
        if others:
            others[0].models.append(model)
        else:
            groups.append(Group(model.pretrained.masked_clips(videos, clips, masks, cut), [model]))
    if drawings.statistics is not None and not any(map(_is_normalized, groups)):
        raise UsageError(
            f"{shown(paths[0])} predicts pixels as they are, so --statistics has no effect; "
            "leave it out"
        )
    drawn = Drawn([], [])
    blocks: list[Block] = []
    with Progress("drawing", delay_s=1.0) as progress:
        for index, video in enumerate(videos):
            progress.show(index / len(videos), f"{index}/{len(videos)} clips")
            made = [_reconstruct(group, index, machine, drawings) for group in groups]
            drawn.records.extend(record for each in made for record in each.records)
            if drawings.sheet:
                blocks.append(_block(video, made))
            else:
                drawn.written.extend(_draw(video, made, out, drawings))
    if drawings.sheet:
        path = os.path.join(out, "sheet.png")
        write_picture(path, _sheet(blocks, groups, drawn.records, drawings))
        drawn.written.append(path)
    path = os.path.join(out, "reconstruction.json")
    write_json(path, drawn.records)
    drawn.written.append(path)
    return drawn


def _grid(model: Model) -> tuple[object, ...]:
    """What must be the same for two models to get the same clips and masks."""
    shape = model.pretrained.config
    return (
        *shape.sides, shape.num_frames, shape.patch_size, shape.tubelet_size, shape.channels
    )  # fmt: skip


def _is_of_salient(model: Model) -> bool:
    """Whether only what it makes of salient tokens was trained."""
    return model.pretrained.settings.get("decode") == "salient"


def _is_normalized(group: Group) -> bool:
    return any(model.pretrained.config.norm_target for model in group.models)


def _reconstruct(group: Group, index: int, machine: Machine, drawings: Drawings) -> Made:
    """What the models of a group make of the clip of one video."""
    clip, mask = group.clips.read(index, 0)
    made = Made(group, clip, mask, [], [])
    original = clip.pixels.astype(np.float32) / 255
    hidden = without_padding(mask[None], None if clip.padding is None else clip.padding[None])[0]
    salient = clip.saliency[hidden]
    means: Quality | None = None
    for _, pretrained in group.models:
        is_normalized = pretrained.config.norm_target
        statistics = (drawings.statistics if is_normalized else None) or "visible"
        with machine.autocast():
            result = reconstruct(pretrained.model, clip.pixels, mask, statistics, clip.padding)
        if not np.isfinite(result.pixels).all():
            raise SavimaeError(
                f"{shown(pretrained.path)}: its predictions are no finite numbers; the weights are "
                "damaged, or try --precision fp32"
            )
        ours = quality(original, result.pixels, result.masked)
        means = means or quality(original, result.filled, result.masked)
        made.results.append(result)
        made.records.append({
            "video": group.clips.videos[index].path,
            "checkpoint": pretrained.path,
            "frames": clip.frame_indices.tolist(),
            "mask": mask_words(group.clips.masks),
            "masked_share": round(float(mask.mean()), 4),
            "loss": round(result.loss, 4),
            "loss_salient": _mean(result.token_losses[salient]),
            "loss_other": _mean(result.token_losses[~salient]),
            "statistics": statistics if is_normalized else "none needed",
            "psnr_db": round(ours.psnr_db, 3),
            "ssim": round(ours.ssim, 4),
            "psnr_db_of_means": round(means.psnr_db, 3),
            "ssim_of_means": round(means.ssim, 4),
        })  # fmt: skip
    return made


class ReconstructedClip(NamedTuple):
    """What one model made of a masked clip."""

    clip: Clip
    result: Reconstruction
    title: str  # mask, loss and error in words
    record: dict[str, Any]  # as in reconstruction.json


def reconstruct_clip(
    pretrained: Pretrained, clips: MaskedClips, index: int, machine: Machine
) -> ReconstructedClip:
    """Reconstruct the clip of one video, with statistics of visible tokens.

    Raises:
        SavimaeError: a video or array that cannot be read, or predictions that are no finite
            numbers.
    """
    group, drawings = Group(clips, [Model("", pretrained)]), Drawings()
    made = _reconstruct(group, index, machine, drawings)
    return ReconstructedClip(
        made.clip, made.results[0], _title_alone(made, drawings), made.records[0]
    )


def _mean(losses: np.ndarray) -> float | None:
    return round(float(losses.mean(dtype=np.float64)), 4) if len(losses) else None


def _draw(video: Video, made: Sequence[Made], out: str, drawings: Drawings) -> list[str]:
    """Draw the clip of one video, groups below each other: the files that were written."""
    is_alone = sum(len(each.results) for each in made) == 1
    drawn = [(_draw_alone if is_alone else _draw_group)(video, each, drawings) for each in made]
    picture, frames = drawn[0]
    for below, more in drawn[1:]:
        picture = above(picture, below)
        n = max(len(frames), len(more))
        frames = [
            np.asarray(
                above(*(Image.fromarray(each[i * len(each) // n]) for each in (frames, more)))
            )
            for i in range(n)
        ]
    written = [os.path.join(out, f"{video.name}.png")]
    write_picture(written[0], picture)
    animation = drawings.animation or "mp4"
    if animation != "none":
        written.append(os.path.join(out, f"{video.name}.{animation}"))
        rate = open_video(video.path).frames_per_s or FRAMES_PER_S
        apart = made[0].group.clips.reader.config.sampling_rate
        write_animation(written[1], frames, rate / apart)
    return written


def _draw_alone(video: Video, made: Made, drawings: Drawings) -> Picture:
    """The picture and the animation of one model."""
    (result,) = made.results
    shape = made.group.models[0].pretrained.config
    return draw_reconstruction(
        made.clip, result.pixels, result.masked, shape.patch_size, shape.tubelet_size,
        shown(os.path.basename(video.name)), _title_alone(made, drawings),
    )  # fmt: skip


def _title_alone(made: Made, drawings: Drawings) -> str:
    (record,) = made.records
    return (
        f"{_mask_title(made)}   {_loss_words(record)}, PSNR {record['psnr_db']:.1f} dB (means "
        f"alone {record['psnr_db_of_means']:.1f})   {_statistics_words(made.group, drawings)}"
    )


def _draw_group(video: Video, made: Made, drawings: Drawings) -> Picture:
    """The picture and the animation of models beside each other."""
    shape = made.group.models[0].pretrained.config
    title = (
        f"{_mask_title(made)}   PSNR of means alone {made.records[0]['psnr_db_of_means']:.1f} dB   "
        f"{_statistics_words(made.group, drawings)}"
    )
    captions = [
        f"{model.name}\n{_loss_words(record)}\nPSNR {record['psnr_db']:.1f} dB"
        + ("\ntrained on salient alone" if _is_of_salient(model) else "")
        for model, record in zip(made.group.models, made.records, strict=True)
    ]
    return draw_side_by_side(
        made.clip, made.results[0].masked, [result.pixels for result in made.results], captions,
        shape.patch_size, shape.tubelet_size, shown(os.path.basename(video.name)), title,
    )  # fmt: skip


def _mask_title(made: Made) -> str:
    return f"{mask_words(made.group.clips.masks)} mask, {made.mask.mean():.0%} hidden"


def _loss_words(record: Mapping[str, Any]) -> str:
    salient = record["loss_salient"]
    of_salient = "" if salient is None else f" (salient {salient:.3f})"
    return f"loss {record['loss']:.3f}{of_salient}"


def _statistics_words(group: Group, drawings: Drawings) -> str:
    """How predictions came back to pixels."""
    plain = [m.name for m in group.models if not m.pretrained.config.norm_target]
    if len(plain) == len(group.models):
        return "pixels as predicted"
    those = f"; of {', '.join(plain)} pixels as predicted" if plain else ""
    return FROM[drawings.statistics or "visible"] + those


# ---------------------------------------------------------------------------------- the sheet


def _block(video: Video, made: Sequence[Made]) -> Block:
    """The middle frame of a video's clip, and what the models made of it."""
    is_alone = sum(len(each.results) for each in made) == 1
    panels: list[np.ndarray] = []
    verdicts: dict[int, Verdict] = {}
    for each in made:
        middle = len(each.clip.pixels) // 2
        frame, masked = each.clip.pixels[middle], each.results[0].masked[middle]
        panels += [frame, blanked(frame, masked)]
        for result, record in zip(each.results, each.records, strict=True):
            both = as_pixels(result.pixels[middle])
            words = _loss_words(record)
            verdicts[len(panels)] = Verdict(words, record["psnr_db"], _gain_db(record))
            panels += [blanked(both, ~masked), both] if is_alone else [both]
    return Block(shown(os.path.basename(video.name)), panels, verdicts)


def _gain_db(record: Mapping[str, Any]) -> float:
    """How far a prediction's PSNR lies above that of means alone, which flat patches make exact."""
    return min(record["psnr_db"], EXACT_DB) - min(record["psnr_db_of_means"], EXACT_DB)


def _sheet(
    blocks: Sequence[Block],
    groups: Sequence[Group],
    records: Sequence[Mapping[str, Any]],
    drawings: Drawings,
) -> Image.Image:
    """All videos on one page, with what can be said of all of them."""
    models = [model for group in groups for model in group.models]
    captions: list[str] = []
    for group in groups:
        captions += ROWS[0], ROWS[2]
        for model in group.models:
            captions += ROWS[3:] if len(models) == 1 else [model.name]
    masks = dict.fromkeys(mask_words(group.clips.masks) for group in groups)
    words = dict.fromkeys(_statistics_words(group, drawings) for group in groups)
    names = models[0].name if len(models) == 1 else f"{len(models)} checkpoints"
    title = f"{names}: middle frames   {' and '.join(masks)} mask   {'; '.join(words)}"
    averages = []
    for number, model in enumerate(models):
        of_model = records[number :: len(models)]
        gain = sum(map(_gain_db, of_model)) / len(of_model)
        loss = sum(record["loss"] for record in of_model) / len(of_model)
        averages.append(f"{model.name}: loss {loss:.3f}, {gain_words(gain)}")
    notes = [
        "Bars: how far the PSNR of all hidden pixels of the clip (in brackets) lies above (blue) "
        "or below (orange) that of means alone: hidden patches of nothing but their mean color.",
        f"On average, {'; '.join(averages)}.",
    ]
    on_salient = [model.name for model in models if _is_of_salient(model)]
    if on_salient:
        notes.append(
            f"Trained on salient patches alone: {', '.join(on_salient)}. What is made of others "
            "counts here as well."
        )
    return draw_blocks(blocks, title, captions, notes)


# ----------------------------------------------------------------------------- back to pixels


class Reconstruction(NamedTuple):
    """A clip and what the model made of its hidden tokens."""

    pixels: np.ndarray  # float32 [T, H, W, C] in 0 to 1; the clip's own where it was visible
    filled: (
        np.ndarray
    )  # the same with only a mean in each hidden token: what comes without any model
    masked: np.ndarray  # bool [T, H, W], True = hidden from the encoder, and of the video
    loss: float  # mean squared error of the prediction, as in training
    token_losses: np.ndarray  # float32 [M], of each masked token


def reconstruct(
    model: VideoMAE,
    clip: np.ndarray,
    mask: np.ndarray,
    statistics: str = "visible",
    padding: np.ndarray | None = None,
) -> Reconstruction:
    """Reconstruct the masked tokens of one clip.

    Args:
        model: in evaluation mode, on any device.
        clip: uint8 `[T, H, W, C]`.
        mask: bool `[N]`, True = masked.
        statistics: whose mean and deviation the pixels get, "visible" or "target".
        padding: bool `[N]`, tokens beside the video, which stay as they are; None: there are none.

    Raises:
        ValueError: other statistics, or a clip or mask that does not fit the model.
    """
    if statistics not in STATISTICS:
        raise ValueError(f"statistics {statistics!r} is not one of {', '.join(STATISTICS)}")
    device = model.mask_token.device
    clips = torch.from_numpy(clip)[None].to(device)
    masked = torch.from_numpy(mask)
    hidden = torch.from_numpy(
        without_padding(mask[None], None if padding is None else padding[None])[0]
    )
    visible = ~masked if padding is None else ~masked & torch.from_numpy(~padding)
    if not visible.any():  # the clip shows nothing else
        visible = ~masked
    with torch.no_grad():
        output = model(clips, masked[None].to(device), hidden[None].to(device))
        tokens = model.patchify(clips).cpu().float() / 255  # [N, t*P*P*C]
    prediction = output.prediction.cpu().unflatten(1, (-1, model.config.channels))  # [M, t*P*P, C]
    mean, deviation = _statistics(tokens, hidden, visible, model.config, statistics)
    if model.config.norm_target:
        prediction = prediction * deviation + mean
    filled = tokens.clone()
    filled[hidden] = mean.expand_as(prediction).flatten(1)
    tokens[hidden] = prediction.clamp(0, 1).flatten(1)
    shown = hidden[:, None].expand(-1, model.config.token_values)
    return Reconstruction(
        unpatchify(tokens, model.config).numpy(),
        unpatchify(filled, model.config).numpy(),
        unpatchify(shown, model.config)[..., 0].numpy(),
        float(output.loss),
        output.token_losses.cpu().numpy(),
    )


class Quality(NamedTuple):
    """How near pixels are to the original, where they were hidden."""

    psnr_db: float  # peak signal-to-noise ratio
    ssim: float  # structural similarity (Wang et al., 2004), -1 to 1


def quality(original: np.ndarray, pixels: np.ndarray, masked: np.ndarray) -> Quality:
    """Compare two clips float `[T, H, W, C]` in 0 to 1 where `masked` bool `[T, H, W]` is true.

    SSIM is computed frame by frame, with the visible pixels around, and averaged over hidden ones.
    """
    psnr = peak_signal_noise_ratio(original[masked], pixels[masked], data_range=1.0)
    maps = [
        structural_similarity(a, b, channel_axis=-1, data_range=1.0, full=True)[1].mean(-1)
        for a, b in zip(original, pixels, strict=True)
    ]
    return Quality(float(psnr), float(np.stack(maps)[masked].mean()))


def _statistics(
    tokens: Tensor, hidden: Tensor, visible: Tensor, config: VideoMAEConfig, statistics: str
) -> tuple[Tensor, Tensor]:
    """Mean and deviation for each hidden token, float32 `[M, 1, C]` each."""
    variance, mean = torch.var_mean(tokens.unflatten(1, (-1, config.channels)), dim=1, keepdim=True)
    deviation = variance.sqrt() + TARGET_EPS
    if statistics == "target":
        return mean[hidden], deviation[hidden]
    # Places (time, row, column) of tokens; the nearest visible ones, weighted by 1 / distance.
    rows, columns = config.grid
    index = torch.arange(config.n_tokens)
    of_time, within = index // (rows * columns), index % (rows * columns)
    places = torch.stack([of_time, within // columns, within % columns], 1).float()
    distances = torch.cdist(places[hidden], places[visible])  # [M, V]
    nearest = distances.topk(min(NEAREST, distances.shape[1]), largest=False)
    weights = 1 / nearest.values
    weights = (weights / weights.sum(1, keepdim=True))[:, :, None, None]  # [M, nearest, 1, 1]
    return tuple(
        (values[visible][nearest.indices] * weights).sum(1) for values in (mean, deviation)
    )  # type: ignore[return-value]


def unpatchify(tokens: Tensor, config: VideoMAEConfig) -> Tensor:
    """The inverse of `VideoMAE.patchify` for one clip: `[N, t*P*P*C]` -> `[T, H, W, C]`."""
    t, p = config.tubelet_size, config.patch_size
    # [N, t*P*P*C] -> [T/t, H/P, W/P, t, P, P, C] -> [T/t, t, H/P, P, W/P, P, C]
    parts = tokens.reshape(-1, *config.grid, t, p, p, config.channels).permute(0, 3, 1, 4, 2, 5, 6)
    return parts.reshape(config.num_frames, *config.sides, config.channels)
