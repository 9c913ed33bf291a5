"""The knapsack against brute force, and the sizes against packed tensors."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from converter.errors import ConvertError
from converter.quantization.mixed import Candidate, choose_formats, matrix_bytes
from converter.quantization.rtn import BlockFormat, pack, quantize_rtn


def _brute_force(candidates: list[list[Candidate]], budget: int) -> float:
    picks = itertools.product(*candidates)
    return min(sum(c.loss for c in pick) for pick in picks if sum(c.size for c in pick) <= budget)


@pytest.mark.parametrize("seed", range(20))
def test_equals_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    candidates = [
        [Candidate(rng.randrange(1, 60), rng.random()) for _ in range(rng.randrange(1, 5))]
        for _ in range(6)
    ]
    least = sum(min(c.size for c in options) for options in candidates)
    for budget in (least, least + rng.randrange(1, 150), 1000):
        chosen = choose_formats(candidates, budget)
        picked = [options[i] for options, i in zip(candidates, chosen, strict=True)]
        assert sum(c.size for c in picked) <= budget
        assert sum(c.loss for c in picked) == pytest.approx(_brute_force(candidates, budget))


def test_large_sizes_are_rounded_up_and_keep_the_budget() -> None:
    rng = random.Random(1)
    candidates = [
        [Candidate(rng.randrange(10**6, 10**7) | 1, rng.random()) for _ in range(3)]
        for _ in range(7)
    ]
    budget = 30_000_001
    chosen = choose_formats(candidates, budget)
    picked = [options[i] for options, i in zip(candidates, chosen, strict=True)]
    assert sum(c.size for c in picked) <= budget
    # Rounding up costs at most a unit a linear, so the optimum of that smaller budget is reached.
    smaller = budget - 7 * (budget // 100_000 + 1)
    assert sum(c.loss for c in picked) <= _brute_force(candidates, smaller) + 1e-12


def test_ties_go_to_the_earlier_candidate() -> None:
    same = [Candidate(10, 1.0), Candidate(10, 1.0), Candidate(20, 1.0)]
    assert choose_formats([same, same], 40) == [0, 0]


def test_an_impossible_budget_says_what_is_possible() -> None:
    with pytest.raises(ConvertError, match=r"at least 3\.0 MB"):
        choose_formats([[Candidate(3_000_000, 1.0)]], 2_000_000)


def test_losses_have_to_be_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        choose_formats([[Candidate(1, float("nan"))]], 2)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_bytes_are_those_of_the_packed_tensors(bits: int, symmetric: bool) -> None:
    form = BlockFormat(bits, 32, symmetric)
    quantized = quantize_rtn(torch.randn(6, 90), form)
    size = pack(quantized.codes.flatten(1), bits).numel() + 4 * quantized.scales.numel()
    if quantized.zero_points is not None:
        size += pack(quantized.zero_points, bits).numel()
    assert matrix_bytes(6, 90, form) == size
