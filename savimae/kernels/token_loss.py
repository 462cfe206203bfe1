"""The error of predicted tokens, from their pixels as they are: targets are never written.

Legend: M predicted tokens, R tokens of the batch, C channels (3 or 1), V = t * P * P * C values of
a token in (t, row, column, channel) order, L = P * C values of one row of a patch, n = V / C pixels
of a token.

Of a token with pixels x (0 to 255) and prediction p, for each channel c:

    mean = sum(x) / (255 n),  variance = (sum(x^2) - sum(x)^2 / n) / (255^2 (n - 1))
    target = (x / 255 - mean) / (sqrt(variance) + 1e-6)
           = (n x - sum(x)) * scale, scale = 1 / (255 n (sqrt(variance) + 1e-6))
    loss = mean((p - target)^2),  d(sum of squared errors) / dp = 2 (p - target)

n x - sum(x) is an integer, which float32 holds exactly for tokens of up to 65,000 pixels: nothing
is lost where a token is nearly constant. Rows of L values lie one after another and are worked on
as vectors, each place with accumulators of its own.

Predictions are float32, or bfloat16 as uint16: the upper half of a float32.
"""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int32, uint16, uint32
from numba.extending import overload

from savimae.kernels._jit import compile_lock, jit

CHANNELS = 3
EPSILON = 1e-6  # added to the deviation, as TARGET_EPS of `model.loss`


@jit
def _scratch(row_values):
    """Sums, squares, totals, scale (see `_normalize`) and the bits of a row of predictions."""
    return (
        np.empty(row_values, np.uint32), np.empty(row_values, np.uint32),
        np.empty(row_values, np.int32), np.empty(row_values, np.float32),
        np.empty(row_values, np.uint32),
    )  # fmt: skip


@jit
def _scale(n_pixels, channels, sums, squares, totals, scale):
    """Totals and scales of each channel from the sums of its places [L]; returns n_pixels."""
    n = float64(n_pixels)
    row_values = sums.shape[0]
    for c in range(channels):
        total, total_squares = float64(0), float64(0)
        for j in range(c, row_values, channels):
            total += sums[j]
            total_squares += squares[j]
        variance = max(total_squares - total * total / n, 0.0) / (255.0 * 255.0 * (n - 1.0))
        for j in range(c, row_values, channels):
            totals[j] = total  # a whole number
            scale[j] = 1.0 / (255.0 * n * (np.sqrt(variance) + EPSILON))
    return int32(n_pixels)


