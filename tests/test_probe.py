"""Views, features and probes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from media import encode, moving_frames, random_bytes, savimae, write_frames
from sklearn.linear_model import LogisticRegression
from test_model import clips_for, small_model

from savimae.clips import Box, ClipConfig
from savimae.convert import load_model
from savimae.errors import SavimaeError, UsageError
from savimae.features import (
    Features,
    encoder_features,
    fingerprint,
    make_features,
    pixel_features,
)
from savimae.lists import Video, find_videos
from savimae.lock import sole_writer
from savimae.pretrained import Machine
from savimae.probe import hold_out, linear, nearest_neighbours, probe, score
from savimae.views import ViewReader, Views, spread_clips, spread_crops

MACHINE = Machine(torch.device("cpu"), "fp32", 2, 1)

# ----------------------------------------------------------------------------------------- views


def test_clips_are_spread_from_the_start_to_the_end():
    config = ClipConfig(num_frames=3, sampling_rate=4)  # spans 9 frames
    assert spread_clips(20, config, 1).tolist() == [[5, 9, 13]]  # 11 frames of room
    assert spread_clips(20, config, 3).tolist() == [[0, 4, 8], [6, 10, 14], [11, 15, 19]]
    assert spread_clips(9, config, 2).tolist() == [[0, 4, 8], [0, 4, 8]]
    assert spread_clips(6, config, 2).tolist() == [[0, 4, 4], [0, 4, 4]]  # a short video


def test_crops_are_spread_along_the_longer_side():
    assert spread_crops(240, 320, None) == [Box(0, 0, 320, 240)]
    assert spread_crops(240, 320, 1) == [Box(40, 0, 240, 240)]
    assert spread_crops(240, 320, 3) == [
        Box(0, 0, 240, 240), Box(40, 0, 240, 240), Box(80, 0, 240, 240),
    ]  # fmt: skip
    assert spread_crops(320, 240, 2) == [Box(0, 0, 240, 240), Box(0, 80, 240, 240)]
    assert spread_crops(50, 50, 3) == [Box(0, 0, 50, 50)] * 3


@pytest.mark.parametrize("kind", ["frames", "video"])
def test_views_show_the_frames_and_crops_that_they_should(kind, tmp_path):
    """Frame i is as bright as 10 i on its left and 10 i + 5 on its right."""
    frames = np.zeros((20, 32, 64, 3), np.uint8)
    frames += 10 * np.arange(20, dtype=np.uint8)[:, None, None, None]
    frames[:, :, 32:] += 5
    if kind == "frames":
        path = write_frames(tmp_path / "v", frames, ".png")
    else:
        path = encode(tmp_path / "v.mkv", frames, "ffv1", "bgr0")
    reader = ViewReader(ClipConfig(3, 4, input_size=16), Views(clips=2, crops=2))
    views = reader.read(Video(str(path), "v"))
    assert views.shape == (4, 3, 16, 16, 3)
    starts = [0, 11]
    for clip in range(2):
        for crop in range(2):
            expected = [10 * (starts[clip] + 4 * i) + 5 * crop for i in range(3)]
            assert views[2 * clip + crop].mean((1, 2, 3)).tolist() == expected


def test_views_that_cannot_be():
    with pytest.raises(ValueError, match="clips must be at least 1, not 0"):
        Views(clips=0)
    with pytest.raises(ValueError, match="crops must be at least 1, not -1"):
        Views(crops=-1)


# -------------------------------------------------------------------------------------- features


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "model.pt"
    model = small_model()
    torch.save({"model": model.state_dict(), "config": model.config.__dict__}, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five videos of two classes, told apart by their brightness."""
    root = tmp_path_factory.mktemp("probe") / "videos"
    for index in range(5):
        frames = moving_frames(14 + index) // (2 if index % 2 else 1)
        encode(root / f"c{index % 2}/v{index}.avi", frames)
    return root


def reader_of(model, **views):
    shape = model.config
    return ViewReader(ClipConfig(shape.num_frames, 2, shape.image_size), Views(**views))


