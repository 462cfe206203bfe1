"""Which videos an encoder finds alike: a sheet of nearest neighbours, and a map of all videos.

Videos are alike as they are for the kNN of `probe`: cosine similarity of standardised features.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from savimae.data.lists import Video, find_readable_videos, group_of
from savimae.data.video import naming_video, open_video
from savimae.judging.features import encoder_features, features_of, make_features
from savimae.judging.load import Machine, load_trained
from savimae.judging.pictures import (
    SHEET_PX,
    SheetPanel,
    check_matplotlib,
    draw_sheet,
    plot_map,
    write_picture,
)
from savimae.judging.probe import nearest, standardised
from savimae.samples.multi_view import ViewReader, Views
from savimae.system.errors import SavimaeError, UsageError, shown
from savimae.system.files import refuse_file, write_json
from savimae.system.lock import sole_writer
from savimae.system.progress import Progress
from savimae.training.loaded_weights import AS_TRAINED, ClipShape

QUERIES = 6  # of the list, if nothing is said
NEIGHBOURS = 8  # that are shown, if nothing is said and there are so many
MANY_VALUES = 10**7  # of all features together, from which a map takes seconds
PERPLEXITY = 30.0  # of t-SNE, and
MAP_NEIGHBOURS = 15  # of UMAP: their defaults, which a map of few videos cannot have


@dataclasses.dataclass(frozen=True)
class NeighborOptions:
    """What is looked for and drawn."""

    query: tuple[str, ...] = ()  # paths of videos, which need not be in the list
    queries: int | None = None  # so many of the list; None: QUERIES, or none beside `query`
    k: int | None = None  # neighbours of each; None: NEIGHBOURS, or all others of fewer
    map_by: str = "pca"  # or tsne, umap


class OwnClass(NamedTuple):
    """How often a video's neighbours are of its own class; it is never among them itself."""

    share: float
    chance: float  # the same if they were drawn from all others
    videos: int  # whose neighbours count: those with a label, and with k others
    by_class: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Neighbors:
    """What was found."""

    written: list[str]
    k: int
    own_class: OwnClass | None  # None where the list has no labels, or a single one
    other_recordings: OwnClass | None  # among other recordings alone; None where none are known
    notes: list[str]


class Query(NamedTuple):
    """A video whose neighbours are shown."""

    video: Video
    place: int | None  # in the list; None outside


class Compared:
    """Videos with their features, and the neighbours of the queries."""

    def __init__(
        self,
        data: str,
        videos: Sequence[Video],
        classes: Sequence[str],
        values: np.ndarray,
        of_outside: np.ndarray,
        queries: Sequence[Query],
        k: int,
    ):
        self.data = data
        self.videos = videos
        self.queries = queries
        self.k = k
        self.values = values  # float32 [videos, d], and
        self.of_outside = of_outside  # float32 [queries that are not in the list, d]
        known = sorted({video.label for video in videos if video.label is not None})
        self.names = [classes[label] if classes else str(label) for label in known]
        place = {label: number for number, label in enumerate(known)}
        numbers = [-1 if video.label is None else place[video.label] for video in videos]
        self.labels = np.array(numbers)  # places in `names`, -1 for none
        outside = iter(of_outside)
        rows = [next(outside) if each.place is None else values[each.place] for each in queries]
        own = [-1 if each.place is None else each.place for each in queries]
        self.nearest = nearest(values, np.stack(rows), k, np.arange(len(videos)), np.array(own))

    def class_of(self, place: int | None) -> str | None:
        """The name of the class of a video of the list; None where it has none."""
        return None if place is None or self.labels[place] < 0 else self.names[self.labels[place]]

    def own_class(self) -> OwnClass | None:
        """Over the whole list; None where no two classes are known."""
        if len(self.names) < 2:
            return None
        numbers = np.arange(len(self.videos))
        return own_class(self.values, self.labels, self.k, numbers, self.names)

    def own_class_elsewhere(self) -> OwnClass | None:
        """The same among videos of other recordings; None where no two videos share a known one."""
        groups = [group_of(video.name) or f"video {n}" for n, video in enumerate(self.videos)]
        names, numbers = np.unique(groups, return_inverse=True)
        if len(names) == len(groups) or len(self.names) < 2:
            return None
        return own_class(self.values, self.labels, self.k, numbers, self.names)


