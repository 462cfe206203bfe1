"""Nearest videos: who they are, how often they are of one class, the sheet and the map."""

from __future__ import annotations

import importlib.util
import json
import shutil

import imageio.v3 as imageio
import numpy as np
import pytest
from media import encode, moving_frames, random_bytes, savimae
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from savimae.data.lists import Video
from savimae.judging import pictures, probe
from savimae.judging.neighbors import map_places, own_class, spread_queries
from savimae.judging.probe import nearest

# ------------------------------------------------------------------------------------- numbers


def test_nearest_is_cosine_of_standardised_features(monkeypatch):
    monkeypatch.setattr(probe, "CHUNK_QUERIES", 7)
    monkeypatch.setattr(probe, "CHUNK_FEATURES", 10)
    rng = np.random.default_rng(0)
    x = rng.normal(3, rng.uniform(0.1, 9, 24), (50, 24))
    x[:, 5] = 2  # tells nothing
    queries = rng.normal(3, 4, (20, 24))
    scaler = StandardScaler().fit(x)
    model = NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute")
    distances, places = model.fit(scaler.transform(x)[:, np.arange(24) != 5]).kneighbors(
        scaler.transform(queries)[:, np.arange(24) != 5]
    )
    queries[:, 5] = 2
    found = nearest(x, queries, 6)
    assert found.places.tolist() == places.tolist()
    np.testing.assert_allclose(found.similarities, 1 - distances, atol=1e-12)


def test_nobody_is_a_neighbour_of_itself():
    """Four videos, the first two alike: with numbers, the nearest is another one."""
    x = np.array([[3.0, 1], [3, 1], [-3, 1], [-3, -3]])
    found = nearest(x, x, 3, np.arange(4), np.arange(4))
    assert found.places[:, 0].tolist() == [1, 0, 3, 2]
    assert all(place not in row for place, row in enumerate(found.places.tolist()))
    np.testing.assert_allclose(found.similarities[:2, 0], 1)
    # Of one recording: the last has two others left, and no third.
    numbers = np.array([0, 0, 1, 1])
    found = nearest(x, x, 3, numbers, numbers)
    assert found.places[0, :2].tolist() == [2, 3]
    assert np.isfinite(found.similarities).sum(1).tolist() == [2] * 4
    # A video that is the mean of all is as near to one as to another: the first come first.
    found = nearest(np.array([[1.0], [-1.0]]), np.zeros((1, 1)), 2)
    assert (found.places.tolist(), found.similarities.tolist()) == ([[0, 1]], [[0, 0]])


def test_the_share_of_the_own_class_and_its_chance():
    # Two classes along one axis, one video of each on the other's side; one has no label.
    values = np.array([[5, 1], [5, 0.9], [-5, 1.1], [-5, -1], [-5, -0.9], [5, -1.1], [-5, -1.2]])
    labels = np.array([0, 0, 0, 1, 1, 1, -1])
    each = np.arange(7)
    found = own_class(values, labels, 1, each, ["a", "b"])
    near = nearest(values, values, 1, each, each).places[:, 0]
    hits = labels[near[:6]] == labels[:6]
    assert 0 < hits.sum() < 6
    assert found.share == pytest.approx(hits.mean())
    assert found.chance == pytest.approx(2 / 6)  # two of the class among six others
    assert found.videos == 6
    assert found.by_class == pytest.approx({"a": hits[:3].mean(), "b": hits[3:].mean()})
    # The first two are of one recording: they have one of their class among five others.
    found = own_class(values, labels, 1, np.array([0, 0, 2, 3, 4, 5, 6]), ["a", "b"])
    assert found.chance == pytest.approx((2 * 1 / 5 + 4 * 2 / 6) / 6)
    assert own_class(values, labels, 7, each, ["a", "b"]) is None


def test_queries_are_spread_over_the_classes():
    def videos(*labels):
        return [Video(str(number), str(number), label) for number, label in enumerate(labels)]

    many = videos(*[label for label in range(4) for _ in range(8)])
    chosen = spread_queries(many, 4)
    assert [many[place].label for place in chosen] == [0, 1, 2, 3]
    assert [place % 8 for place in chosen] == [1, 3, 5, 7]
    assert [many[place].label for place in spread_queries(many, 2)] == [1, 3]
    assert sorted(many[place].label for place in spread_queries(many, 6)) == [0, 0, 1, 1, 2, 3]
    assert spread_queries(videos(0, 1, 1, 1), 4) == [0, 1, 2, 3]
    assert spread_queries(videos(*[None] * 9), 3) == [1, 4, 7]


# ------------------------------------------------------------------------------------ pictures


