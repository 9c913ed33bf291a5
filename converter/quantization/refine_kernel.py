"""Coordinate descent on the scale and the codes of one block, compiled; see `refine`.

Rows lie along the last dimension and never meet, so that every loop runs over neighbours in memory
and a row's result depends on no other row. In each function `hessian` is float32 (inputs, inputs),
`integers` (codes less zero point) and `descent` (H Δ) are float32 (inputs, rows), and `change`
float32 (rows,) gathers by how much a row's error tr(ΔW H ΔWᵀ) changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, njit

from converter.quantization.kernel_cache import choose_kernel_cache

choose_kernel_cache()

_OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz", "nnan"},
}


@njit(**_OPTIONS)
def best_scales(hessian, integers, descent, scales):  # type: ignore[no-untyped-def]
    """The exact minimiser over a block's scale, s + z·(H Δ) / z·H z, by row.

    Returns:
        wanted float32 (rows,), and for `move_scales` H z (inputs, rows), z·(H Δ), z·H z (rows,).
    """
    count, rows = integers.shape
    products = np.zeros((count, rows), np.float32)
    slope, square = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
    wanted = np.empty(rows, np.float32)
    for i in range(count):
        for k in range(count):
            factor = hessian[i, k]
            for row in range(rows):
                products[i, row] += factor * integers[k, row]
        for row in range(rows):
            square[row] += products[i, row] * integers[i, row]
            slope[row] += descent[i, row] * integers[i, row]
    for row in range(rows):
        step = float32(0) if square[row] == 0 else slope[row] / square[row]
        wanted[row] = scales[row] + step
    return wanted, products, slope, square


@njit(**_OPTIONS)
def move_scales(  # type: ignore[no-untyped-def]
    hessian, integers, descent, scales, wanted, products, slope, square, change
):
    """Take the scales `wanted`: update `descent` of the block and of the inputs after it."""
    count, rows = integers.shape
    steps, moved = np.empty(rows, np.float32), np.empty(rows, np.float32)
    for row in range(rows):
        step = wanted[row] - scales[row]
        change[row] += step * (step * square[row] - float32(2) * slope[row])
        scales[row], steps[row] = wanted[row], step
    for i in range(count):
        for row in range(rows):
            descent[i, row] -= products[i, row] * steps[row]
    for k in range(count, descent.shape[0]):
        moved[:] = 0
        for i in range(count):
            factor = hessian[k, i]
            for row in range(rows):
                moved[row] += factor * integers[i, row]
        for row in range(rows):
            descent[k, row] -= moved[row] * steps[row]


@njit(**_OPTIONS)
def move_codes(hessian, integers, descent, scales, zeros, highest, change):  # type: ignore[no-untyped-def]
    """Revisit the codes of a block in turn, each to its exact minimiser with all else fixed.

    `scales` and `zeros` are float32 (rows,), `highest` the largest code. `descent` is updated for
    the inputs after the one at work, past the block too.
    """
    count, rows = integers.shape
    moved, highest = np.empty(rows, np.float32), float32(highest)
    for j in range(count):
        curvature = hessian[j, j]
        for row in range(rows):
            scale, zero, old = scales[row], zeros[row], integers[j, row]
            inverse = float32(0) if scale == 0 else float32(1) / scale
            wanted = old + descent[j, row] * inverse / curvature
            new = min(max(np.rint(wanted), -zero), highest - zero)
            step = (new - old) * scale
            change[row] += step * (step * curvature - float32(2) * descent[j, row])
            integers[j, row], moved[row] = new, step
        for k in range(j + 1, descent.shape[0]):
            factor = hessian[j, k]
            for row in range(rows):
                descent[k, row] -= factor * moved[row]