def find_neighbors(
    checkpoint: str,
    data: str,
    out: str,
    machine: Machine,
    options: NeighborOptions,
    *,
    pool: str = "mean",
    layer: int | None = None,
    views: Views | None = None,
    root: str | None = None,
    sampling_rate: int | None = None,
    clip_shape: ClipShape = AS_TRAINED,
) -> Neighbors:
    """Draw the nearest neighbours of some videos, and a map of all: files in `out`.

    `neighbors.png` is the sheet, `map.png` the map, `neighbors.json` what both show, and how often
    neighbours share a class. Features are kept in `features.npz` and computed only once.

    Args:
        checkpoint: of any layout.
        data: a list or a folder, with labels or without.
        pool, layer: see `encoder_features`.
        views: of each video, whose features are averaged.
        clip_shape: of clips of another shape than the model was trained with.

    Raises:
        UsageError: too few videos, options that do not fit, or `out` is a file.
        SavimaeError: a file that cannot be read, another process that writes into `out`, or what
            the map needs is not installed.
    """
    check_map(options.map_by)
    refuse_file(out)
    found = find_readable_videos(data, root)
    videos, notes = _without_repetitions(found.videos, data)
    if options.map_by == "umap" and len(videos) < 3:
        raise UsageError("--map umap wants three videos or more; say --map pca")
    queries = _choose_queries(videos, options)
    k = _choose_k(options.k, len(videos), data)
    trained = load_trained(checkpoint, machine.device, clip_shape)
    try:
        reader = ViewReader(trained.clips(sampling_rate), views or Views())
        source = encoder_features(trained.encoder, pool, machine, layer)
    except ValueError as error:
        raise UsageError(str(error)) from None
    outside = [query.video for query in queries if query.place is None]
    with sole_writer(out):
        of_outside = None
        if outside:  # first, for one that cannot be decoded
            of_outside = features_of(source, outside, reader, machine, "features of the queries")
        path = os.path.join(out, "features.npz")
        values = make_features(path, source, videos, reader, machine).values
        values = values.reshape(len(values), -1)
        if of_outside is None:
            of_outside = values[:0]
        of_outside = of_outside.reshape(len(outside), values.shape[1])
        if not (np.isfinite(values).all() and np.isfinite(of_outside).all()):
            raise SavimaeError(
                f"{shown(path)}: features that are no finite numbers; look at the model, and "
                "delete this file"
            )
        everything = Compared(data, videos, found.classes, values, of_outside, queries, k)
        return _write(everything, checkpoint, out, options.map_by, notes)


def _without_repetitions(videos: Sequence[Video], data: str) -> tuple[list[Video], list[str]]:
    """Each file or folder once, links followed, and a note of what was left out.

    Raises:
        UsageError: fewer than two are left.
    """
    seen: set[str] = set()
    kept = []
    for video in videos:
        if (path := os.path.realpath(video.path)) not in seen:
            seen.add(path)
            kept.append(video)
    if len(kept) < 2:
        raise UsageError(
            f"{shown(data)}: one video has no neighbours; name a list or folder with others"
        )
    n_again = len(videos) - len(kept)
    note = f"note: {n_again} of {len(videos)} videos are others of {shown(data)} again; left out"
    return kept, [note] if n_again else []


def _choose_k(given: int | None, n_videos: int, data: str) -> int:
    if given is not None and given >= n_videos:
        raise UsageError(
            f"--k {given}: {shown(data)} has {n_videos} videos, so one has {n_videos - 1} others; "
            f"say --k {n_videos - 1} or fewer"
        )
    return min(NEIGHBOURS, n_videos - 1) if given is None else given


def _choose_queries(videos: Sequence[Video], options: NeighborOptions) -> list[Query]:
    """Those that are named, then some of the list.

    Raises:
        UsageError: a query that is not one video, or more queries than videos.
    """
    place_of = {os.path.realpath(video.path): place for place, video in enumerate(videos)}
    chosen = []
    for path in options.query:
        found = find_readable_videos(path).videos
        if len(found) != 1:
            raise UsageError(f"--query {shown(path)}: holds {len(found)} videos; name one")
        place = place_of.get(os.path.realpath(found[0].path))
        chosen.append(Query(found[0] if place is None else videos[place], place))
    n = options.queries
    if n is None:
        n = 0 if options.query else min(QUERIES, len(videos))
    elif n > len(videos):
        raise UsageError(f"--queries {n}: there are only {len(videos)} videos")
    return chosen + [Query(videos[place], place) for place in spread_queries(videos, n)]