def test_near_on_the_map_is_alike():
    """Three directions in a plane: principal components keep every distance of unit vectors."""
    rng = np.random.default_rng(2)
    values = rng.normal(size=(3, 2))
    places, axes = map_places(values.astype(np.float32), "pca")
    rows = (values - values.mean(0)) / values.std(0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for a in range(3):
        for b in range(3):
            expected = 2 - 2 * rows[a] @ rows[b]
            assert ((places[a] - places[b]) ** 2).sum() == pytest.approx(expected, abs=1e-5)
    variances = places.var(0)
    assert variances[0] > variances[1]
    assert axes[0] == f"first component, {variances[0] / variances.sum():.0%} of the variance"
    same, _ = map_places(np.ones((4, 3), np.float32), "pca")
    assert not same.any()


def test_t_sne_keeps_groups_apart():
    rng = np.random.default_rng(3)
    group = np.arange(30) % 2
    values = rng.normal(size=(30, 8)) + 6 * np.eye(2, 8)[group]
    places, (title, _) = map_places(values.astype(np.float32), "tsne")
    assert title == "t-SNE, perplexity 9.67"
    distances = np.linalg.norm(places[:, None] - places, axis=2) + 1e9 * np.eye(30)
    assert (group[distances.argmin(1)] == group).all()


def figure_of(monkeypatch, *arguments):
    drawn = []
    monkeypatch.setattr(pictures, "write_figure", lambda figure, out: drawn.append((figure, out)))
    pictures.plot_map(*arguments, [4], "title", ("x", "y"), "out.png")
    ((figure, out),) = drawn
    assert out == "out.png"
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return figure.axes[0].collections, texts


def test_a_map_of_more_classes_than_it_can_tell_apart(monkeypatch):
    labels = np.concatenate([np.arange(120), np.arange(110)])  # the last ten have one video each
    places = np.random.default_rng(0).normal(size=(230, 2))
    names = [f"class {number}" for number in range(120)]
    drawn, texts = figure_of(monkeypatch, places, labels, names)
    assert texts == ["10 other classes", *names[:110], "queries, by row of the sheet"]
    np.testing.assert_array_equal(drawn[0].get_offsets(), places[110:120])
    np.testing.assert_array_equal(drawn[3].get_offsets(), places[[2, 122]])
    np.testing.assert_array_equal(drawn[-1].get_offsets(), places[[4]])
    looks = {
        (tuple(each.get_facecolor()[0]), each.get_paths()[0].vertices.tobytes())
        for each in drawn[1:111]
    }
    assert len(looks) == 110


def test_a_map_without_classes(monkeypatch):
    drawn, texts = figure_of(monkeypatch, np.eye(5, 2), np.full(5, -1), [])
    assert texts == ["queries, by row of the sheet"]
    assert len(drawn[0].get_offsets()) == 5


def test_a_sheet_frames_what_is_marked():
    wide, tall = (np.full((*shape, 3), 90, np.uint8) for shape in ((60, 80), (80, 40)))
    rows = [[pictures.SheetPanel(frame, "0.50  class", "n" * 60, frame is tall)
             for frame in (wide, wide, tall, wide)]]  # fmt: skip
    sheet = np.asarray(pictures.draw_sheet(rows, "title", ["note"])).astype(int)
    green = (sheet == pictures.SAME).all(-1)
    y, x = np.nonzero(green)
    height, width = pictures.SHEET_PX + 10, pictures.SHEET_PX // 2 + 10  # its shape is kept
    assert (np.ptp(y) + 1, np.ptp(x) + 1) == (height, width)
    assert green.sum() == height * width - (height - 10) * (width - 10)
    assert (sheet[y.min() + 5 : y.max() - 4, x.min() + 5 : x.max() - 4] == 90).all()


@pytest.mark.parametrize(("text", "width"), [("short", 100), ("v_SoccerJuggling_g23_c01", 100)])
def test_long_names_lose_their_middle(text, width):
    font = pictures.ImageFont.load_default(pictures.FONT_PX)
    fitted = pictures._fitted(text, font, width)
    assert font.getlength(fitted) <= width
    first, ellipsis, last = fitted.partition("…")
    assert text.startswith(first)
    assert text.endswith(last)
    assert bool(ellipsis) == (text != "short")


# ------------------------------------------------------------------------------- command line


def test_neighbors_on_the_command_line(checkpoint, data, tmp_path):
    out = tmp_path / "out"
    words = ("neighbors", checkpoint, "--data", data, "--out", out)
    done = savimae(*words)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "neighbors.json").read_text())
    assert (found["videos"], found["k"], len(found["queries"])) == (5, 4, 5)  # all there are
    with np.load(out / "features.npz") as content:
        values, labels, paths = (content[name] for name in ("values", "labels", "paths"))
    rows = StandardScaler().fit_transform(values.astype(np.float64))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for query in found["queries"]:
        own = paths.tolist().index(query["query"])
        order = [paths.tolist().index(each["video"]) for each in query["neighbours"]]
        assert sorted([own, *order]) == list(range(5))
        similarities = [each["similarity"] for each in query["neighbours"]]
        assert similarities == sorted(similarities, reverse=True)
        np.testing.assert_allclose(similarities, rows[order] @ rows[own], atol=1e-4)
        assert [each["class"] for each in query["neighbours"]] == [f"c{n}" for n in labels[order]]
    # All others are neighbours: the share is that of chance.
    assert found["own_class"]["share"] == found["own_class"]["chance"] == pytest.approx(0.4)
    assert found["own_class_in_other_recordings"] is None
    assert done.stdout.splitlines() == [
        "0.400 of the 4 nearest are of the video's own class (0.400 by chance), over 5 videos",
        *(f"wrote {out}/{name}" for name in ("neighbors.png", "map.png", "neighbors.json")),
    ]
    sheet = imageio.imread(out / "neighbors.png")
    assert (sheet == pictures.SAME).all(-1).any()
    assert (out / "map.png").stat().st_size > 10_000

    # A video from elsewhere, and one of the list by another name.
    elsewhere = encode(tmp_path / "elsewhere.avi", moving_frames(20)[:, :, ::-1])
    link = tmp_path / "link.avi"
    link.symlink_to(paths[3])
    done = savimae(*words, "--query", elsewhere, "--query", link, "--k", "2")
    assert done.returncode == 0, done.stderr
    first, second = json.loads((out / "neighbors.json").read_text())["queries"]
    assert (first["query"], first["class"]) == (str(elsewhere), None)
    assert len(first["neighbours"]) == 2
    assert (second["query"], second["class"]) == (paths[3], "c1")
    assert paths[3] not in [each["video"] for each in second["neighbours"]]

    # The same file under another name is as near as can be.
    shutil.copy(paths[3], tmp_path / "copy.avi")
    done = savimae(*words, "--query", tmp_path / "copy.avi", "--queries", "1", "--k", "1")
    first, second = json.loads((out / "neighbors.json").read_text())["queries"]
    assert first["neighbours"] == [{"video": paths[3], "class": "c1", "similarity": 1.0}]
    assert second["class"] in ("c0", "c1")


