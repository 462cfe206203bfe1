"""The attentive probe: what it computes, and that it finds what a mean cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from savimae.judging.attentive import AttentiveProbe, _statistics, attentive, fit, predict


def marked_tokens(n: int, seed: int, n_views: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[n, V, 12, 8]` of three classes: one token of each view, marked by its first value,
    holds the class; all others hold one at random. On average they say nothing.
    """
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    classes = rng.integers(0, 3, (n, n_views, 12))
    place = rng.integers(0, 12, (n, n_views))
    marked = np.arange(12) == place[..., None]
    classes = np.where(marked, y[:, None, None], classes)
    tokens = rng.normal(0, 0.1, (n, n_views, 12, 8))
    tokens[..., 0] += 4 * marked
    tokens[..., 1:4] += np.eye(3)[classes]
    return tokens.astype(np.float32), y


def test_it_is_cross_attention_with_one_query():
    torch.manual_seed(0)
    mean, whitening = torch.randn(12), torch.randn(12, 12)
    probe = AttentiveProbe(12, 3, 4, mean, whitening)
    for parameter in probe.parameters():
        torch.nn.init.normal_(parameter)
    reference = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        # Its query goes through a projection of its own; ours is learned as it is.
        reference.in_proj_weight.copy_(
            torch.cat((torch.eye(12), probe.key.weight, probe.value.weight))
        )
        zeros = torch.zeros(12)
        reference.in_proj_bias.copy_(torch.cat((zeros, zeros, probe.value.bias)))
        reference.out_proj.weight.copy_(probe.proj.weight)
        reference.out_proj.bias.copy_(probe.proj.bias)
    tokens = torch.randn(5, 7, 12)
    normal = (tokens - mean) @ whitening
    query = probe.query.flatten().expand(5, 1, 12)
    expected = probe.head(reference(query, normal, normal)[0][:, 0])
    torch.testing.assert_close(probe(tokens), expected, atol=1e-4, rtol=1e-5)


def test_tokens_are_whitened_and_what_never_changes_is_left_out(monkeypatch):
    monkeypatch.setattr("savimae.judging.attentive.PART", 100)
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(20, 2, 12, 5)) * [100, 1, 1, 0.01, 1] + [5, 0, 0, 0, 7]
    tokens[..., 2] += 3 * tokens[..., 1]  # correlated
    tokens[..., 4] = 7  # constant
    mean, whitening = _statistics(tokens.astype(np.float32))
    white = (tokens.reshape(-1, 5) - mean.double().numpy()) @ whitening.double().numpy()
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-3)
    # 0.01 squared is 1e-8 of 100 squared, and the constant is none: two directions are left out.
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.diag([0, 0, 1, 1, 1]), atol=1e-3)


def test_it_finds_what_a_mean_of_tokens_cannot():
    tokens, y = marked_tokens(150, 0)
    test_tokens, test_y = marked_tokens(90, 1)
    probe = fit(tokens, y, 2, 3e-3, 1e-2, 0)
    found = predict(probe, test_tokens)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    assert (found.argmax(1) == test_y).mean() > 0.9
    # Views are averaged: probabilities of a video are the mean of those of its views.
    of_views = [predict(probe, test_tokens[:, view : view + 1]) for view in (0, 1)]
    np.testing.assert_allclose(found, np.mean(of_views, 0), atol=1e-6)
    again = fit(tokens, y, 2, 3e-3, 1e-2, 0)
    assert all(
        torch.equal(a, b) for a, b in zip(probe.parameters(), again.parameters(), strict=True)
    )


def test_rate_and_decay_are_chosen_on_held_out_videos(monkeypatch):
    tokens, y = marked_tokens(60, 2, 1)
    parts = [(np.arange(12, 60), np.arange(12)), (np.arange(48), np.arange(48, 60))]
    seen = []

    class Fitted:
        def __init__(self, rate, decay):
            self.is_right = (rate, decay) == (1e-3, 1.0)

    def pretend(tokens, _y, _heads, rate, decay, _seed):
        seen.append((len(tokens), rate, decay))
        return Fitted(rate, decay)

    def answers(probe, tokens):
        return np.eye(3)[np.full(len(tokens), 0)] if not probe.is_right else np.eye(3)[of(tokens)]

    def of(tokens):  # the class, from the marked token
        marked = tokens[:, 0, :, 0].argmax(1)
        return tokens[np.arange(len(tokens)), 0, marked, 1:4].argmax(1)

    monkeypatch.setattr("savimae.judging.attentive.fit", pretend)
    monkeypatch.setattr("savimae.judging.attentive.predict", answers)
    labels = y + 5  # classes need not begin at 0
    classes, found, detail = attentive(tokens, labels, tokens[:9], parts, 2, 0, "test")
    assert classes.tolist() == [5, 6, 7]
    assert classes[found.argmax(1)].tolist() == labels[:9].tolist()
    assert detail == "rate 0.001, decay 1, 1.000 on held-out training videos"
    assert [n for n, _, _ in seen] == [48] * 8 + [60]
    _, _, detail = attentive(tokens, labels, tokens[:9], [], 2, 0, "test")
    assert detail.endswith("too few videos to choose them")


@pytest.mark.parametrize("value", [0.0, 7.5])
def test_values_that_never_change_do_no_harm(value, monkeypatch):
    monkeypatch.setattr("savimae.judging.attentive.LEAST_STEPS", 100)
    tokens, y = marked_tokens(30, 3)
    tokens[..., 7] = value
    assert np.isfinite(predict(fit(tokens, y, 2, 1e-3, 1e-2, 0), tokens)).all()
