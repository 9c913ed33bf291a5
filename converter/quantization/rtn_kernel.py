"""Rounding to nearest, compiled: rows of a weight to packed codes, scales and zero points.

A row passes once through the core's cache, where an expression of array operations would pass
through memory at each step. The loops are written so that LLVM makes vector instructions of them:
no index arithmetic, no slice inside a loop, 32-bit types throughout. No operation is reassociated
or fused, so the bits are those of the plain expressions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, int32, njit, uint8, uint32

from converter.quantization.kernel_cache import choose_kernel_cache

choose_kernel_cache()

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
# NaN is found by its bits (`round_rows`), so comparisons may leave it out of account. The sign of
# zero matters only where it is read from the values themselves.
_NO_NAN: dict[str, Any] = {**_OPTIONS, "fastmath": {"nnan", "nsz"}}

_LARGEST = 0x7F7FFFFF  # the bits of the largest finite float32


@njit(**_OPTIONS)
def round_rows(raw, bits, symmetric, codes, scales, zero_points):  # type: ignore[no-untyped-def]
    """Round rows to nearest; False when a value is NaN or infinite, with the rest undefined.

    Args:
        raw: (rows, columns), the bits of the values: int32 for float32, uint16 for bfloat16.
        bits: 4 or 8.
        symmetric: a signed scale, and no zero points.
        codes: uint8 (rows, blocks, block_size · bits / 8), written; of two 4-bit codes the earlier
            has the lower bits. Codes past the last column are 0.
        scales: float32 (rows, blocks), written.
        zero_points: uint8 (rows, ceil(blocks · bits / 8)), written when not symmetric; an odd
            4-bit row is padded with 8.
    """
    columns = raw.shape[1]
    rows, blocks, packed = codes.shape
    size = packed * 8 // bits
    stored = np.zeros((blocks, size), np.int32)
    values = stored.view(np.float32)
    integers = np.empty((blocks, size), np.int32)
    extreme = np.empty(blocks, np.int32)
    low, high = np.empty(blocks, np.float32), np.empty(blocks, np.float32)
    inverse, offset = np.empty(blocks, np.float32), np.empty(blocks, np.float32)
    points = np.full(blocks + 1, 1 << (bits - 1), np.int32)
    line, flat = stored.reshape(blocks * size), integers.reshape(blocks * size)
    largest = int32(0)
    for row in range(rows):
        largest = max(largest, _load(raw[row], line))
        if symmetric:
            _largest_magnitude(stored, extreme)
            _signed_scales(extreme.view(np.float32), bits, scales[row], inverse, offset)
        else:
            _extremes(values, low, high)
            _ranged_scales(low, high, bits, scales[row], inverse, offset)
            for block in range(blocks):
                points[block] = int32(offset[block])
            _pack(points, bits, zero_points[row])
        _round(values, inverse, offset, bits, integers)
        flat[columns:] = 0
        _pack(flat, bits, codes[row].reshape(blocks * packed))
    return largest <= _LARGEST


@njit(**_OPTIONS)
def _load(raw, stored):  # type: ignore[no-untyped-def]
    """Put the float32 bits of a row into `stored`; give the largest, the sign apart."""
    largest = int32(0)
    shift = uint32(16 if raw.itemsize == 2 else 0)
    for i in range(raw.size):
        value = int32(uint32(raw[i]) << shift)
        stored[i] = value
        largest = max(largest, int32(value & int32(0x7FFFFFFF)))
    return largest


@njit(**_OPTIONS)
def _largest_magnitude(stored, extreme):  # type: ignore[no-untyped-def]
    """The bits of each block's value of largest magnitude, the negative one on a tie.

    With the sign turned into the lowest bit, that is the largest unsigned integer: one reduction.
    In a block of zeros it is the first one, as a scan from the front finds it.
    """
    for block in range(stored.shape[0]):
        largest = uint32(0)
        for i in range(stored.shape[1]):
            value = uint32(stored[block, i])
            largest = max(largest, uint32(uint32(value << uint32(1)) | uint32(value >> uint32(31))))
        if largest <= uint32(1):
            extreme[block] = stored[block, 0]
        else:
            extreme[block] = int32(uint32(largest >> uint32(1)) | uint32(largest << uint32(31)))


@njit(**_NO_NAN)
def _extremes(values, low, high):  # type: ignore[no-untyped-def]
    for block in range(values.shape[0]):
        bottom = top = values[block, 0]
        for i in range(values.shape[1]):
            bottom, top = min(bottom, values[block, i]), max(top, values[block, i])
        low[block], high[block] = bottom, top


@njit(**_OPTIONS)
def _signed_scales(extreme, bits, scales, inverse, offset):  # type: ignore[no-untyped-def]
    half = float32(1 << (bits - 1))
    for block in range(scales.size):
        scale = extreme[block] / -half
        scales[block], offset[block] = scale, half
        inverse[block] = float32(0) if scale == 0 else float32(1) / scale


@njit(**_OPTIONS)
def _ranged_scales(low, high, bits, scales, inverse, offset):  # type: ignore[no-untyped-def]
    """The range, widened to hold 0, in 2^bits − 1 steps; `offset` is its zero point."""
    levels, half, zero = float32((1 << bits) - 1), float32(0.5), float32(0)
    for block in range(scales.size):
        bottom, top = min(low[block], zero), max(high[block], zero)
        scale = (top - bottom) / levels
        # Half away from zero, as C's roundf; the quotient is never negative.
        point = zero if scale == 0 else np.floor(-bottom / scale + half)
        scales[block], offset[block] = scale, min(max(point, zero), levels)
        inverse[block] = zero if scale == 0 else float32(1) / scale


@njit(**_OPTIONS)
def _round(values, inverse, offset, bits, integers):  # type: ignore[no-untyped-def]
    # Clamped at 0, half away from zero is floor(x + 0.5), and the conversion is that floor. These
    # comparisons are one instruction each; of NaN (zero over a denormal scale) they make 0.
    half, levels, zero = float32(0.5), float32((1 << bits) - 1), float32(0)
    for block in range(values.shape[0]):
        factor, start = inverse[block], offset[block] + half
        for i in range(values.shape[1]):
            value = values[block, i] * factor + start
            value = value if value > zero else zero
            integers[block, i] = int32(value if value < levels else levels)


@njit(**_OPTIONS)
def _pack(integers, bits, packed):  # type: ignore[no-untyped-def]
    if bits == 8:
        for i in range(packed.size):
            packed[i] = uint8(integers[i])
    else:
        for i in range(packed.size):
            packed[i] = uint8(integers[2 * i] | int32(integers[2 * i + 1] << 4))
