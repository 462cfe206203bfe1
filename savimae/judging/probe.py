"""What features are worth: nearest neighbours, a linear classifier and an attentive probe on them.

The same is done with an untrained encoder of the same shape and with raw pixels, so that a number
means something. The first two classifiers are scikit-learn's.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from savimae.data.labels import Labelled, check_overlap, match_labels
from savimae.data.lists import find_both_sides, group_of, label_of, shared_groups
from savimae.judging.attentive import attentive as attentive_classifier
from savimae.judging.features import (
    Features,
    Source,
    encoder_features,
    make_features,
    pixel_features,
    pixel_tokens,
    pooled_features,
    token_features,
)
from savimae.judging.load import Machine, Trained, load_trained, untrained_twin
from savimae.model.config import VideoMAEConfig
from savimae.model.videomae import Encoder
from savimae.samples.multi_view import ViewReader, Views
from savimae.system.errors import SavimaeError, UsageError, shown
from savimae.system.files import refuse_file
from savimae.system.lock import sole_writer
from savimae.system.progress import Progress
from savimae.system.tables import table
from savimae.training.loaded_weights import AS_TRAINED, ClipShape

NEIGHBOURS = 20
TEMPERATURE = 0.07  # of the neighbours' votes (Wu et al., 2018, "Unsupervised feature learning …")
REGULARISATION = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of the linear classifier
HELD_OUT = 5  # one part in so many of the training videos chooses the regularisation
CHUNK_FEATURES = 4096  # that are standardised at a time
CHUNK_QUERIES = 1024  # whose similarities to all videos are in memory at a time
PIXELS = "raw pixels"
DRAWS = 5  # of so many labelled videos of each class
MEMORY_SHARE = 0.4  # of the machine's memory that tokens may take
FEW = 1000  # training videos, up to which each part does in turn: one would be too small


@dataclasses.dataclass(frozen=True)
class Score:
    """How well one kind of features does with one classifier on the test videos.

    With several draws of labelled videos `top1` and `top5` are means over them; `detail` and
    `confusion` are of the first.
    """

    features: str
    classifier: str
    top1: float
    top5: float
    detail: str  # what was chosen
    confusion: list[list[int]]  # [true class][predicted class], videos
    labels: int | None = None  # training videos of each class; None: all there are
    draws: list[float] = dataclasses.field(default_factory=list)  # top-1 of each

    @property
    def spread(self) -> float | None:
        """Standard deviation of top-1 over the draws; None for a single one."""
        return float(np.std(self.draws, ddof=1)) if len(self.draws) > 1 else None


@dataclasses.dataclass(frozen=True)
class Probe:
    """All scores, and what they are to be compared with."""

    scores: list[Score]
    classes: list[str]
    n_train: int
    n_test: int
    shared: list[str]  # recordings with clips on both sides
    overlap: int  # test videos that are training videos as well
    numbers: list[int]  # what the training list calls the classes
    notes: list[str]  # which labels were taken for which classes, where that is not plain

    @property
    def chance(self) -> float:
        """Top-1 of always naming the test list's most common class."""
        totals = np.sum(self.scores[0].confusion, 1)
        return float(totals.max() / totals.sum())