@jit
def _normalize(token, row_values, channels, is_normalized, sums, squares, totals, scale):
    """Writes totals int32 [L] and scale float32 [L]; returns n: target = (n x - totals) * scale.

    token uint8 [V]; sums, squares uint32 [L] are scratch.
    """
    if not is_normalized:
        totals[:] = 0
        scale[:] = float32(1 / 255)
        return int32(1)
    n_rows = token.shape[0] // row_values
    sums[:] = 0
    squares[:] = 0
    for r in range(n_rows):
        row = token[r * row_values : (r + 1) * row_values]
        for j in range(row_values):
            value = uint32(row[j])
            sums[j] += value
            squares[j] += value * value
    if channels == CHANNELS:  # as a constant, which saves a tenth of the time
        return _scale(token.shape[0] // CHANNELS, CHANNELS, sums, squares, totals, scale)
    return _scale(token.shape[0] // channels, channels, sums, squares, totals, scale)


def _read_row(values, bits, floats):
    """Predictions of a row, float32 or uint16 [L] -> writes them as float32 [L].

    bits uint32 [L] is the memory of `floats`.
    """
    if values.dtype == np.uint16:
        bits[:] = values.astype(np.uint32) << np.uint32(16)
    else:
        floats[:] = values


def _write_row(bits, floats, out):
    """Writes float32 [L] as the type of `out`, bfloat16 rounded to the nearest, ties to even."""
    if out.dtype == np.uint16:
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        out[:] = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    else:
        out[:] = floats


@overload(_read_row)
def _compiled_read_row(values, bits, floats):
    """One loop for each type, chosen when a kernel is compiled."""
    del bits, floats

    def of_bfloat16(values, bits, floats):  # noqa: ARG001
        for j in range(values.shape[0]):
            bits[j] = uint32(values[j]) << uint32(16)

    def of_float32(values, bits, floats):  # noqa: ARG001
        for j in range(values.shape[0]):
            floats[j] = values[j]

    return of_bfloat16 if values.dtype == uint16 else of_float32


@overload(_write_row)
def _compiled_write_row(bits, floats, out):
    del bits, floats

    def as_bfloat16(bits, floats, out):  # noqa: ARG001
        for j in range(out.shape[0]):
            odd = (bits[j] >> uint32(16)) & uint32(1)
            out[j] = uint16((bits[j] + uint32(0x7FFF) + odd) >> uint32(16))

    def as_float32(bits, floats, out):  # noqa: ARG001
        for j in range(out.shape[0]):
            out[j] = floats[j]

    return as_bfloat16 if out.dtype == uint16 else as_float32


@jit
def token_losses(
    tokens, wanted, prediction, row_values, is_normalized, first, last, losses, channels=CHANNELS
):
    """Mean squared error of the tokens first to last - 1; writes losses float32 [M].

    tokens uint8 [R, V]; wanted int64 [>= M], the row in `tokens` of each prediction; prediction
    float32 or uint16 [>= M, V].
    """
    sums, squares, totals, scale, bits = _scratch(row_values)
    total = np.empty(row_values, np.float32)
    predicted = bits.view(np.float32)
    n_values = tokens.shape[1]
    for m in range(first, last):
        token = tokens[wanted[m]]
        n = _normalize(token, row_values, channels, is_normalized, sums, squares, totals, scale)
        total[:] = 0
        for start in range(0, n_values, row_values):
            pixels = token[start : start + row_values]
            _read_row(prediction[m, start : start + row_values], bits, predicted)
            for j in range(row_values):
                error = predicted[j] - float32(n * int32(pixels[j]) - totals[j]) * scale[j]
                total[j] += error * error
        whole = float64(0)
        for j in range(row_values):
            whole += total[j]
        losses[m] = float32(whole / n_values)


@jit
def token_gradients(
    tokens,
    wanted,
    prediction,
    row_values,
    is_normalized,
    first,
    last,
    factor,
    gradient,
    channels=CHANNELS,
):
    """factor * (prediction - target) of the tokens first to last - 1; writes gradient [>= M, V].

    `gradient` has the type of `prediction`; the other arguments are those of `token_losses`.
    """
    sums, squares, totals, scale, bits = _scratch(row_values)
    predicted = bits.view(np.float32)
    n_values = tokens.shape[1]
    for m in range(first, last):
        token = tokens[wanted[m]]
        n = _normalize(token, row_values, channels, is_normalized, sums, squares, totals, scale)
        for start in range(0, n_values, row_values):
            pixels = token[start : start + row_values]
            _read_row(prediction[m, start : start + row_values], bits, predicted)
            for j in range(row_values):
                error = predicted[j] - float32(n * int32(pixels[j]) - totals[j]) * scale[j]
                predicted[j] = factor * error
            _write_row(bits, predicted, gradient[m, start : start + row_values])


def compile_token_kernels() -> None:
    """Compile the kernels, or load them from the cache, once for all processes that share it."""
    tokens = np.zeros((1, 12), np.uint8)
    wanted = np.zeros(1, np.int64)
    losses = np.zeros(1, np.float32)
    with compile_lock(token_losses):
        for dtype in (np.float32, np.uint16):
            prediction = np.zeros((1, 12), dtype)
            token_losses(tokens, wanted, prediction, 6, True, 0, 1, losses, CHANNELS)
            token_gradients(
                tokens,
                wanted,
                prediction,
                6,
                True,
                0,
                1,
                np.float32(1),
                np.zeros_like(prediction),
                CHANNELS,
            )