def test_features_are_means_of_tokens_over_views(checkpoint, data, tmp_path):
    model = load_model(str(checkpoint)).eval()
    videos = find_videos(str(data)).videos
    reader = reader_of(model, clips=2, crops=3)
    shape = model.config
    whole = {}
    for pool in ("mean", "time", "tokens"):
        source = encoder_features(model, pool, MACHINE)
        path = str(tmp_path / f"{pool}.npz")
        whole[pool] = make_features(path, source, videos, reader, MACHINE)
        with np.load(path) as content:
            np.testing.assert_array_equal(content["values"], whole[pool].values)
            assert content["labels"].tolist() == [0, 0, 0, 1, 1]
            assert content["paths"].tolist() == [video.path for video in videos]
            assert json.loads(str(content["settings"]))["weights"] == fingerprint(model)
    for index, video in enumerate(videos):
        with torch.no_grad():
            tokens, pooled = model.encode(torch.from_numpy(reader.read(video)))
        # Batches of other sizes: float32 sums in another order.
        close = {"rtol": 1e-4, "atol": 1e-5}
        np.testing.assert_allclose(whole["tokens"].values[index], tokens.mean(0), **close)
        np.testing.assert_allclose(whole["mean"].values[index], pooled.mean(0), **close)
        by_time = tokens.mean(0).reshape(shape.time_steps, -1, shape.encoder_dim).mean(1)
        np.testing.assert_allclose(whole["time"].values[index], by_time, **close)
    assert not list(tmp_path.glob("*.partial"))


def test_raw_pixels_are_averages_of_places():
    model = small_model()
    clips = clips_for(model.config, 2)
    values = pixel_features(2).extract(clips)
    t_n = model.config.num_frames // 2
    assert values.shape == (2, t_n * 3 * 64)
    expected = clips[1].float().mean((0, 1, 2)) / 255  # of each channel
    assert torch.allclose(values[1].view(t_n, 3, 64).mean((0, 2)), expected, atol=1e-6)


def test_features_go_on_where_they_were_left(checkpoint, data, tmp_path, monkeypatch):
    monkeypatch.setattr("savimae.features.CHUNK_BATCHES", 1)  # of two videos
    model = load_model(str(checkpoint)).eval()
    videos = find_videos(str(data)).videos
    reader = reader_of(model)
    source = encoder_features(model, "mean", MACHINE)
    expected = make_features(str(tmp_path / "a.npz"), source, videos, reader, MACHINE)
    calls = []

    def interrupted(clips):
        calls.append(len(clips))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return source.extract(clips)

    path = str(tmp_path / "b.npy")
    broken = type(source)(interrupted, source.settings)
    with pytest.raises(KeyboardInterrupt):
        make_features(path, broken, videos, reader, MACHINE)
    assert [p.name for p in tmp_path.glob("b*")] == ["b.npy.partial"]
    again = make_features(path, broken, videos, reader, MACHINE)
    assert calls == [2, 2, 2, 1]  # the first two videos were not done again
    np.testing.assert_array_equal(again.values, expected.values)
    assert json.loads((tmp_path / "b.json").read_text())["labels"] == [0, 0, 0, 1, 1]
    # There already: nothing is computed.
    make_features(path, broken, videos, reader, MACHINE)
    assert len(calls) == 4
    with pytest.raises(UsageError, match=r"b\.npy was made with other settings: pool is 'mean'"):
        make_features(path, encoder_features(model, "time", MACHINE), videos, reader, MACHINE)


def test_broken_features_are_one_line(checkpoint, data, tmp_path):
    model = load_model(str(checkpoint)).eval()
    videos = find_videos(str(data)).videos
    source, reader = encoder_features(model, "mean", MACHINE), reader_of(model)
    random_bytes(tmp_path / "x.npz")
    with pytest.raises(SavimaeError, match=r"x\.npz: not features that savimae wrote; delete it"):
        make_features(str(tmp_path / "x.npz"), source, videos, reader, MACHINE)
    with pytest.raises(UsageError, match=r"x\.csv: name a file that ends in \.npz or \.npy"):
        make_features(str(tmp_path / "x.csv"), source, videos, reader, MACHINE)
    random_bytes(tmp_path / "c1/bad.avi")
    bad = [*videos, Video(str(tmp_path / "c1/bad.avi"), "c1/bad", 1)]
    with pytest.raises(SavimaeError, match=r"bad\.avi: .*take it off the list"):
        make_features(str(tmp_path / "y.npz"), source, bad, reader, MACHINE)
    chunk = tmp_path / "y.npz.partial/chunk-000000.npz"
    random_bytes(chunk)
    with pytest.raises(SavimaeError, match=r"chunk-000000\.npz: not a whole chunk"):
        make_features(str(tmp_path / "y.npz"), source, bad, reader, MACHINE)