def probe(
    checkpoint: str,
    train_list: str,
    test_list: str,
    out: str,
    machine: Machine,
    *,
    pool: str = "mean",
    layer: int | None = None,
    views: Views | None = None,
    root: str | None = None,
    sampling_rate: int | None = None,
    seed: int = 0,
    baselines: bool = True,
    attentive: bool = False,
    label_counts: Sequence[int | None] = (None,),
    allow_overlap: bool = False,
    clip_shape: ClipShape = AS_TRAINED,
) -> Probe:
    """Probe a model; features are kept in `out` and computed only once.

    Args:
        checkpoint: of any layout.
        train_list, test_list: lists with labels, or folders of class folders.
        pool: see `encoder_features`; "time" keeps what happens when.
        layer: of the encoder, from 1; None: the last, after its norm.
        views: of each video, whose features are averaged.
        seed: of the untrained encoder and of the held-out part.
        attentive: fit attentive probes as well, on all tokens of every view.
        label_counts: training videos of each class that the classifiers get, None for all; a
            number is drawn several times, the same videos for all features.
        baselines: do the same with an untrained encoder and with raw pixels.
        allow_overlap: let test videos be training videos as well; the result says how many are.
        clip_shape: of clips of another shape than the model was trained with.

    Raises:
        UsageError: lists without labels or with a single one, a class of the test that training
            does not have, options that do not fit, or `out` is a file.
        SavimaeError: a file that cannot be read, another process that writes into `out`, or
            scikit-learn is not installed.
    """
    check_sklearn()
    refuse_file(out)
    labelled, overlap = labelled_sides(train_list, test_list, root, label_counts, allow_overlap)
    trained = load_trained(checkpoint, machine.device, clip_shape)
    try:
        reader = ViewReader(trained.clips(sampling_rate), views or Views())
        sources = _sources(trained, pool, layer, machine, seed, baselines)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if attentive:
        n_videos = len(labelled.train) + len(labelled.test)
        check_token_memory(trained.config, reader.views.count, n_videos)
    groups = [group_of(video.name) for video in labelled.train]
    heads = trained.config.encoder_heads

    def both_sides_of(name: str, source: Source, kind: str = "") -> tuple[Features, Features]:
        found = []
        for part, videos in (("train", labelled.train), ("test", labelled.test)):
            path = os.path.join(out, f"{name.replace(' ', '-')}{kind}-{part}.npz")
            title = f"{name}, {part} videos"
            found.append(make_features(path, source, videos, reader, machine, title))
            if not np.isfinite(found[-1].values).all():
                raise SavimaeError(
                    f"{shown(path)}: holds what is no finite number; look at the model, and "
                    "delete this file"
                )
        return found[0], found[1]

    def scores_of(name: str, pooled: Source, tokens: Source) -> Iterator[Score]:
        for_tokens = both_sides_of(name, tokens, "-tokens") if attentive else None
        if for_tokens is not None and name != PIXELS:  # nothing is computed twice
            steps = trained.config.time_steps
            train, test = (pooled_features(each, pool, steps) for each in for_tokens)
        else:
            train, test = both_sides_of(name, pooled)
        for count in label_counts:
            found = []
            for chosen in draw_labelled(train.labels, count, seed):
                of_chosen = [groups[index] for index in chosen]
                found.append(probe_features(name, _some(train, chosen), test, of_chosen, seed))
                if for_tokens is not None:
                    some = _some(for_tokens[0], chosen)
                    found[-1].append(
                        probe_tokens(name, some, for_tokens[1], of_chosen, heads, seed)
                    )
            yield from (_over_draws(each, count) for each in zip(*found, strict=True))

    scores: list[Score] = []
    with sole_writer(out):
        for name, both in sources.items():
            scores += scores_of(name, *both)
    shared = shared_groups((v.name for v in labelled.train), (v.name for v in labelled.test))
    return Probe(
        scores, labelled.classes, len(labelled.train), len(labelled.test), shared, overlap,
        labelled.numbers, labelled.notes,
    )  # fmt: skip


def labelled_sides(
    train_list: str,
    test_list: str,
    root: str | None,
    label_counts: Sequence[int | None],
    allow_overlap: bool,
) -> tuple[Labelled, int]:
    """The videos of both sides with the same labels, and how many are on both.

    Raises:
        UsageError: as `probe`, for lists that do not fit each other or the label counts.
        SavimaeError: a list that cannot be read.
    """
    both_sides = find_both_sides(train_list, test_list, root)
    labelled = match_labels(*both_sides, train_list, test_list)
    if len(labelled.classes) == 1:
        raise UsageError(
            f"{shown(train_list)}: all videos have one label; nothing can be told apart"
        )
    overlap = check_overlap(labelled.train, labelled.test, allow_overlap)
    largest = int(np.bincount([label_of(video) for video in labelled.train]).max())
    for count in label_counts:
        if count is not None and count >= largest:
            raise UsageError(
                f"--labels {count}: no class of {shown(train_list)} has more than {largest} "
                "videos; say all"
            )
    return labelled, overlap


