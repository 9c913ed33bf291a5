"""Refinement never raises the error, and stops at points that no single change improves."""

from __future__ import annotations

import pytest
import torch

from converter.quantization.gptq import gptq_factor, gptq_round, hessian_error
from converter.quantization.refine import refine
from converter.quantization.rtn import BlockFormat, Codes, quantize_rtn
from converter.quantization.search import search_blocks


def _problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    inputs = torch.randn(4 * columns, columns, generator=generator) @ mixing
    weight = torch.randn(rows, columns, generator=generator)
    hessian = inputs.t() @ inputs
    return weight, hessian / hessian.diagonal().mean()


def _row_errors(
    weight: torch.Tensor, quantized: Codes, form: BlockFormat, hessian: torch.Tensor
) -> torch.Tensor:
    difference = (weight - quantized.dequantize(form)[:, : weight.shape[1]]).double()
    return ((difference @ hessian.double()) * difference).sum(1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("columns", "block_size"), [(64, 32), (130, 32), (192, 64), (32, 32)])
@pytest.mark.parametrize("bits", [4, 8])
def test_no_row_gets_worse(bits: int, columns: int, block_size: int, symmetric: bool) -> None:
    weight, hessian = _problem(24, columns)
    form = BlockFormat(bits, block_size, symmetric)
    factor = gptq_factor(hessian)
    grid = search_blocks(weight, factor.curvature, form)
    start = gptq_round(weight, grid, form, factor)
    found = refine(weight, start, form, hessian, damping=0.0)
    before = _row_errors(weight, start, form, hessian)
    after = _row_errors(weight, found, form, hessian)
    assert bool((after <= before * (1 + 1e-4)).all())
    assert float(after.sum()) < float(before.sum())


def test_improves_rounding_to_nearest_much_and_gptq_somewhat() -> None:
    weight, hessian = _problem(64, 256, seed=1)
    form = BlockFormat(4, 32, True)
    plain = quantize_rtn(weight, form)
    factor = gptq_factor(hessian)
    gptq = gptq_round(weight, search_blocks(weight, factor.curvature, form), form, factor)
    for start, most in ((plain, 0.7), (gptq, 0.98)):
        found = refine(weight, start, form, hessian)
        before = hessian_error(weight, start.dequantize(form), hessian)
        assert hessian_error(weight, found.dequantize(form), hessian) < most * before


def test_scales_are_the_least_squares_ones() -> None:
    # One block, until nothing moves any more: the scale then has a closed form.
    weight, hessian = _problem(10, 32, seed=2)
    form = BlockFormat(4, 32, True)
    found = refine(weight, quantize_rtn(weight, form), form, hessian, sweeps=30, damping=0.0)
    integers = found.codes[:, 0].double() - 8
    exact = hessian.double()
    best = ((weight.double() @ exact) * integers).sum(1) / ((integers @ exact) * integers).sum(1)
    torch.testing.assert_close(found.scales[:, 0].double(), best, rtol=1e-4, atol=0)


def test_no_single_code_improves_what_is_found() -> None:
    weight, hessian = _problem(6, 96, seed=5)
    form = BlockFormat(4, 32, False)
    found = refine(weight, quantize_rtn(weight, form), form, hessian, sweeps=40, damping=0.0)
    least = _row_errors(weight, found, form, hessian)
    for k in range(96):
        for step in (-1, 1):
            codes = found.codes.clone()
            moved = codes[:, k // 32, k % 32].int() + step
            codes[:, k // 32, k % 32] = moved.clamp(0, 15).to(torch.uint8)
            other = Codes(codes, found.scales, found.zero_points)
            assert bool((_row_errors(weight, other, form, hessian) >= least * (1 - 1e-4)).all())


def test_scales_stay_exact_in_float16() -> None:
    weight, hessian = _problem(16, 96, seed=3)
    form = BlockFormat(4, 32, True)
    start = search_blocks(weight, hessian.diagonal(), form, torch.float16)
    found = refine(weight, start, form, hessian, scale_dtype=torch.float16)
    assert torch.equal(found.scales, found.scales.half().float())


def test_inputs_that_are_all_zero_and_blocks_of_zeros() -> None:
    weight, _ = _problem(8, 64, seed=4)
    weight[:, 32:] = 0
    form = BlockFormat(4, 32, True)
    start = quantize_rtn(weight, form)
    found = refine(weight, start, form, torch.zeros(64, 64))
    rounded = found.dequantize(form)
    assert bool(torch.isfinite(rounded).all()) and not rounded[:, 32:].any()
    plain = (start.dequantize(form) - weight).square().sum()
    assert float((rounded - weight).square().sum()) <= float(plain)
