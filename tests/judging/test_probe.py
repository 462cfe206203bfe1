"""Views, features and probes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from media import savimae
from models import MACHINE
from sklearn.linear_model import LogisticRegression

from savimae.judging.features import (
    Features,
)
from savimae.judging.probe import (
    draw_labelled,
    hold_out,
    linear,
    nearest_neighbours,
    probe,
    probe_features,
)
from savimae.system.errors import SavimaeError, UsageError

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
    monkeypatch.setattr("savimae.judging.probe.REGULARISATION", (0.1,))
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
    monkeypatch.setattr("savimae.judging.probe.FEW", 59)
    _, _, of_one = linear(x, y, x, [None] * 60, 0)
    hits = float(of_one.split(", ")[1].split()[0]) * 12
    assert hits == pytest.approx(round(hits), abs=0.01)


def test_scores_count_what_they_say():
    x = np.eye(6, dtype=np.float32).repeat(4, 0)
    y = np.arange(6).repeat(4)
    train = Features(x, y, [], {})
    wrong = np.array([0, 1, 2, 3, 4, 0])  # the last is really another
    test = Features(np.eye(6, dtype=np.float32), wrong, [], {})
    knn, line = probe_features("name", train, test, [None] * 24, 0)
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


def test_a_probe_on_the_command_line(checkpoint, data, tmp_path, monkeypatch):
    monkeypatch.setattr("savimae.judging.attentive.LEAST_STEPS", 200)
    out = tmp_path / "out"
    test = tmp_path / "test"
    shutil.copytree(data, test)
    words = ("probe", checkpoint, "--train", data, "--test", test, "--out", out)
    done = savimae(*words, "--attentive", "--clips", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "5 training videos, 5 test videos"
    rows = [*["pretrained"] * 3, *["untrained"] * 3, *["raw"] * 3, "most"]
    assert [line.split()[0] for line in lines[2:12]] == rows
    report = json.loads((out / "probe.json").read_text())
    assert report["chance"] == 0.6
    assert report["classes"] == ["c0", "c1"]
    assert [score["classifier"] for score in report["scores"]] == [
        "kNN", "linear", "attentive",
    ] * 3  # fmt: skip
    assert all(np.sum(score["confusion"]) == 5 for score in report["scores"])
    # The test videos are the training videos: a linear classifier tells dark from bright ones.
    assert report["scores"][7]["top1"] == report["scores"][8]["top1"] == 1
    with np.load(out / "pretrained-tokens-train.npz") as tokens:
        assert tokens["values"].shape == (5, 2, 64, 48)  # two clips of each video
    assert not (out / "pretrained-train.npz").exists()  # they follow from the tokens
    assert (out / "raw-pixels-train.npz").exists()
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


def test_tokens_that_do_not_fit_into_memory_are_refused(checkpoint, data, tmp_path, monkeypatch):
    monkeypatch.setattr("savimae.judging.probe.MEMORY_SHARE", 1e-9)
    words = (str(checkpoint), str(data), str(data), str(tmp_path / "out"), MACHINE)
    with pytest.raises(UsageError, match=r"keeps all tokens of 10 videos, 0\.0 GiB, and"):
        probe(*words, attentive=True, allow_overlap=True)


def test_labelled_videos_are_drawn_of_every_class():
    y = np.repeat([3, 5, 6], [30, 20, 4])
    draws = draw_labelled(y, 6, 0)
    assert len(draws) == 5
    for chosen in draws:
        assert (np.diff(chosen) > 0).all()
        assert np.bincount(y[chosen]).tolist() == [0, 0, 0, 6, 0, 6, 4]  # all that there are
    assert len({chosen.tobytes() for chosen in draws}) == 5
    for a, b in zip(draws, draw_labelled(y, 6, 0), strict=True):
        np.testing.assert_array_equal(a, b)
    (everything,) = draw_labelled(y, None, 0)
    assert everything.tolist() == list(range(54))


def test_several_numbers_of_labels_in_one_table(checkpoint, data, tmp_path):
    test = tmp_path / "test"
    shutil.copytree(data, test)
    out = tmp_path / "out"
    words = ("probe", checkpoint, "--train", data, "--test", test, "--out", out, "--no-baselines")
    done = savimae(*words, "--labels", "2,all", "--pool", "time")
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.splitlines()[1:6]]
    assert table[0][:6] == ["features", "classifier", "labels", "a", "class", "top-1"]
    assert [(row[1], row[2], row[4] == "±") for row in table[1:]] == [
        ("kNN", "2", True), ("linear", "2", True), ("kNN", "all", False), ("linear", "all", False),
    ]  # fmt: skip
    scores = json.loads((out / "probe.json").read_text())["scores"]
    assert [(score["labels"], len(score["draws"])) for score in scores] == [
        (2, 5), (2, 5), (None, 1), (None, 1),
    ]  # fmt: skip
    for score in scores:
        assert score["top1"] == pytest.approx(np.mean(score["draws"]))
    for words_of, message in (
        ("3", "--labels 3: no class of"), ("0", "'0' is not like 5,20,all"),
        ("few", "'few' is not like 5,20,all"),
    ):  # fmt: skip
        done = savimae(*words, "--labels", words_of)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr


def test_features_that_are_all_the_same_say_nothing():
    x, y = np.full((6, 9), 2.5, np.float32), np.array([0, 0, 0, 1, 1, 1])
    classes, probabilities, _ = linear(x, y, x[:2], [None] * 6, 0)
    assert classes.tolist() == [0, 1]
    np.testing.assert_allclose(probabilities, 0.5, atol=1e-6)