def draw_labelled(y: np.ndarray, count: int | None, seed: int) -> list[np.ndarray]:
    """Indices of the training videos of each draw: `count` of every class, or all that it has.

    Args:
        y: labels, int `[videos]`.
        count: None: all videos, once.
    """
    if count is None:
        return [np.arange(len(y))]
    draws = []
    for number in range(DRAWS):
        order = np.random.default_rng((seed, number)).permutation(len(y))
        chosen = [order[y[order] == label][:count] for label in np.unique(y)]
        draws.append(np.sort(np.concatenate(chosen)))
    return draws


def _some(features: Features, chosen: np.ndarray) -> Features:
    paths = [features.paths[index] for index in chosen]
    return features._replace(
        values=features.values[chosen], labels=features.labels[chosen], paths=paths
    )


def _over_draws(scores: Sequence[Score], count: int | None) -> Score:
    """The scores of one classifier in all draws, as one."""
    return dataclasses.replace(
        scores[0],
        top1=float(np.mean([score.top1 for score in scores])),
        top5=float(np.mean([score.top5 for score in scores])),
        labels=count,
        draws=[score.top1 for score in scores],
    )


def check_token_memory(shape: VideoMAEConfig, n_views: int, n_videos: int) -> None:
    """Raises UsageError if the tokens of so many videos take most of this machine's memory."""
    wanted = 4 * n_videos * n_views * shape.n_tokens * shape.encoder_dim
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted > MEMORY_SHARE * there:
        raise UsageError(
            f"--attentive keeps all tokens of {n_videos} videos, {wanted / 2**30:.1f} GiB, and "
            f"this machine has {there / 2**30:.1f}; take fewer videos or views, or leave it out"
        )


def _sources(
    trained: Trained,
    pool: str,
    layer: int | None,
    machine: Machine,
    seed: int,
    baselines: bool,
) -> dict[str, tuple[Source, Source]]:
    """For each kind of features those that are pooled, and all tokens."""

    def of_encoder(encoder: Encoder) -> tuple[Source, Source]:
        return (
            encoder_features(encoder, pool, machine, layer),
            token_features(encoder, machine, layer),
        )

    sources = {"pretrained": of_encoder(trained.encoder)}
    if baselines:
        shape = trained.config
        sources["untrained"] = of_encoder(untrained_twin(trained.encoder, seed))
        sources[PIXELS] = pixel_features(shape.tubelet_size), pixel_tokens(shape)
    return sources


