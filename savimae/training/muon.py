"""Muon: every step of a weight matrix is as large in all its directions.

The momentum of a matrix is brought near the closest matrix whose singular values are all 1 (Jordan
et al., 2024, "Muon: an optimizer for hidden layers in neural networks"), by five steps of a
Newton-Schulz iteration. Its scale is that of Liu et al., 2025 (arXiv:2502.16982): 0.2 sqrt(larger
side), about the size of AdamW's steps, so that one learning rate and one weight decay suit both.

PyTorch's own Muon multiplies in bf16 only, which processors without it do a hundred times slower.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
ITERATIONS = 5
# p(s) = a s + b s^3 + c s^5 takes singular values from (0, 1] to 0.7 to 1.2 in five turns.
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
SIZE = 0.2  # of a step's elements, as a root mean square
SMALLEST_NORM = 1e-7


class Muon(torch.optim.AdamW):
    """Muon for matrices, AdamW for all other parameters.

    Args:
        matrices: parameters `[R, C]`. One of `[3 C, C]` is taken for three matrices `[C, C]`, those
            of queries, keys and values.
        weight_decay: of the matrices.
        others: groups of parameters, as of AdamW, with their own weight decay.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        weight_decay: float,
        others: list[dict[str, Any]],
        betas: tuple[float, float],
    ):
        of_matrices = {"params": list(matrices), "weight_decay": weight_decay, "momentum": MOMENTUM}
        super().__init__([of_matrices, *others], lr=0.0, betas=betas, fused=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of `load_state_dict`: AdamW looks for its own numbers, which matrices do not have."""
        groups = state["param_groups"]
        others = [group for group in groups if "momentum" not in group]
        super().__setstate__({**state, "param_groups": others})
        self.param_groups = groups

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if "momentum" not in group]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if "momentum" in group:
                self._step_matrices(group)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        parameters = [each for each in group["params"] if each.grad is not None]
        pieces: list[Tensor] = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
            pieces += _pieces(parameter.grad.lerp(buffer, group["momentum"]))
        steps = iter(_orthogonal(pieces))
        for parameter in parameters:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            for piece in _pieces(parameter):
                piece.add_(next(steps), alpha=-group["lr"] * SIZE * max(piece.shape) ** 0.5)


def _pieces(matrix: Tensor) -> tuple[Tensor, ...]:
    rows, columns = matrix.shape
    return matrix.split(columns) if rows == 3 * columns else (matrix,)


def _orthogonal(matrices: list[Tensor]) -> list[Tensor]:
    """`newton_schulz` of each, those of one shape together."""
    flat = [each.T if each.shape[0] > each.shape[1] else each for each in matrices]
    found: dict[int, Tensor] = {}
    for shape in dict.fromkeys(each.shape for each in flat):
        places = [place for place, each in enumerate(flat) if each.shape == shape]
        done = newton_schulz(torch.stack([flat[place] for place in places]))
        found.update(zip(places, done, strict=True))
    return [
        found[place].T if each.shape[0] > each.shape[1] else found[place]
        for place, each in enumerate(matrices)
    ]


def newton_schulz(matrices: Tensor) -> Tensor:
    """Matrices float `[M, R, C]`, R <= C, with singular values near 1 instead of their own.

    With X / |X| = U S V^T the result is U p(…p(S)) V^T: nothing but products is needed.
    """
    a, b, c = POLYNOMIAL
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + SMALLEST_NORM)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x
