"""Losses, targets and weights of fine-tuning, by hand; balanced sampling; frozen blocks."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from savimae.data.lists import Video
from savimae.model.classifier import VideoClassifier
from savimae.model.config import model_config
from savimae.samples.augment import soft_labels
from savimae.samples.balance import BalancedSamples
from savimae.training.finetune import FinetuneConfig
from savimae.training.objectives import (
    OfClasses,
    OfLabels,
    OfValues,
    class_weights,
    label_weights,
    scale_of,
)
from savimae.training.outputs import Outputs, Scale


def labelled(*labels):
    return [Video(str(n), str(n), label) for n, label in enumerate(labels)]


def several(*labels):
    return [Video(str(n), str(n), labels=each) for n, each in enumerate(labels)]


def log_p(logit):
    return -math.log(1 + math.exp(-logit))


def test_cross_entropy_weighs_classes():
    videos = labelled(0, 0, 0, 1)
    weights = class_weights(videos, 2)
    assert weights.tolist() == [4 / (2 * 3), 4 / (2 * 1)]
    assert np.mean(weights[[0, 0, 0, 1]]) == 1
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    objective = OfClasses(2, 0.0, weights)
    wanted = np.stack([objective.target(videos[0], videos[3], 0.75),
                       objective.target(videos[3], videos[3], 1.0)])  # fmt: skip
    np.testing.assert_allclose(wanted, [[0.75, 0.25], [0, 1]])
    loss, sums = objective.loss(logits, torch.from_numpy(wanted))
    first = weights[0] * 0.75 * -log_p(1.0) + weights[1] * 0.25 * -log_p(-1.0)
    assert float(loss) == pytest.approx(first + weights[1] * -log_p(2.0), rel=1e-6)
    assert objective.log_fields({**sums, "n_samples": 2.0}) == {"train_top1": 1.0}


def test_labels_are_asked_for_one_by_one():
    videos = several((0, 2), (2,), (), (1, 2))
    np.testing.assert_allclose(soft_labels((0, 2), (2,), 0.75, 3, 0.0), [0.75, 0, 1])
    np.testing.assert_allclose(soft_labels((0,), (), 1.0, 3, 0.2), [0.9, 0.1, 0.1], rtol=1e-6)
    objective = OfLabels(3, 0.0, None)
    target = torch.from_numpy(objective.target(videos[0], videos[1], 0.75))[None]
    logits = torch.tensor([[1.0, -2.0, 3.0]])
    loss, sums = objective.loss(logits, target)
    by_hand = 0.75 * -log_p(1.0) + 0.25 * -log_p(-1.0) - log_p(2.0) - log_p(3.0)
    assert float(loss) == pytest.approx(by_hand, rel=1e-6)
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    assert float(loss) == pytest.approx(float(plain), rel=1e-6)
    assert objective.log_fields(sums) == {"train_f1": 1.0}  # both of both
    # Each label is a question of its own with two answers: n / (2 n_k) for either.
    weights = label_weights(videos, 3)
    np.testing.assert_allclose(weights, [[4 / 6, 4 / 2], [4 / 6, 4 / 2], [4 / 2, 4 / 6]])
    weighed, _ = OfLabels(3, 0.0, weights).loss(logits, target)
    by_hand = (0.75 * 2 * -log_p(1.0) + 0.25 * 2 / 3 * -log_p(-1.0) - 2 / 3 * log_p(2.0)
               - 2 / 3 * log_p(3.0))  # fmt: skip
    assert float(weighed) == pytest.approx(by_hand, rel=1e-6)
    assert label_weights(several((0,), (0,)), 1).tolist() == [[0, 0.5]]


def test_numbers_are_standardised():
    videos = [Video(str(n), str(n), values=each) for n, each in enumerate(((1, 50), (3, 70)))]
    scale = scale_of(videos)
    assert scale == Scale((2.0, 60.0), (1.0, 10.0))
    objective = OfValues(scale, "mse")
    targets = np.stack([objective.target(videos[0], videos[0], 1.0),
                        objective.target(videos[0], videos[1], 0.25)])  # fmt: skip
    np.testing.assert_allclose(targets, [[-1, -1], [0.5, 0.5]])
    logits = torch.tensor([[0.0, 2.0], [0.5, 0.0]])
    loss, sums = objective.loss(logits, torch.from_numpy(targets))
    assert float(loss) == pytest.approx((1 + 9) / 2 + (0 + 0.25) / 2)
    # Clips are wrong by 1 and 30, and by 0 and 5, in their units.
    found = objective.log_fields({**sums, "n_samples": 2.0})
    assert found["train_mae"] == pytest.approx((31 / 2 + 5 / 2) / 2)
    loss, _ = OfValues(scale, "huber").loss(logits, torch.from_numpy(targets))
    assert float(loss) == pytest.approx((0.5 + 2.5) / 2 + (0 + 0.125) / 2)
    finished = Outputs(["a", "b"], "regress", scale).finish(logits)
    torch.testing.assert_close(finished, torch.tensor([[2.0, 80.0], [2.5, 60.0]]))
    state = {"head.weight": torch.tensor([[1.0], [2.0]]), "head.bias": torch.tensor([0.0, 1.0])}
    folded = scale.fold(state)
    torch.testing.assert_close(folded["head.weight"], torch.tensor([[1.0], [20.0]]))
    torch.testing.assert_close(folded["head.bias"], torch.tensor([2.0, 70.0]))
    with pytest.raises(ValueError, match="std above 0"):
        Scale((1.0,), (0.0,))


def test_balanced_samples_take_classes_equally_often():
    labels = [0] * 7 + [1] * 2 + [2]
    samples = BalancedSamples(labels, 3)
    of_epoch = [[samples.video(index, epoch) for index in range(10)] for epoch in range(6)]
    for epoch in of_epoch:
        assert sorted(Counter(labels[video] for video in epoch).values()) == [3, 3, 4]
    uses = Counter(video for epoch in of_epoch for video in epoch)
    assert [sum(uses[n] for n in range(10) if labels[n] == k) for k in range(3)] == [20, 20, 20]
    assert {uses[n] for n in range(7)} == {2, 3}  # a class goes through all of its videos
    assert uses[7] == uses[8] == 10
    assert uses[9] == 20
    # A function of seed, epoch and place alone, in whatever order it is asked for.
    again = BalancedSamples(labels, 3)
    found = {
        (epoch, index): again.video(index, epoch) for epoch in (5, 0, 3) for index in (9, 0, 4)
    }
    assert all(of_epoch[epoch][index] == video for (epoch, index), video in found.items())
    other = BalancedSamples(labels, 4)
    assert [other.video(index, 0) for index in range(10)] != of_epoch[0]


def test_frozen_blocks_ask_for_no_gradient():
    shape = model_config("tiny", input_size=32, num_frames=4, encoder_depth=3)
    model = VideoClassifier(shape, 3, head_scale=1.0)
    expected = model(torch.zeros(1, 4, 32, 32, 3))
    model.encoder.freeze(2)
    clips = torch.zeros(1, 4, 32, 32, 3)
    assert not model.encoder.whole(clips, layer=2).requires_grad  # nothing is kept up to there
    assert torch.equal(model(clips), expected)
    model(clips).sum().backward()
    learned = {name for name, each in model.named_parameters() if each.grad is not None}
    assert learned == {
        name for name, _ in model.named_parameters()
        if not name.startswith(("encoder.patch_embed", "encoder.blocks.0.", "encoder.blocks.1."))
    }  # fmt: skip
    with pytest.raises(ValueError, match="4 frozen blocks; the encoder has 3"):
        model.encoder.freeze(4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "rank"}, "task 'rank' is not one of classify, multilabel, regress"),
        ({"loss": "mse"}, "--loss is for --task regress"),
        ({"task": "regress", "loss": "mae"}, "loss 'mae' is not one of mse, huber"),
        ({"task": "regress", "class_weights": "balanced"}, "--class-weights is for classes and la"),
        (
            {"task": "regress", "label_smoothing": 0.1},
            "--label-smoothing is for labels; --task reg",
        ),
        ({"task": "regress", "sampling": "balanced"}, "--sampling balanced is for classes; --task"),
        ({"task": "multilabel", "sampling": "balanced"}, "of several labels --class-weights bal"),
        (
            {"task": "multilabel", "test": None, "dataset": "ucf101"},
            "--dataset has one class a vid",
        ),
        ({"class_weights": "x"}, "class_weights 'x' is not one of none, balanced"),
        ({"freeze": -1}, "freeze must be at least 0"),
    ],
)
def test_options_that_a_task_has_no_use_for(changes, message):
    with pytest.raises(ValueError, match=message):
        FinetuneConfig("train", "out", **{"test": "test", **changes})


def test_defaults_depend_on_the_task():
    def of(**changes):
        config = FinetuneConfig("train", "out", test="test", **changes)
        return (*config.mixing, config.smoothing)

    assert of() == (0.8, 1.0, 0.1)
    assert of(task="multilabel") == (0.8, 1.0, 0.0)
    assert of(task="multilabel", label_smoothing=0.2) == (0.8, 1.0, 0.2)
    assert of(task="regress") == (0.0, 0.0, 0.0)
    assert of(task="regress", mixup=0.4, label_smoothing=0.0) == (0.4, 0.0, 0.0)