def check_sklearn() -> None:
    """Raises SavimaeError, with what to install, where scikit-learn is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise SavimaeError(
            "probes need scikit-learn; install it with `pip install 'savimae[probe]'`"
        ) from None


# -------------------------------------------------------------------------------- classifiers


def probe_features(
    name: str, train: Features, test: Features, groups: Sequence[str | None], seed: int
) -> list[Score]:
    """Both classifiers on one kind of features.

    Args:
        groups: the recording of each training video, None if unknown; videos of one are held out
            together.
    """
    x_train, x_test = (each.values.reshape(len(each.values), -1) for each in (train, test))
    return [
        _score(name, classifier, fit(x_train, train.labels, x_test, groups, seed), train, test)
        for classifier, fit in (("kNN", nearest_neighbours), ("linear", linear))
    ]


def probe_tokens(
    name: str,
    train: Features,
    test: Features,
    groups: Sequence[str | None],
    heads: int,
    seed: int,
) -> Score:
    """The attentive probe on tokens of every view, float32 `[videos, V, N, D]`."""
    parts = hold_out(train.labels, groups, seed)[:1]
    found = attentive_classifier(
        train.values, train.labels, test.values, parts, math.gcd(heads, train.values.shape[3]),
        seed, f"{name}, attentive probe",
    )  # fmt: skip
    return _score(name, "attentive", found, train, test)


def _score(
    name: str,
    classifier: str,
    found: tuple[np.ndarray, np.ndarray, str],
    train: Features,
    test: Features,
) -> Score:
    """How often the likeliest classes are right; `found` as of `nearest_neighbours`."""
    classes, probabilities, detail = found
    order = classes[np.argsort(-probabilities, axis=1, kind="stable")]
    hits = order == test.labels[:, None]
    n = int(max(train.labels.max(), test.labels.max())) + 1
    confusion = np.zeros((n, n), int)
    np.add.at(confusion, (test.labels, order[:, 0]), 1)
    top1, top5 = float(hits[:, 0].mean()), float(hits[:, :5].any(1).mean())
    return Score(name, classifier, top1, top5, detail, confusion.tolist())


def nearest_neighbours(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, groups: Sequence[str | None], seed: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """Weighted votes of the nearest training videos: exp(cosine similarity / 0.07) each.

    Returns:
        Classes [K], votes [tests, K] that add up to 1, and what was chosen.
    """
    del groups, seed
    k = min(NEIGHBOURS, len(x))
    found = nearest(x, x_test, k)
    classes, of_class = np.unique(y, return_inverse=True)
    votes = np.zeros((len(x_test), len(classes)))
    each = np.arange(len(x_test))[:, None]
    np.add.at(votes, (each, of_class[found.places]), np.exp(found.similarities / TEMPERATURE))
    return classes, votes / votes.sum(1, keepdims=True), f"k {k}"


class Nearest(NamedTuple):
    """The nearest videos of each of some queries, the nearest first."""

    places: np.ndarray  # int64 [queries, k], among the videos
    similarities: np.ndarray  # float64 [queries, k]; -inf where no more videos may be neighbours


def nearest(
    x: np.ndarray,
    queries: np.ndarray,
    k: int,
    of_video: np.ndarray | None = None,
    of_query: np.ndarray | None = None,
) -> Nearest:
    """The k videos whose standardised features have the greatest cosine similarity.

    Mean and deviation are those of the videos `x`. Among equals the first of the list comes first.

    Args:
        x, queries: features float `[n, d]` and `[m, d]`.
        of_video, of_query: numbers `[n]` and `[m]`; of one number videos are no neighbours, such
            as a video of itself. None: all may be.
    """
    places, similarities = [], []
    with Progress("nearest neighbours", delay_s=1.0) as progress:
        for first in range(0, len(queries), CHUNK_QUERIES):
            progress.show(first / len(queries), f"{first}/{len(queries)} videos")
            rows = slice(first, first + CHUNK_QUERIES)
            cosines = _cosines(x, queries[rows])
            if of_video is not None and of_query is not None:
                cosines[of_query[rows][:, None] == of_video] = -np.inf
            order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
            places.append(order)
            similarities.append(np.take_along_axis(cosines, order, 1))
    return Nearest(np.concatenate(places), np.concatenate(similarities))


def _cosines(x: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Cosine similarities of standardised features, float64 `[m, n]`; 0 to what is all means."""
    products = np.zeros((len(queries), len(x)))
    squares, of_queries = np.zeros(len(x)), np.zeros(len(queries))
    for part, query_part in standardised_parts(x, queries):
        products += query_part @ part.T
        squares += np.einsum("ij,ij->i", part, part)
        of_queries += np.einsum("ij,ij->i", query_part, query_part)
    return products / np.sqrt(np.maximum(np.outer(of_queries, squares), np.finfo(float).tiny))