def spread_queries(videos: Sequence[Video], n: int) -> list[int]:
    """Places of n videos, spread over the classes, and within a class over the list; ascending.

    Videos without labels are a class of their own.
    """
    of_class: dict[int, list[int]] = {}
    for place, video in enumerate(videos):
        of_class.setdefault(-1 if video.label is None else video.label, []).append(place)
    labels = sorted(of_class)
    if n < len(labels):  # one each of n classes
        labels = [labels[(2 * part + 1) * len(labels) // (2 * n)] for part in range(n)]
    counts = dict.fromkeys(labels, 0)
    while sum(counts.values()) < n:  # one more of each class in turn that has any left
        for label in labels:
            if sum(counts.values()) < n and counts[label] < len(of_class[label]):
                counts[label] += 1
    chosen = []
    for number, label in enumerate(labels):  # each class at another place within its parts
        places, share = of_class[label], (2 * number + 1) / (2 * len(labels))
        chosen += [
            places[int((part + share) * len(places) / counts[label])]
            for part in range(counts[label])
        ]
    return sorted(chosen)


# ------------------------------------------------------------------------------------ numbers


def own_class(
    values: np.ndarray,
    labels: np.ndarray,
    k: int,
    numbers: np.ndarray,
    names: Sequence[str],
) -> OwnClass | None:
    """How often the k nearest neighbours of a video are of its class; None if no video has k.

    Args:
        values: float `[n, d]`.
        labels: int `[n]`, -1 for none.
        numbers: int `[n]`; videos of one number are no neighbours: each its own, or its recording.
        names: of the classes 0, 1, …
    """
    found = nearest(values, values, k, numbers, numbers)
    counts = np.isfinite(found.similarities).all(1) & (labels >= 0)
    if not counts.any():
        return None
    shares = (labels[found.places] == labels[:, None]).mean(1)
    # Of the others, how many are of the class: all of the class less those of the same number.
    rows = np.flatnonzero(counts)
    pairs = labels.astype(np.int64) * len(labels) + numbers
    _, pair_of, of_pair = np.unique(pairs, return_inverse=True, return_counts=True)
    of_class = np.bincount(labels[labels >= 0])[labels[rows]]
    chances = (of_class - of_pair[pair_of[rows]]) / (
        len(labels) - np.bincount(numbers)[numbers[rows]]
    )
    return OwnClass(
        float(shares[counts].mean()),
        float(chances.mean()),
        int(counts.sum()),
        {
            names[label]: float(shares[counts & (labels == label)].mean())
            for label in np.unique(labels[counts]).tolist()
        },
    )


# ----------------------------------------------------------------------------------- pictures


def check_map(map_by: str) -> None:
    """Raises SavimaeError, with what to install, where a map cannot be made."""
    check_matplotlib()
    needed = {"tsne": ("sklearn", "'savimae[probe]'"), "umap": ("umap", "umap-learn")}
    if map_by in needed:
        module, package = needed[map_by]
        if importlib.util.find_spec(module) is None:
            raise SavimaeError(
                f"--map {map_by} needs what is not installed; install it with `pip install "
                f"{package}`, or say --map pca"
            )


def map_places(values: np.ndarray, map_by: str) -> tuple[np.ndarray, tuple[str, str]]:
    """Videos in the plane, float64 `[n, 2]`, and what the two axes are.

    Standardised features of length 1, so that near means alike: the squared distance is 2 - 2
    times the cosine similarity. Principal components; or t-SNE (van der Maaten and Hinton, 2008)
    or UMAP (McInnes et al., 2018) that start from them.
    """
    if map_by != "pca" or values.size > MANY_VALUES:
        print(f"making a map of {len(values)} videos …", file=sys.stderr, flush=True)
    rows, _ = standardised(values, values[:1])
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    places, shares = principal_places(rows)
    if map_by == "pca":
        first, second = (f"{share:.0%} of the variance" for share in shares)
        return places, (f"first component, {first}", f"second component, {second}")
    start = places / max(float(places.std(0).max()), 1e-30)
    if map_by == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
        model = TSNE(perplexity=perplexity, init=(1e-4 * start).astype(np.float32), random_state=0)
        title = f"t-SNE, perplexity {perplexity:.3g}"
    else:
        from umap import UMAP

        n = max(min(MAP_NEIGHBOURS, len(rows) - 1), 2)
        model = UMAP(n_neighbors=n, init=(10 * start).astype(np.float32), random_state=0, n_jobs=1)
        title = f"UMAP, {n} neighbours"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about threads, and features that are all the same
        found = model.fit_transform(rows.astype(np.float32)).astype(np.float64)
    if not np.isfinite(found).all():
        raise SavimaeError(f"--map {map_by} finds no map of these features; say --map pca")
    return found, (title, "")


def principal_places(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components of float64 `[n, d]`: `[n, 2]`, and their share of all.

    The largest weight of each is positive. What has but one dimension gets zeros for the second.
    """
    centred = rows - rows.mean(0)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    shares = np.maximum(variances[::-1][:2], 0) / max(float(variances.sum()), 1e-30)
    missing = 2 - axes.shape[1]
    return np.pad(centred @ axes, ((0, 0), (0, missing))), np.pad(shares, (0, missing))


def _write(found: Compared, checkpoint: str, out: str, map_by: str, notes: list[str]) -> Neighbors:
    """The sheet, the map and the numbers."""
    everywhere, elsewhere = found.own_class(), found.own_class_elsewhere()
    written = [os.path.join(out, name) for name in ("neighbors.png", "map.png", "neighbors.json")]
    write_picture(written[0], _sheet(found, everywhere))
    outside = [query for query in found.queries if query.place is None]
    places, axes = map_places(np.concatenate([found.values, found.of_outside]), map_by)
    behind = iter(range(len(found.videos), len(places)))
    marked = [next(behind) if each.place is None else each.place for each in found.queries]
    labels = np.concatenate([found.labels, np.full(len(outside), -1)])
    title = f"{len(found.videos)} videos of {shown(os.path.basename(os.path.normpath(found.data)))}"
    plot_map(places, labels, found.names, marked, title, axes, written[1])
    write_json(written[2], {
        "checkpoint": checkpoint,
        "data": found.data,
        "videos": len(found.videos),
        "k": found.k,
        "own_class": None if everywhere is None else everywhere._asdict(),
        "own_class_in_other_recordings": None if elsewhere is None else elsewhere._asdict(),
        "queries": [_record(found, row) for row in range(len(found.queries))],
    })  # fmt: skip
    return Neighbors(written, found.k, everywhere, elsewhere, notes)


def own_class_words(found: Neighbors) -> list[str]:
    """How often neighbours are of the same class, for people; nothing without labels."""
    kinds = (("", found.own_class), (" among other recordings", found.other_recordings))
    return [
        f"{each.share:.3f} of the {found.k} nearest{where} are of the video's own class "
        f"({each.chance:.3f} by chance), over {each.videos} videos"
        for where, each in kinds
        if each is not None
    ]


def _record(found: Compared, row: int) -> dict[str, Any]:
    """One query and its neighbours, as in neighbors.json."""
    query = found.queries[row]
    return {
        "query": query.video.path,
        "class": found.class_of(query.place),
        "neighbours": [
            {
                "video": found.videos[place].path,
                "class": found.class_of(place),
                "similarity": round(similarity, 4),
            }
            for place, similarity in zip(
                found.nearest.places[row].tolist(), found.nearest.similarities[row].tolist(),
                strict=True,
            )
        ],
    }  # fmt: skip


def _sheet(found: Compared, everywhere: OwnClass | None) -> Image.Image:
    """The sheet of neighbours: a row for each query."""
    frame_of = functools.cache(middle_frame)

    def panel(video: Video, words: str, label: int, is_marked: bool) -> SheetPanel:
        caption = words if label < 0 else f"{words}  {shown(found.names[label])}"
        return SheetPanel(
            frame_of(video.path), caption, shown(os.path.basename(video.name)), is_marked
        )

    rows = []
    with Progress("drawing", delay_s=1.0) as progress:
        for number, query in enumerate(found.queries):
            progress.show(number / len(found.queries), f"{number}/{len(found.queries)} queries")
            own = -1 if query.place is None else int(found.labels[query.place])
            row = [panel(query.video, str(number + 1), own, False)]
            for place, similarity in zip(*(each[number] for each in found.nearest), strict=True):
                label = int(found.labels[place])
                is_same = label >= 0 and label == own
                row.append(panel(found.videos[place], f"{similarity:.2f}", label, is_same))
            rows.append(row)
    title = f"the {found.k} nearest of {len(found.videos)} videos, by cosine similarity"
    notes = []
    if everywhere is not None:
        notes = [
            f"green frame: of the query's class   over all videos: {everywhere.share:.0%} of the "
            f"{found.k} nearest are of the own class, {everywhere.chance:.0%} by chance"
        ]
    return draw_sheet(rows, title, notes)


def middle_frame(path: str) -> np.ndarray:
    """The middle frame of a video, reduced to what a sheet can show: uint8 `[H, W, 3]`.

    Raises:
        SavimaeError: it cannot be decoded.
    """
    with naming_video(path):
        (frame,) = open_video(path).read_clip(lambda n: np.array([n // 2])).frames
    picture = Image.fromarray(frame)
    picture.thumbnail((4 * SHEET_PX, SHEET_PX))
    return np.asarray(picture)