def test_features_on_the_command_line(checkpoint, data, tmp_path):
    out = tmp_path / "f.npz"
    words = ("features", checkpoint, "--data", data, "--out", out, "--pool", "time", "--clips", "2")
    done = savimae(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: [5, 4, 48] of 5 videos\n"
    for wrong, message in (
        (("--clips", "0"), "clips must be at least 1, not 0"),
        (("--sampling-rate", "0"), "sampling_rate must be at least 1"),
    ):
        done = savimae(*words, *wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr


# ---------------------------------------------------------------------------------------- probes


def test_neighbours_vote_by_their_similarity():
    """Standardising first: the second axis, which tells the classes apart, is tiny."""
    x = np.array([[5, 0.01], [-5, 0.01], [5, -0.01], [-5, -0.01]], np.float32)
    classes, votes, detail = nearest_neighbours(
        x, np.array([3, 3, 7, 7]), np.array([[0.0, 0.02], [0.0, -0.02]]), [], 0
    )
    assert classes.tolist() == [3, 7]
    assert classes[votes.argmax(1)].tolist() == [3, 7]
    # Cosine similarities are +-1/sqrt(2): votes weigh as exp(sqrt(2) / 0.07), all but one.
    assert votes[0, 0] == pytest.approx(1 / (1 + np.exp(-(2**0.5) / 0.07)), rel=1e-6)
    assert detail == "k 4"


def test_the_linear_probe_chooses_on_held_out_training_videos():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = rng.normal(size=(60, 5)) + 3 * np.eye(3, 5)[y]
    x_test = rng.normal(size=(30, 5)) + 3 * np.eye(3, 5)[np.arange(30) % 3]
    classes, probabilities, detail = linear(x, y, x_test, [None] * 60, 0)
    assert (classes[probabilities.argmax(1)] == np.arange(30) % 3).mean() > 0.85
    assert detail.startswith("C ")
    # Shuffled labels: nothing to find, and held-out videos say so.
    _, _, detail = linear(x, rng.permutation(y), x_test, [None] * 60, 0)
    assert float(detail.split(", ")[1].split()[0]) < 0.7


def test_held_out_videos_are_of_other_recordings():
    y = np.repeat(np.arange(4), 20)
    groups = [f"g{index // 4}" for index in range(80)]
    parts = hold_out(y, groups, 3)
    assert sorted(np.concatenate([held for _, held in parts])) == list(range(80))
    for kept, held in parts:
        assert sorted([*kept, *held]) == list(range(80))
        assert {groups[i] for i in kept}.isdisjoint(groups[i] for i in held)
        assert len(held) == 16
        assert np.bincount(y[held], minlength=4).min() == 4
    x = np.eye(4)
    for y, groups in (([0, 1, 2, 3], [None] * 4), ([0, 0, 1, 1], ["one"] * 4)):
        classes, probabilities, detail = linear(x, np.array(y), x, groups, 0)
        assert (classes[probabilities.argmax(1)] == y).all()
        assert detail == "C 1, too few videos to choose it"


def test_many_features_are_rotated_and_nothing_changes(monkeypatch):
    monkeypatch.setattr("savimae.probe.REGULARISATION", (0.1,))
    rng = np.random.default_rng(6)
    y = np.arange(40) % 4
    x = rng.normal(0, 3, (40, 300)) + np.eye(4)[y] @ rng.normal(0, 2, (4, 300))
    x_test = rng.normal(0, 3, (20, 300))
    classes, probabilities, detail = linear(x, y, x_test, [None] * 40, 0)
    deviation, mean = x.std(0), x.mean(0)
    assert detail.startswith("C 0.1, ")
    model = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8)
    model.fit((x - mean) / deviation, y)
    expected = model.predict_proba((x_test - mean) / deviation)
    assert classes.tolist() == [0, 1, 2, 3]
    assert expected.std() > 0.02
    np.testing.assert_allclose(probabilities, expected, atol=2e-3)


def test_up_to_a_thousand_videos_are_held_out_in_turn(monkeypatch):
    """Five parts; what is said is their mean."""
    rng = np.random.default_rng(5)
    y = np.arange(60) % 3
    x = np.eye(3)[y] + rng.normal(0, 1.0, (60, 3))
    _, _, detail = linear(x, y, x, [None] * 60, 0)
    best, mean = float(detail.split(",")[0][2:]), float(detail.split(", ")[1].split()[0])
    hits = 0
    for kept, held in hold_out(y, [None] * 60, 0):
        deviation = x[kept].std(0)
        model = LogisticRegression(C=best, max_iter=2000).fit(x[kept] / deviation, y[kept])
        hits += (model.predict(x[held] / deviation) == y[held]).sum()
    assert mean == pytest.approx(hits / 60, abs=0.001)
    monkeypatch.setattr("savimae.probe.FEW", 59)
    _, _, of_one = linear(x, y, x, [None] * 60, 0)
    hits = float(of_one.split(", ")[1].split()[0]) * 12
    assert hits == pytest.approx(round(hits), abs=0.01)


def test_scores_count_what_they_say():
    x = np.eye(6, dtype=np.float32).repeat(4, 0)
    y = np.arange(6).repeat(4)
    train = Features(x, y, [], {})
    wrong = np.array([0, 1, 2, 3, 4, 0])  # the last is really another
    test = Features(np.eye(6, dtype=np.float32), wrong, [], {})
    knn, line = score("name", train, test, [None] * 24, 0)
    assert (knn.features, knn.classifier, line.classifier) == ("name", "kNN", "linear")
    for each in (knn, line):
        assert each.top1 == pytest.approx(5 / 6)
        assert each.top5 >= each.top1
        assert each.confusion[0] == [1, 0, 0, 0, 0, 1]
        assert np.trace(each.confusion) == 5


def test_a_test_without_the_first_class_keeps_the_labels_of_training(checkpoint, data, tmp_path):
    """Its folder numbers c1 as 0: every prediction would count for the wrong class."""
    test = tmp_path / "test"
    shutil.copytree(data / "c1", test / "c1")
    words = (str(checkpoint), str(data), str(test), str(tmp_path / "out"), MACHINE)
    result = probe(*words, baselines=False)
    assert result.classes == ["c0", "c1"]
    n_test = len(list((data / "c1").iterdir()))
    assert all(np.sum(score.confusion, 1).tolist() == [0, n_test] for score in result.scores)
    (test / "c1").rename(test / "c2")
    with pytest.raises(UsageError, match="has class c2, which no training video of"):
        probe(*words, baselines=False)


def test_a_probe_on_the_command_line(checkpoint, data, tmp_path):
    out = tmp_path / "out"
    test = tmp_path / "test"
    shutil.copytree(data, test)
    words = ("probe", checkpoint, "--train", data, "--test", test, "--out", out)
    done = savimae(*words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "5 training videos, 5 test videos"
    assert [line.split()[0] for line in lines[2:9]] == [
        "pretrained", "pretrained", "untrained", "untrained", "raw", "raw", "most",
    ]  # fmt: skip
    report = json.loads((out / "probe.json").read_text())
    assert report["chance"] == 0.6
    assert report["classes"] == ["c0", "c1"]
    assert [score["classifier"] for score in report["scores"]] == ["kNN", "linear"] * 3
    assert all(np.sum(score["confusion"]) == 5 for score in report["scores"])
    # The test videos are the training videos: a linear classifier tells dark from bright ones.
    assert report["scores"][5]["top1"] == 1
    assert (out / "confusion.png").stat().st_size > 10_000
    listed = tmp_path / "list.txt"
    listed.write_text(f"{data}/c0/v0.avi\n")
    done = savimae("probe", checkpoint, "--train", listed, "--test", test, "--out", out)
    assert done.returncode == 2
    assert "v0.avi has no label; write `path label` lines" in done.stderr
    listed.write_text(f"{data}/c0/v0.avi 7\n")
    done = savimae("probe", checkpoint, "--train", data, "--test", listed, "--out", out)
    assert done.returncode == 2
    assert "v0.avi has label 7, which no training video of" in done.stderr
    done = savimae("probe", checkpoint, "--train", data, "--test", data, "--out", out)
    assert done.returncode == 2
    assert "5 of 5 test videos are training videos as well" in done.stderr
    words = ("--train", data, "--test", data, "--out", tmp_path / "overlap", "--no-baselines")
    done = savimae("probe", checkpoint, *words, "--allow-overlap")
    assert done.returncode == 0, done.stderr
    assert "warning: 5 of 5 test videos are training videos as well" in done.stderr
    assert json.loads((tmp_path / "overlap/probe.json").read_text())["overlap"] == 5
    assert report["overlap"] == 0
    same = tmp_path / "same.txt"
    same.write_text(f"{data}/c0/v0.avi 1\n{data}/c0/v1.avi 1\n")
    with pytest.raises(UsageError, match=r"same\.txt: all videos have one label"):
        probe(str(checkpoint), str(same), str(same), str(tmp_path / "p"), MACHINE)
    done = savimae("probe", checkpoint, "--train", data, "--test", listed, "--out", listed)
    assert (done.returncode, done.stderr) == (2, f"savimae: {listed} is a file; name a folder\n")


def test_features_that_another_process_makes(checkpoint, data, tmp_path):
    model = load_model(str(checkpoint)).eval()
    videos = find_videos(str(data)).videos
    path, out = str(tmp_path / "x.npz"), str(tmp_path / "out")
    with sole_writer(path + ".partial"), sole_writer(out):
        with pytest.raises(SavimaeError, match=r"x\.npz\.partial: process .* is writing it; wait"):
            make_features(
                path, encoder_features(model, "mean", MACHINE), videos, reader_of(model), MACHINE
            )
        with pytest.raises(SavimaeError, match=r"out: process .* is writing it; wait"):
            probe(str(checkpoint), str(data), str(data), out, MACHINE, allow_overlap=True)
    assert list(tmp_path.iterdir()) == []
    make_features(path, pixel_features(2), videos, reader_of(model), MACHINE)
    assert [each.name for each in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": np.arange(4) + 0.5}, "not a whole chunk"),
        ({"indices": np.arange(4) - 1}, "not a whole chunk"),
        ({"indices": np.arange(4) + 2}, "not a whole chunk"),
        ({"indices": np.array(3)}, "not a whole chunk"),
        ({"values": np.zeros((3, 12), np.float32)}, "not a whole chunk"),
        ({"values": np.zeros(5, np.float32)}, "not a whole chunk"),
        ({"values": np.zeros((5, 12), np.int64)}, "not a whole chunk"),
        ({"indices": np.array([0, 0, 1, 2, 3])}, "not of every video once"),
    ],
    ids=str,
)
def test_chunks_of_other_contents_are_one_line(checkpoint, data, tmp_path, changes, message):
    model = load_model(str(checkpoint)).eval()
    videos = find_videos(str(data)).videos
    assert len(videos) == 5
    source, reader = encoder_features(model, "mean", MACHINE), reader_of(model)
    path = tmp_path / "f.npz"
    settings = make_features(str(path), source, videos, reader, MACHINE).settings
    path.unlink()
    work = tmp_path / "f.npz.partial"
    work.mkdir()
    (work / "config.json").write_text(json.dumps({**settings, "batch_size": MACHINE.batch_size}))
    whole = {"indices": np.arange(5), "values": np.zeros((5, 12), np.float32)}
    np.savez(work / "chunk-000000.npz", **{**whole, **changes})
    with pytest.raises(SavimaeError, match=rf"f\.npz\.partial.*{message}"):
        make_features(str(path), source, videos, reader, MACHINE)


def test_features_of_other_contents_are_one_line(checkpoint, data, tmp_path):
    model = load_model(str(checkpoint)).eval()
    videos = find_videos(str(data)).videos
    source, reader = encoder_features(model, "mean", MACHINE), reader_of(model)
    path = tmp_path / "f.npz"
    made = make_features(str(path), source, videos, reader, MACHINE)
    for values, settings in (
        (made.values[:2], json.dumps(made.settings)),
        (made.values.astype("U9"), json.dumps(made.settings)),
        (made.values, "[1]"),
        (made.values, "[" * 100_000),
    ):
        np.savez(path, values=values, settings=np.array(settings))
        with pytest.raises(SavimaeError, match=r"f\.npz: not features that savimae wrote"):
            make_features(str(path), source, videos, reader, MACHINE)


def test_a_probe_of_features_that_are_no_numbers(checkpoint, data, tmp_path):
    words = (str(checkpoint), str(data), str(data), str(tmp_path), MACHINE)
    probe(*words, baselines=False, allow_overlap=True)
    path = tmp_path / "pretrained-test.npz"
    with np.load(path) as found:
        content = dict(found)
    content["values"][0, 0] = np.nan
    np.savez(path, **content)
    with pytest.raises(SavimaeError, match=r"pretrained-test\.npz: holds what is no finite number"):
        probe(*words, baselines=False, allow_overlap=True)
