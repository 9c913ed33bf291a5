"""The search for each block's scale and zero point, compiled; see `converter.quantization.search`.

A block is read from memory once and stays in the core's cache for all candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, njit, uint8

from converter.quantization.kernel_cache import choose_kernel_cache

choose_kernel_cache()

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
# Sums may be taken in any order, and multiplications fused: a candidate's error is a measure, not
# a stored value. The order depends on nothing but the block size.
_SUMS: dict[str, Any] = {**_OPTIONS, "fastmath": {"reassoc", "contract", "nsz", "nnan"}}


@njit(**_OPTIONS)
def propose_symmetric(blocks, importance, shrinks, half, scales):  # type: ignore[no-untyped-def]
    """Scales of the least error among `shrinks` of the spanning one, with either sign.

    Args:
        blocks: float32 (rows, blocks, block_size).
        importance: float32 (blocks, block_size).
        shrinks: float32, fractions of the scale that spans the block's range.
        half: the zero point, 2^(bits−1).
        scales: float32 (rows, blocks), written.
    """
    low, high = float32(-half), float32(half - 1)
    for row in range(blocks.shape[0]):
        values = blocks[row]
        for block in range(values.shape[0]):
            bottom, top = _range(values[block])
            spanning = (bottom if -bottom >= top else top) / low
            best, found = float32(-1), float32(0)
            for shrink in shrinks:
                for sign in (float32(1), float32(-1)):
                    scale = spanning * (shrink * sign)
                    gain, fit = _fit(values[block], importance[block], scale, low, high)
                    if gain > best:
                        best, found = gain, fit
            gain, fit = _fit(values[block], importance[block], found, low, high)
            scales[row, block] = fit if gain > best else found


@njit(**_OPTIONS)
def propose_asymmetric(  # type: ignore[no-untyped-def]
    blocks, importance, shrinks, offsets, levels, scales, zeros
):
    """As `propose_symmetric`, with zero points (rows, blocks) near the middle of the range.

    `offsets` are added to a candidate's zero point, which lies in [0, `levels`].
    """
    nothing, levels = float32(0), float32(levels)
    for row in range(blocks.shape[0]):
        values = blocks[row]
        for block in range(values.shape[0]):
            bottom, top = _range(values[block])
            bottom, top = min(bottom, nothing), max(top, nothing)
            centre, span = (bottom + top) * float32(0.5), top - bottom
            best, found, point = float32(-1), nothing, nothing
            for shrink in shrinks:
                scale = span * (shrink / levels)
                middle = nothing if scale == 0 else centre / scale
                base = np.rint(levels * float32(0.5) - middle)
                for offset in offsets:
                    zero = min(max(base + offset, nothing), levels)
                    gain, fit = _fit(values[block], importance[block], scale, -zero, levels - zero)
                    if gain > best:
                        best, found, point = gain, fit, zero
            gain, fit = _fit(values[block], importance[block], found, -point, levels - point)
            scales[row, block] = fit if gain > best else found
            zeros[row, block] = point


@njit(**_OPTIONS)
def encode(blocks, importance, scales, zeros, levels, codes, errors):  # type: ignore[no-untyped-def]
    """Nearest codes uint8 (rows, blocks, block_size) and weighted errors float32 (rows, blocks)."""
    levels = float32(levels)
    for row in range(blocks.shape[0]):
        for block in range(blocks.shape[1]):
            errors[row, block] = _encode(
                blocks[row, block],
                importance[block],
                scales[row, block],
                zeros[row, block],
                levels,
                codes[row, block],
            )


@njit(**_SUMS)
def _range(values):  # type: ignore[no-untyped-def]
    bottom = top = values[0]
    for i in range(values.size):
        bottom, top = min(bottom, values[i]), max(top, values[i])
    return bottom, top


@njit(**_SUMS)
def _fit(values, importance, scale, low, high):  # type: ignore[no-untyped-def]
    """The gain of the integers that a scale proposes, and the scale that fits them best."""
    inverse = float32(0) if scale == 0 else float32(1) / scale
    product, square = float32(0), float32(0)
    for i in range(values.size):
        integer = min(max(np.rint(values[i] * inverse), low), high)
        weighted = importance[i] * integer
        product += weighted * values[i]
        square += weighted * integer
    fit = float32(0) if square == 0 else product / square
    return product * fit, fit


@njit(**_SUMS)
def _encode(values, importance, scale, zero, levels, codes):  # type: ignore[no-untyped-def]
    inverse = float32(0) if scale == 0 else float32(1) / scale
    error, nothing = float32(0), float32(0)
    for i in range(values.size):
        code = min(max(np.rint(values[i] * inverse) + zero, nothing), levels)
        codes[i] = uint8(code)
        difference = (code - zero) * scale - values[i]
        error += importance[i] * difference * difference
    return error