def test_recordings_and_lists_without_labels(checkpoint, data, tmp_path):
    """Videos of UCF101's names: neighbours of other recordings are counted as well."""
    for number, (name, group) in enumerate([("A", 1), ("A", 1), ("A", 2), ("B", 1), ("B", 2)]):
        source = data / f"c{number % 2}/v{number}.avi"
        target = tmp_path / f"videos/{name}/v_{name}_g0{group}_c0{number}.avi"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    words = ("neighbors", checkpoint, "--out", tmp_path / "out", "--k", "1")
    done = savimae(*words, "--data", tmp_path / "videos")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/neighbors.json").read_text())
    assert found["own_class"]["chance"] == pytest.approx((3 * 2 / 4 + 2 * 1 / 4) / 5)
    elsewhere = found["own_class_in_other_recordings"]
    # The first two have one of three others, the third two of four, of B one of four each.
    assert elsewhere["chance"] == pytest.approx((2 / 3 + 2 / 4 + 2 / 4) / 5)
    assert "nearest among other recordings are of the video's own class" in done.stdout
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{path}\n" for path in [*data.glob("*/*"), data / "c0/v0.avi"]))
    done = savimae(*words[:2], "--data", listed, "--out", tmp_path / "unlabelled")
    assert done.returncode == 0, done.stderr
    assert "note: 1 of 6 videos are others of" in done.stderr
    found = json.loads((tmp_path / "unlabelled/neighbors.json").read_text())
    assert found["own_class"] is None
    assert found["queries"][0]["class"] is None
    assert "own class" not in done.stdout


def test_neighbours_that_cannot_be_found_are_one_line(checkpoint, data, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    noise, out = random_bytes(tmp_path / "noise.avi"), tmp_path / "out"
    one = data / "c0/v0.avi"
    for words, code, message in [
        (("--data", one), 2, "v0.avi: one video has no neighbours"),
        (("--data", data, "--k", "5"), 2, "has 5 videos, so one has 4 others; say --k 4 or fewer"),
        (("--data", data, "--queries", "6"), 2, "--queries 6: there are only 5 videos"),
        (("--data", data, "--query", data), 2, "holds 5 videos; name one"),
        (("--data", data, "--query", noise), 1, "noise.avi: not decodable"),
        (("--data", data, "--layer", "3"), 2, "--layer 3 is not one of the 2 blocks"),
        (("--data", data, "--map", "umap"), 1, "install it with `pip install umap-learn`"),
        (("--data", data, "--map", "tsne"), 1, "`pip install 'savimae[probe]'`"),
        (("--data", tmp_path / "gone"), 2, "gone: no such file or folder"),
    ]:
        done = savimae("neighbors", checkpoint, "--out", out, *words)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert message in done.stderr
        assert not out.exists()
    done = savimae("neighbors", checkpoint, "--out", one, "--data", data)
    assert (done.returncode, done.stderr) == (2, f"savimae: {one} is a file; name a folder\n")
