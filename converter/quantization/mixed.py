"""Mixed precision: which format each linear gets, under a budget of bytes.

Every linear has to take exactly one of its formats; the sum of the losses is minimised while the
sum of the bytes stays within the budget: the multiple-choice knapsack problem, solved by dynamic
programming over the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.errors import ConvertError, Problem
from converter.quantization.rtn import BlockFormat

_MOST_UNITS = 100_000  # states of the dynamic programme; fewer bytes than this: exact


@dataclass(frozen=True)
class Candidate:
    """One format of one linear: what it costs in bytes and in loss (any additive measure)."""

    size: int
    loss: float


def matrix_bytes(rows: int, columns: int, form: BlockFormat, scale_bytes: int = 4) -> int:
    """Bytes of a linear [rows, columns] in MatMulNBits: codes, scales and packed zero points.

    Args:
        scale_bytes: of one scale, which has the activations' type: 4 for float32, 2 for float16.
    """
    row = form.row_bytes(columns) + scale_bytes * form.blocks(columns)
    if not form.symmetric:
        row += form.zero_point_bytes(columns)
    return rows * row


def choose_formats(candidates: Sequence[Sequence[Candidate]], budget: int) -> list[int]:
    """The candidate of least total loss for every linear, within `budget` bytes.

    Exact when the sizes' differences have a common divisor of at least (budget - least size) /
    100,000, as whole linears of a few shapes usually have; otherwise sizes are rounded up to that
    unit, so the budget is always kept. Ties go to the earlier candidate.

    Args:
        candidates: for each linear its formats.
        budget: bytes of all linears together.

    Returns:
        For each linear the index of its candidate.

    Raises:
        ConvertError: even the smallest candidates exceed the budget.
        ValueError: a loss is not finite.
    """
    if not all(math.isfinite(option.loss) for options in candidates for option in options):
        raise ValueError("a candidate's loss is not finite")
    least = [min(option.size for option in options) for options in candidates]
    spare = budget - sum(least)
    if spare < 0:
        raise _impossible(sum(least), budget)
    extra = [
        [option.size - base for option in options]
        for options, base in zip(candidates, least, strict=True)
    ]
    spare = min(spare, sum(max(sizes) for sizes in extra))
    unit = max(1, math.gcd(*(size for sizes in extra for size in sizes)), -(-spare // _MOST_UNITS))
    steps = [[-(-size // unit) for size in sizes] for sizes in extra]
    losses = [[option.loss for option in options] for options in candidates]
    return _knapsack(steps, losses, spare // unit)


def _knapsack(
    steps: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], capacity: int
) -> list[int]:
    """Multiple-choice knapsack in whole units; one candidate of each has to cost 0 units."""
    best: NDArray[np.float64] = np.zeros(capacity + 1)
    picks = np.zeros((len(steps), capacity + 1), dtype=np.uint8)
    for item, (sizes, values) in enumerate(zip(steps, losses, strict=True)):
        total = np.full(capacity + 1, np.inf)
        for index, (size, value) in enumerate(zip(sizes, values, strict=True)):
            if size > capacity:
                continue
            offered = best[: capacity + 1 - size] + value
            better = offered < total[size:]
            total[size:][better] = offered[better]
            picks[item, size:][better] = index
        best = total
    chosen, left = [], capacity
    for item in range(len(steps) - 1, -1, -1):
        index = int(picks[item, left])
        chosen.append(index)
        left -= steps[item][index]
    return chosen[::-1]


def _impossible(least: int, budget: int) -> ConvertError:
    return ConvertError(
        Problem(
            f"The target leaves {budget / 1e6:.1f} MB for the quantized linears.",
            f"at least {least / 1e6:.1f} MB, every linear in its smallest format",
            "raise quant.target_size (or quant.bits_per_weight), or allow a larger block size",
        )
    )
