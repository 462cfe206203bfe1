"""The attentive probe: a learned query looks at all tokens of a frozen encoder, then a classifier.

As in V-JEPA and later (Bardes et al., 2024, arXiv:2404.08471): a mean over tokens, or one direction
for all of them, cannot ask where the mouth is; attention can.

Legend: B samples (views of videos), N tokens, D their width, d width of a head, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from savimae.system.progress import Progress

RATES = (1e-3, 3e-3)  # of AdamW, from which held-out training videos choose ...
DECAYS = (1e-2, 1.0)  # ... together with these weight decays
EPOCHS = 40  # or as many as make ...
LEAST_STEPS = 1000
BATCH = 64
DECAY_TO = 0.01  # of the rate, by a cosine
SMALLEST_VARIANCE = 1e-6  # of the tokens in a direction, over the largest
PART = 2**14  # tokens at a time


class AttentiveProbe(nn.Module):
    """Cross-attention with one query for each head, then a linear layer.

    Args:
        mean, whitening: float32 `[D]` and `[D, D]`: `(tokens - mean) @ whitening` have variance 1
            in every direction and no correlations. Tokens of a trained encoder differ so much more
            in some directions than in others that no rate of learning suits them all.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, dim: int, heads: int, n_classes: int, mean: Tensor, whitening: Tensor):
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.empty(heads, dim // heads))
        self.key = nn.Linear(dim, dim, bias=False)  # a bias would add the same to all scores
        self.value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, n_classes)
        nn.init.trunc_normal_(self.query, std=1.0)
        for layer in (self.key, self.value, self.proj):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", mean)
        self.register_buffer("whitening", whitening)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens float32 `[B, N, D]` -> logits `[B, K]`.

        Keys and values are linear in the tokens and there is one query a head, so the weights can
        be multiplied first: scores are tokens times one vector a head, and the values of the mean
        token are the mean of the values. So is whitening: it turns that vector, adds the same to
        all scores, and what it does to tokens it does to their mean. No token is touched for
        anything but two products, and the result is the same.
        """
        width = self.query.shape[1]
        # [D, D] -> [heads, d, D]; with [heads, d] -> [heads, D]
        keys, of_values = (each.weight.unflatten(0, (-1, width)) for each in (self.key, self.value))
        directions = torch.einsum("hd,hde->he", self.query, keys) @ self.whitening.T
        weights = (tokens @ directions.T * width**-0.5).softmax(1)  # [B, N, heads]
        pooled = (weights.transpose(1, 2) @ tokens - self.mean) @ self.whitening  # [B, heads, D]
        values = torch.einsum("bhe,hde->bhd", pooled, of_values)
        mixed = values.flatten(1) + self.value.bias  # weights add up to 1
        return self.head(self.proj(mixed))


def fit(
    tokens: np.ndarray, y: np.ndarray, heads: int, rate: float, decay: float, seed: int
) -> AttentiveProbe:
    """Train a probe on tokens float32 `[videos, V, N, D]`: every view is a sample with its label.

    Args:
        y: int `[videos]`, classes from 0.
    """
    n_views, dim = tokens.shape[1], tokens.shape[3]
    samples = torch.from_numpy(tokens).flatten(0, 1)
    labels = torch.from_numpy(y).repeat_interleave(n_views)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = AttentiveProbe(dim, heads, int(y.max()) + 1, *_statistics(tokens))
        optimizer = torch.optim.AdamW(probe.parameters(), lr=rate, weight_decay=decay, fused=True)
        n_batches = -(-len(samples) // BATCH)
        epochs = max(EPOCHS, -(-LEAST_STEPS // n_batches))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, epochs * n_batches, rate * DECAY_TO
        )
        for _ in range(epochs):
            for rows in torch.randperm(len(samples)).split(BATCH):
                loss = nn.functional.cross_entropy(probe(samples[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return probe.eval()


def predict(probe: AttentiveProbe, tokens: np.ndarray) -> np.ndarray:
    """Probabilities of the classes, averaged over views: `[videos, V, N, D]` -> `[videos, K]`."""
    samples = torch.from_numpy(tokens).flatten(0, 1)
    with torch.no_grad():
        found = [probe(each).softmax(1) for each in samples.split(BATCH)]
    return torch.cat(found).unflatten(0, tokens.shape[:2]).mean(1).double().numpy()


def attentive(
    tokens: np.ndarray,
    y: np.ndarray,
    test_tokens: np.ndarray,
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    heads: int,
    seed: int,
    title: str,
) -> tuple[np.ndarray, np.ndarray, str]:
    """Fit a probe, its rate and weight decay chosen on held-out training videos.

    Args:
        tokens: float32 `[videos, V, N, D]`; test_tokens alike.
        y: int `[videos]`.
        parts: indices of kept and of held-out videos; empty: nothing can be held out.
        title: what the progress is called.

    Returns:
        Classes [K], probabilities [tests, K], and what was chosen.
    """
    classes, numbers = np.unique(y, return_inverse=True)
    settings = list(itertools.product(RATES, DECAYS))
    accuracy = dict.fromkeys(settings, 0.0)
    tasks = [(setting, part) for setting in settings for part in parts]
    with Progress(title, delay_s=1.0) as progress:
        for number, ((rate, decay), (kept, held_out)) in enumerate(tasks):
            progress.show(number / (len(tasks) + 1), f"fit {number + 1}/{len(tasks) + 1}")
            probe = fit(tokens[kept], numbers[kept], heads, rate, decay, seed)
            hits = predict(probe, tokens[held_out]).argmax(1) == numbers[held_out]
            accuracy[rate, decay] += float(hits.mean()) / len(parts)
        best = max(settings, key=lambda each: (accuracy[each], -each[0], each[1]))
        progress.show(len(tasks) / (len(tasks) + 1), f"fit {len(tasks) + 1}/{len(tasks) + 1}")
        probabilities = predict(fit(tokens, numbers, heads, *best, seed), test_tokens)
    detail = f"rate {best[0]:g}, decay {best[1]:g}"
    if not parts:
        return classes, probabilities, detail + ", too few videos to choose them"
    return classes, probabilities, f"{detail}, {accuracy[best]:.3f} on held-out training videos"


def _statistics(tokens: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean float32 `[D]` of all tokens, and what whitens them, float32 `[D, D]`.

    Directions in which they hardly differ are left out: they would be rounding, made large.
    """
    flat = torch.from_numpy(tokens).flatten(0, 2)
    mean = flat.mean(0)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for part in flat.split(PART):
        centred = (part - mean).double()
        covariance += centred.T @ centred
    variances, directions = torch.linalg.eigh(covariance / len(flat))
    is_there = variances > SMALLEST_VARIANCE * variances[-1]
    scale = torch.where(is_there, variances.clamp(min=1e-300).rsqrt(), 0.0)
    return mean, (directions * scale).float()
