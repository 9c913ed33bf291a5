"""GPTQ's rounding of a group of inputs, compiled; see `converter.quantization.gptq`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, njit, uint8

from converter.quantization.kernel_cache import choose_kernel_cache

choose_kernel_cache()

# Multiplications may be fused with additions. Inputs and rows are not summed over here, so that a
# row's codes depend on no other row.
_OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz", "nnan"},
}


@njit(**_OPTIONS)
def round_group(  # type: ignore[no-untyped-def]
    targets, columns, feedback, block, scales, zeros, highest, codes, errors
):
    """Round inputs one after the other, each with the errors of those before it.

    Rows lie along the last dimension, so that every loop runs over neighbours in memory.

    Args:
        targets: float32 (inputs, rows), with the feedback from earlier groups; overwritten.
        columns: float32 (inputs, rows), the weights.
        feedback: float32 (inputs, inputs), R_ij / R_jj within the group.
        block: int64 (inputs,), the block of each input.
        scales, zeros: float32 (blocks, rows).
        highest: the largest code.
        codes: uint8 (inputs, rows), written.
        errors: float32 (inputs, rows), weight less rounded weight, written.
    """
    count, rows = targets.shape
    nothing, highest = float32(0), float32(highest)
    for j in range(count):
        number = block[j]
        for row in range(rows):
            scale, zero = scales[number, row], zeros[number, row]
            inverse = nothing if scale == 0 else float32(1) / scale
            code = min(max(np.rint(targets[j, row] * inverse) + zero, nothing), highest)
            codes[j, row] = uint8(code)
            errors[j, row] = columns[j, row] - (code - zero) * scale
        for k in range(j + 1, count):
            factor = feedback[j, k]
            for row in range(rows):
                targets[k, row] += factor * errors[j, row]
