"""The error of predicted tokens: compiled, interpreted, and in plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from savimae.kernels import reference
from savimae.kernels import token_loss as module

# (values of a row of a patch, rows of a token): base, patches of 8, one frame of 2 x 2 pixels
SHAPES = {"base": (48, 32), "small patches": (24, 16), "tiny": (6, 2)}


def as_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 whose lower half is zero -> uint16."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 that bfloat16 holds exactly."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def example(row_values: int, n_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of a batch, some of them ugly; which are predicted; predictions."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, (30, row_values * n_rows), np.uint8)
    tokens[3] = 77  # constant: a deviation of 0
    tokens[4] = 0
    tokens[4, -1] = 255  # one bright value
    tokens[5] = rng.integers(100, 102, tokens.shape[1])  # two levels apart by one
    wanted = np.array([3, 4, 5, 3, *range(29, 9, -1)])
    return tokens, wanted, rounded(rng.normal(size=(len(wanted), tokens.shape[1])).astype("f4"))


@pytest.mark.parametrize("is_compiled", [True, False], ids=["compiled", "interpreted"])
@pytest.mark.parametrize("is_normalized", [True, False])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_the_reference(shape, half, is_normalized, is_compiled, monkeypatch):
    row_values, n_rows = SHAPES[shape]
    tokens, wanted, prediction = example(row_values, n_rows)
    given = as_bfloat16(prediction) if half else prediction
    losses = np.full(len(wanted), -1, np.float32)
    gradient = np.full_like(given, 7)
    run, gradients = module.token_losses, module.token_gradients
    if not is_compiled:
        monkeypatch.setattr(module, "_normalize", module._normalize.py_func)
        run, gradients = run.py_func, gradients.py_func
    first, last = 1, len(wanted) - 1  # what is outside of them is left alone
    run(tokens, wanted, given, row_values, is_normalized, first, last, losses)
    gradients(
        tokens, wanted, given, row_values, is_normalized, first, last, np.float32(0.25), gradient
    )
    expected = reference.token_losses(tokens[wanted], prediction, is_normalized)
    # Sums of up to 32 rows in float32.
    np.testing.assert_allclose(losses[first:last], expected[first:last], rtol=2e-6)
    assert losses[0] == losses[-1] == -1
    wanted_gradient = reference.token_gradients(tokens[wanted], prediction, is_normalized, 0.25)
    found = gradient
    if half:
        found = (gradient.astype(np.uint32) << 16).view(np.float32)
    # bfloat16 keeps 8 bits. A target of the token with one bright value is up to 23, in float32.
    np.testing.assert_allclose(
        found[first:last], wanted_gradient[first:last],
        rtol=2**-8 if half else 1e-6, atol=0.25 * 23 * 2**-23,
    )  # fmt: skip
    assert (gradient[[0, -1]] == 7).all()


@pytest.mark.parametrize("is_compiled", [True, False], ids=["compiled", "interpreted"])
@pytest.mark.parametrize("is_normalized", [True, False])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_gray_tokens(half, is_normalized, is_compiled, monkeypatch):
    """One channel: rows of 16 values, 32 of them; a token has one mean and one deviation."""
    tokens, wanted, prediction = example(16, 32)
    given = as_bfloat16(prediction) if half else prediction
    losses, gradient = np.empty(len(wanted), np.float32), np.empty_like(given)
    run, gradients = module.token_losses, module.token_gradients
    if not is_compiled:
        monkeypatch.setattr(module, "_normalize", module._normalize.py_func)
        run, gradients = run.py_func, gradients.py_func
    n = len(wanted)
    run(tokens, wanted, given, 16, is_normalized, 0, n, losses, 1)
    gradients(tokens, wanted, given, 16, is_normalized, 0, n, np.float32(0.25), gradient, 1)
    expected = reference.token_losses(tokens[wanted], prediction, is_normalized, 1)
    np.testing.assert_allclose(losses, expected, rtol=2e-6)  # sums of 32 rows in float32
    found = (gradient.astype(np.uint32) << 16).view(np.float32) if half else gradient
    np.testing.assert_allclose(
        found, reference.token_gradients(tokens[wanted], prediction, is_normalized, 0.25, 1),
        rtol=2**-8 if half else 1e-6, atol=0.25 * 23 * 2**-23,
    )  # fmt: skip


def test_bfloat16_is_rounded_to_the_nearest_and_ties_to_even():
    values = np.array([1.0, 1.00390625, 1.01171875, -2.5, 1 + 2**-9 + 2**-20], np.float32)
    out = np.zeros(5, np.uint16)
    module._write_row(values.view(np.uint32), values, out)
    # Between 1 and 1 + 2**-7 the middle goes to the even one; a little above the middle goes up.
    assert ((out.astype(np.uint32) << 16).view(np.float32)).tolist() == [
        1.0, 1.0, 1.015625, -2.5, 1.0,
    ]  # fmt: skip


def test_no_global_lock_is_held():
    assert module.token_losses.targetoptions["nogil"]