def linear(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, groups: Sequence[str | None], seed: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """Logistic regression on standardised features, its C chosen on held-out training videos.

    More features than videos are first rotated into the space that the videos span (see
    `standardised`). That changes nothing: with an L2 penalty the weights lie in it.

    Returns: as `nearest_neighbours`.
    """
    from sklearn.linear_model import LogisticRegression

    def model(c: float) -> Any:
        # Few, exact steps: the default solver takes a thousand where C is large, ten times as long.
        return LogisticRegression(C=c, max_iter=2000, solver="newton-cg")

    parts = [part for part in hold_out(y, groups, seed) if len(set(y[part[0]])) > 1]
    parts = parts[: None if len(y) <= FEW else 1]
    whole, whole_test = standardised(x, x_test)
    if not parts:
        fitted = model(1.0).fit(whole, y)
        return fitted.classes_, fitted.predict_proba(whole_test), "C 1, too few videos to choose it"
    accuracy = dict.fromkeys(REGULARISATION, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about convergence: the choice of C judges what came of it
        for kept, held_out in parts:
            of_kept, of_held_out = standardised(x[kept], x[held_out])
            for c in REGULARISATION:
                fitted = model(c).fit(of_kept, y[kept])
                accuracy[c] += fitted.score(of_held_out, y[held_out]) / len(parts)
        best = max(accuracy, key=lambda c: (accuracy[c], -c))  # the smaller one of equals
        fitted = model(best).fit(whole, y)
    detail = f"C {best:g}, {accuracy[best]:.3f} on held-out training videos"
    return fitted.classes_, fitted.predict_proba(whole_test), detail


def standardised(x: np.ndarray, x_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features `[n, d]` and `[m, d]` less the mean of the first, over their standard deviation.

    More features than videos are rotated into the space that the first ones span, float64 `[n, <=
    n]` and `[m, <= n]`: by the eigenvectors of their inner products, of which there are far fewer
    than of features.
    """
    n, d = x.shape
    products, test_products = np.zeros((n, n)), np.zeros((len(x_test), n))
    chunks = []
    for part, of_test in standardised_parts(x, x_test):
        if d <= n:
            chunks.append((part, of_test))
            continue
        products += part @ part.T
        test_products += of_test @ part.T
    if d <= n:
        return tuple(np.concatenate(each, 1) for each in zip(*chunks, strict=True))  # type: ignore[return-value]
    if not products.any():  # all videos have the same features
        return np.zeros((n, 1)), np.zeros((len(x_test), 1))
    values, vectors = np.linalg.eigh(products)
    is_spanned = values > values[-1] * n * np.finfo(np.float64).eps
    lengths, vectors = np.sqrt(values[is_spanned]), vectors[:, is_spanned]
    return vectors * lengths, test_products @ vectors / lengths


def standardised_parts(
    x: np.ndarray, x_test: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some features at a time, float64: less the mean of the first videos, over their deviation."""
    for first in range(0, x.shape[1], CHUNK_FEATURES):
        part, of_test = (
            each[:, first : first + CHUNK_FEATURES].astype(np.float64) for each in (x, x_test)
        )
        mean, deviation = part.mean(0), part.std(0)
        deviation[deviation < 1e-12 * np.maximum(np.abs(mean), 1)] = (
            1  # a constant stays what it is
        )
        yield (part - mean) / deviation, (of_test - mean) / deviation


def hold_out(
    y: np.ndarray, groups: Sequence[str | None], seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Fifths of the videos, of every class, with videos of one recording on one side.

    Returns:
        Of each fifth, indices of the videos that are kept and of those that are held out; nothing
        if no class has two videos, or all are of one recording.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    names = [group if group is not None else f"video {i}" for i, group in enumerate(groups)]
    n_splits = min(HELD_OUT, len(set(names)), int(np.bincount(y).max()))
    if n_splits < 2:
        return []
    splitter = StratifiedGroupKFold(n_splits, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes with fewer videos than parts
        return list(splitter.split(np.zeros(len(y)), y, names))


def probe_table(result: Probe) -> str:
    """A row for each kind of features, classifier and number of labels."""
    rows = [["features", "classifier", "labels a class", "top-1", "top-5", "chosen"]]
    for each in result.scores:
        spread = "" if each.spread is None else f" ± {each.spread:.3f}"
        rows.append([
            each.features, each.classifier, "all" if each.labels is None else str(each.labels),
            f"{each.top1:.3f}{spread}", f"{each.top5:.3f}", each.detail,
        ])  # fmt: skip
    rows.append(["most common class", "", "", f"{result.chance:.3f}", "", ""])
    if all(score.labels is None for score in result.scores):
        rows = [[*row[:2], *row[3:]] for row in rows]
    return table(rows, n_left=2)
