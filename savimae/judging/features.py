"""Features of videos: what an encoder makes of whole, unmasked clips, averaged over views.

Legend: B clips, T frames, H, W sides of the input, C channels, D width of the encoder, N tokens,
t_n time steps.

What is computed is kept in chunks beside the output until it is whole, so that a run that was
killed goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from savimae.data.lists import Video, names_digest
from savimae.data.video import naming_video
from savimae.judging.load import Machine
from savimae.model.config import VideoMAEConfig
from savimae.model.videomae import (
    Encoder,
    patchify,
    pixel_statistics,
    sinusoid_positions,
    time_means,
)
from savimae.saliency.arrays import parse_array, read_archive
from savimae.samples.multi_view import ViewReader
from savimae.system.errors import SavimaeError, UsageError, shown
from savimae.system.files import (
    atomic_file,
    parse_json,
    path_text,
    read_json,
    refuse_folder,
    write_json,
)
from savimae.system.lock import SoleWriter, sole_writer
from savimae.system.settings import check_settings, record_config

EXTENSIONS = (".npz", ".npy")
POOLS = ("mean", "time", "tokens")
CHUNK_BATCHES = 16  # batches that a kill may cost
NOT_FEATURES = "not features that savimae wrote; delete it, or name another file"
PIXEL_GRID = 8  # raw pixels are averaged to so many places a side

Extractor = Callable[[Tensor], Tensor]  # uint8 [B, T, H, W, C] -> float [B, …]


class Features(NamedTuple):
    """Features of the videos of a list, in its order."""

    values: np.ndarray  # float32 [videos, D], [videos, t_n, D] or [videos, (V,) N, D]
    labels: np.ndarray  # int64 [videos], -1 where the list has none
    paths: list[str]
    settings: dict[str, Any]  # what they were computed with


@dataclasses.dataclass(frozen=True)
class Source:
    """A way to make features of clips, and the settings that tell it from others."""

    extract: Extractor
    settings: Mapping[str, Any]
    keeps_views: bool = False  # values of every view, [videos, V, …], instead of their mean


def encoder_features(
    encoder: Encoder, pool: str, machine: Machine, layer: int | None = None
) -> Source:
    """Features of the encoder.

    Args:
        pool: "mean" over all tokens `[B, D]`, "time" for one mean a time step `[B, t_n, D]`, or
            "tokens" for all of them `[B, N, D]`.
        layer: of which block, from 1; None: of the last, after its norm (a classifier's encoder
            has none).

    Raises:
        ValueError: another pool, or no such layer.
    """
    depth = encoder.config.encoder_depth
    if layer is not None and not 1 <= layer <= depth:
        raise ValueError(f"--layer {layer} is not one of the {depth} blocks of this encoder")
    if pool not in POOLS:
        raise ValueError(f"pool {pool!r} is not one of {', '.join(POOLS)}")
    time_steps = encoder.config.time_steps

    def extract(clips: Tensor) -> Tensor:
        with machine.autocast():
            tokens = encoder.whole(clips, layer=layer)
        return pool_tokens(tokens, pool, time_steps)

    of_layer = {} if layer is None else {"layer": layer}
    return Source(extract, {"weights": fingerprint(encoder), "pool": pool, **of_layer})


def pool_tokens(tokens: Tensor, pool: str, time_steps: int) -> Tensor:
    """Tokens `[B, N, D]` -> `[B, D]`, `[B, t_n, D]` or themselves; see `encoder_features`."""
    if pool == "time":
        return time_means(tokens, time_steps)
    return tokens if pool == "tokens" else tokens.mean(1)


def token_features(encoder: Encoder, machine: Machine, layer: int | None = None) -> Source:
    """All tokens of the encoder, of every view: `[B, N, D]`. Arguments as of `encoder_features`."""
    source = encoder_features(encoder, "tokens", machine, layer)
    return Source(source.extract, {**source.settings, "views": "kept"}, keeps_views=True)


def pooled_features(of_tokens: Features, pool: str, time_steps: int) -> Features:
    """What `encoder_features` would make, from features of `token_features`."""
    n_videos, n_views = of_tokens.values.shape[:2]
    values = np.require(of_tokens.values, requirements="W")  # PyTorch warns of what was only read
    pooled = pool_tokens(torch.from_numpy(values).flatten(0, 1), pool, time_steps)
    of_videos = pooled.unflatten(0, (n_videos, n_views)).mean(1)
    return of_tokens._replace(values=of_videos.numpy())


def pixel_tokens(config: VideoMAEConfig) -> Source:
    """Raw pixels of tokens, averaged over the tubelet and to at most 8 x 8 places, and positions.

    `[B, N, places * C * 2]`: an encoder's tokens know where they are, so these are told as well.
    """
    side = min(config.patch_size, PIXEL_GRID)
    dim = side * side * config.channels
    positions = sinusoid_positions(config.n_tokens, dim)

    def extract(clips: Tensor) -> Tensor:
        # [B * N, t*P*P*C] -> [B * N, t, P, P, C] -> [B * N, C, P, P]
        sizes = (config.tubelet_size, config.patch_size, config.patch_size, config.channels)
        patches = patchify(clips, config).float().unflatten(1, sizes).mean(1).permute(0, 3, 1, 2)
        cells = torch.nn.functional.adaptive_avg_pool2d(patches / 255, side)
        pixels = cells.reshape(len(clips), config.n_tokens, dim)
        return torch.cat((pixels, positions.to(pixels.device).expand_as(pixels)), 2)

    return Source(extract, {"weights": "raw pixels", "tokens of side": side, "views": "kept"}, True)


def pixel_features(tubelet_size: int) -> Source:
    """Raw pixels, for comparison: averages over tubelets and places, `[B, t_n * 8 * 8 * C]`."""

    def extract(clips: Tensor) -> Tensor:
        # [B, T, H, W, C] -> [B, T/t, t, H, W, C] -> [B, t_n, H, W, C] -> [B * t_n, C, H, W]
        frames = clips.float().unflatten(1, (-1, tubelet_size)).mean(2) / 255
        planes = frames.flatten(0, 1).permute(0, 3, 1, 2)
        cells = torch.nn.functional.adaptive_avg_pool2d(planes, PIXEL_GRID)
        return cells.reshape(len(clips), -1, clips.shape[-1], PIXEL_GRID**2).flatten(1)

    return Source(extract, {"weights": "raw pixels", "tubelet_size": tubelet_size})


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of all bits of a model's weights, and of what its pixels are normalised with where
    that is its own: it tells them from others.
    """
    digest = hashlib.sha256()
    for module in model.modules():
        if isinstance(module, Encoder) and module.config.pixel_mean is not None:
            digest.update(repr(pixel_statistics(module.config)).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def make_features(
    path: str,
    source: Source,
    videos: Sequence[Video],
    reader: ViewReader,
    machine: Machine,
    title: str = "features",
) -> Features:
    """Features of every video, averaged over its views, in the file `path`.

    If they are there already they are read; if a part of them is (in `path`.partial), the rest is
    computed. `.npz` holds values, labels, paths and settings; `.npy` the values, and a `.json`
    beside it the rest.

    Raises:
        UsageError: `path` is of other features, or has another extension.
        SavimaeError: a video cannot be decoded, a file cannot be read, or another process makes the
            same file.
    """
    if os.path.splitext(path)[1] not in EXTENSIONS:
        raise UsageError(f"{shown(path)}: name a file that ends in {' or '.join(EXTENSIONS)}")
    refuse_folder(path)
    settings = {
        **source.settings,
        **reader.config.recorded(),
        **dataclasses.asdict(reader.views),
        "precision": machine.precision,
        "videos": names_digest(videos),
    }
    labels = np.array([-1 if video.label is None else video.label for video in videos], np.int64)
    work = path + ".partial"
    with sole_writer(work) as writer:
        if os.path.exists(path):
            values, recorded = _read_features(path)
            check_settings(path, recorded, settings)
            if len(values) != len(videos):
                raise SavimaeError(f"{shown(path)}: {NOT_FEATURES}")
        else:
            record_config(work, {**settings, "batch_size": machine.batch_size})
            values = _compute(source, videos, reader, machine, work, title, writer)
        features = Features(values, labels, [video.path for video in videos], settings)
        writer.check()
        _write_features(path, features)
        shutil.rmtree(work, ignore_errors=True)
    return features


def features_of(
    source: Source, videos: Sequence[Video], reader: ViewReader, machine: Machine, title: str
) -> np.ndarray:
    """The same for a few videos, kept nowhere: values float32 `[videos, …]`.

    Raises:
        SavimaeError: a video cannot be decoded.
    """
    parts = list(_batches(source, videos, reader, machine, title))
    order = np.argsort(np.concatenate([indices for indices, _ in parts]))
    return np.concatenate([rows for _, rows in parts])[order]


def _batches(
    source: Source,
    videos: Sequence[Video],
    reader: ViewReader,
    machine: Machine,
    title: str,
    done: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of videos `[B]` and their values float32 `[B, …]`, batch by batch from `done` on."""

    def load(index: int, _: int) -> tuple[int, np.ndarray]:
        with naming_video(videos[index].path):
            return index, reader.read(videos[index])

    for samples in machine.batches(len(videos), load, title, done=done):
        pixels = np.stack([views for _, views in samples])  # [B, V, T, H, W, C]
        with torch.no_grad():
            clips = torch.from_numpy(pixels).to(machine.device).flatten(0, 1)
            values = source.extract(clips).float().unflatten(0, pixels.shape[:2])
            values = values if source.keeps_views else values.mean(1)
        yield np.array([index for index, _ in samples]), values.cpu().numpy()


def _compute(
    source: Source,
    videos: Sequence[Video],
    reader: ViewReader,
    machine: Machine,
    work: str,
    title: str,
    writer: SoleWriter,
) -> np.ndarray:
    """Values for all videos, float32 `[videos, …]`; what is in `work` already is not done again."""
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    while os.path.exists(path := _chunk_path(work, len(parts))):
        parts.append(_read_chunk(path, len(videos)))
    n_batches = -(-len(videos) // machine.batch_size)
    done = min(len(parts) * CHUNK_BATCHES, n_batches)
    pending: list[tuple[np.ndarray, np.ndarray]] = []
    batches = _batches(source, videos, reader, machine, title, done)
    for number, batch in enumerate(batches if done < n_batches else (), done + 1):
        pending.append(batch)
        if number % CHUNK_BATCHES == 0 or number == n_batches:
            writer.check()
            indices, rows = (np.concatenate(each) for each in zip(*pending, strict=True))
            with atomic_file(_chunk_path(work, len(parts))) as file:
                np.savez(file, indices=indices, values=rows)
            parts.append((indices, rows))
            pending = []
    shapes = {rows.shape[1:] for _, rows in parts}
    known = np.sort(np.concatenate([indices for indices, _ in parts]))
    if len(shapes) > 1 or not np.array_equal(known, np.arange(len(videos))):
        raise SavimaeError(
            f"{shown(work)}: its chunks are not of the same features, or not of every video once; "
            "delete this folder and run the same command again"
        )
    values = np.empty((len(videos), *shapes.pop()), np.float32)
    for indices, rows in parts:
        values[indices] = rows
    return values


def _chunk_path(work: str, number: int) -> str:
    return os.path.join(work, f"chunk-{number:06}.npz")


def _read_chunk(path: str, n_videos: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of videos, integers `[n]`, and their values, floats `[n, …]`."""
    try:
        indices, values = read_archive(path, "indices", "values")
        _check_values(values, len(indices) if indices.ndim == 1 else 0)
        if indices.dtype.kind not in "iu" or not ((indices >= 0) & (indices < n_videos)).all():
            raise ValueError("indices of other videos")
        return indices, values
    except ValueError as error:
        raise SavimaeError(
            f"{shown(path)}: not a whole chunk of features; delete it and all after it, and run "
            "the same command again"
        ) from error


def _check_values(values: np.ndarray, n: int) -> None:
    """Raises ValueError unless these are features of n videos."""
    if values.ndim < 2 or len(values) != n or values.dtype.kind != "f":
        raise ValueError(f"{values.dtype} {list(values.shape)} are not features of {n} videos")


def _read_features(path: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Values and settings of a file of features."""
    settings: Any
    try:
        if path.endswith(".npz"):
            values, text = read_archive(path, "values", "settings")
            settings = parse_json(str(text))
        else:
            with open(path, "rb") as file:
                values = parse_array(file.read())
            settings = read_json(_beside(path))["settings"]
        if not isinstance(settings, dict):
            raise ValueError("settings are not an object")
        _check_values(values, len(values) if values.ndim else 0)
    except (OSError, ValueError, KeyError) as error:
        raise SavimaeError(f"{shown(path)}: {NOT_FEATURES}") from error
    return values, settings


def _beside(path: str) -> str:
    return os.path.splitext(path)[0] + ".json"


def _write_features(path: str, features: Features) -> None:
    paths = [path_text(each) for each in features.paths]
    if path.endswith(".npz"):
        with atomic_file(path) as file:
            np.savez(
                file, values=features.values, labels=features.labels, paths=np.array(paths),
                settings=np.array(json.dumps(features.settings)),
            )  # fmt: skip
        return
    about = {"labels": features.labels.tolist(), "paths": paths, "settings": features.settings}
    write_json(_beside(path), about)
    with atomic_file(path) as file:
        np.save(file, features.values)
