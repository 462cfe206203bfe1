"""Summaries of tests of labels and numbers, against values by hand and other libraries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from savimae.data.lists import Video
from savimae.system.errors import SavimaeError
from savimae.training.classifier_test import summarize_labels, summarize_values
from savimae.training.metrics import average_precision, f1_scores, r_squared, spearman


def test_average_precision_by_hand():
    scores, is_true = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    assert average_precision(scores, is_true) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert average_precision(np.full(4, 0.5), is_true) == 0.5  # one threshold: half are positive
    assert average_precision(scores, np.zeros(4, bool)) is None


def test_metrics_are_those_of_scikit_learn_and_scipy():
    from sklearn import metrics

    rng = np.random.default_rng(0)
    for n in (5, 40):
        scores = rng.integers(0, 6, n) / 6  # many are equal
        is_true = rng.random(n) < 0.4
        is_true[0] = True
        expected = metrics.average_precision_score(is_true, scores)
        assert average_precision(scores, is_true) == pytest.approx(expected, rel=1e-12)
        given, wanted = rng.random((n, 5)) < 0.5, rng.random((n, 5)) < 0.3
        given[:, 3] = wanted[:, 3] = False  # not defined
        given[0, 4], wanted[:, 4] = True, False  # 0
        micro, macro, of_label = f1_scores(given, wanted)
        assert micro == pytest.approx(metrics.f1_score(wanted, given, average="micro"))
        options = {"average": "macro", "zero_division": np.nan}
        assert macro == pytest.approx(metrics.f1_score(wanted, given, **options))
        assert (of_label[3], of_label[4]) == (None, 0.0)
        predicted, true = rng.integers(0, 5, n) + 0.5, rng.normal(size=n)
        predicted[:2] = 0.5, 3.5
        assert r_squared(predicted, true) == pytest.approx(metrics.r2_score(true, predicted))
        rank = stats.spearmanr(predicted, true).statistic
        assert spearman(predicted, true) == pytest.approx(rank, abs=1e-12)
    assert f1_scores(np.zeros((2, 1), bool), np.zeros((2, 1), bool)) == (None, None, [None])
    assert r_squared(np.arange(3.0), np.ones(3)) is None
    assert spearman(np.ones(3), np.arange(3.0)) is None


def test_a_summary_of_labels():
    videos = [Video(str(n), str(n), labels=each) for n, each in enumerate(((0, 1), (), (1,)))]
    likely = np.array([[0.9, 0.4, 0.6], [0.8, 0.3, 0.1], [0.1, 0.5, 0.2]])
    found = summarize_labels(likely, videos, ["a", "b", "c"])
    # a: its one video comes first. b: its two videos come first. c: nobody has it.
    assert found["map"] == 1.0
    # Given: a, c; a; b. True: a, b; none; b. So 2 of 4 given and 2 of 3 true ones.
    assert found["f1_micro"] == pytest.approx(2 * 2 / (4 + 3))
    assert found["f1_macro"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert found["of_label"]["c"] == {"videos": 0, "ap": None, "f1": 0.0}
    assert found["of_label"]["b"]["videos"] == 2
    with pytest.raises(SavimaeError, match="no finite numbers"):
        summarize_labels(likely * np.nan, videos, ["a", "b", "c"])


def test_a_summary_of_numbers():
    pairs = ((1.0, 10.0), (2.0, 10.0), (3.0, 40.0))
    videos = [Video(str(n), str(n), values=each) for n, each in enumerate(pairs)]
    predicted = np.array([[1, 20], [2, 20], [6, 20]], np.float32)
    found = summarize_values(predicted, videos, ["a", "b"])
    assert found["of_value"]["a"] == {
        "mae": 1.0, "rmse": pytest.approx(3**0.5), "r2": 1 - 9 / 2, "spearman": pytest.approx(1.0),
    }  # fmt: skip
    assert found["of_value"]["b"]["mae"] == pytest.approx(40 / 3)
    assert found["of_value"]["b"]["spearman"] is None  # all predictions are the same
    assert found["mae"] == pytest.approx((1 + 40 / 3) / 2)
    assert found["spearman"] is None
    assert found["true"] == [list(pair) for pair in pairs]
