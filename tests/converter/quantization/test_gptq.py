"""GPTQ against the paper's algorithm, written out plainly in float64."""

from __future__ import annotations

import pytest
import torch

from converter.quantization.gptq import gptq_factor, gptq_round, hessian_error
from converter.quantization.refine import refine
from converter.quantization.rtn import BlockFormat
from converter.quantization.search import search_blocks


def _problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(4 * columns, columns, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(rows, columns, generator=generator)
    return weight, inputs.t() @ inputs


def _textbook(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    damping: float,
    order: torch.Tensor,
) -> torch.Tensor:
    """Algorithm 1 of arXiv 2210.17323 with the inverse taken outright; scales per column."""
    columns = weight.shape[1]
    hessian = hessian[order][:, order].clone()
    hessian += damping * hessian.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    work = weight.double()[:, order].clone()
    codes = torch.empty_like(work)
    for j in range(columns):
        scale, zero = scales[:, order[j]], zeros[:, order[j]]
        codes[:, j] = (work[:, j] / scale + zero).round().clamp(0, 15)
        error = (work[:, j] - (codes[:, j] - zero) * scale) / upper[j, j]
        work[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
    result = torch.empty_like(codes)
    result[:, order] = codes
    return result


# H is factored in float64 with the lesser damping, in float32 with the default one.
@pytest.mark.parametrize("damping", [0.01, 0.1])
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [32, 130, 192])
def test_equals_the_textbook(
    columns: int, symmetric: bool, act_order: bool, damping: float
) -> None:
    weight, hessian = _problem(24, columns)
    form = BlockFormat(4, 32, symmetric)
    grid = search_blocks(weight, hessian.diagonal(), form)
    factor = gptq_factor(hessian, damping=damping, act_order=act_order)
    found = gptq_round(weight, grid, form, factor)
    if act_order:
        steps = hessian.diagonal()[factor.order].diff()
        assert bool((steps <= 0).all())
    scales = grid.scales.double().repeat_interleave(32, 1)[:, :columns]
    zeros = torch.full_like(scales, 8)
    if grid.zero_points is not None:
        zeros = grid.zero_points.double().repeat_interleave(32, 1)[:, :columns]
    expected = _textbook(weight, hessian, scales, zeros, damping, factor.order)
    # float32 feedback may tip a value that lies within rounding of the middle of two codes, and
    # such a row then differs from there on.
    codes = found.codes.flatten(1)[:, :columns].double()
    same = (codes == expected).all(1).double().mean()
    assert same >= 0.9
    error = hessian_error(weight, found.dequantize(form)[:, :columns], hessian)
    textbook = hessian_error(weight, (expected - zeros) * scales, hessian)
    assert error == pytest.approx(textbook, rel=1e-2)


def test_lowers_the_output_error() -> None:
    weight, hessian = _problem(64, 256, seed=1)
    form = BlockFormat(4, 64, True)
    grid = search_blocks(weight, hessian.diagonal(), form)
    found = gptq_round(weight, grid, form, gptq_factor(hessian))
    before = hessian_error(weight, grid.dequantize(form), hessian)
    assert hessian_error(weight, found.dequantize(form), hessian) < 0.6 * before
    assert torch.equal(found.scales, grid.scales)


def test_independent_inputs_are_rounded_to_nearest() -> None:
    weight, _ = _problem(16, 96, seed=2)
    diagonal = torch.rand(96) + 0.1
    form = BlockFormat(4, 32, False)
    grid = search_blocks(weight, diagonal, form)
    found = gptq_round(weight, grid, form, gptq_factor(torch.diag(diagonal)))
    assert torch.equal(found.codes, grid.codes)


def test_dead_inputs_are_rounded_to_nearest_and_disturb_nothing() -> None:
    weight, hessian = _problem(16, 96, seed=3)
    form = BlockFormat(4, 32, True)
    dead = torch.tensor([0, 40, 95])
    hessian[dead] = 0
    hessian[:, dead] = 0
    grid = search_blocks(weight, hessian.diagonal(), form)
    found = gptq_round(weight, grid, form, gptq_factor(hessian)).codes.flatten(1)
    assert torch.equal(found[:, dead], grid.codes.flatten(1)[:, dead])
    other = weight.clone()
    other[:, dead] = 0
    again = gptq_round(other, grid, form, gptq_factor(hessian)).codes.flatten(1)
    alive = [k for k in range(96) if k not in dead.tolist()]
    assert torch.equal(found[:, alive], again[:, alive])


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_a_common_factor_of_the_hessian_does_not_matter(factor: float) -> None:
    weight, hessian = _problem(16, 96, seed=3)
    dead = torch.tensor([0, 17, 40, 95])
    hessian[dead] = 0
    hessian[:, dead] = 0
    form, found = BlockFormat(4, 32, True), []
    for scaled in (hessian, hessian * factor):
        terms = gptq_factor(scaled)
        grid = search_blocks(weight, terms.curvature, form)
        codes = gptq_round(weight, grid, form, terms)
        found.append(refine(weight, codes, form, scaled).codes)
        assert not terms.curvature[dead].any()
    assert (found[0] == found[1]).float().mean() > 0.999


def test_inputs_that_are_all_zero() -> None:
    weight, _ = _problem(8, 64, seed=4)
    form = BlockFormat(4, 32, True)
    grid = search_blocks(weight, torch.zeros(64), form)
    found = gptq_round(weight, grid, form, gptq_factor(torch.zeros(64, 64)))
    assert torch.equal(found.codes, grid.codes)


def test_a_singular_hessian_of_few_tokens_is_damped_until_it_factors() -> None:
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(5)) * 1e-12
    factor = gptq_factor(inputs.t() @ inputs, damping=0.0)
    assert bool(torch.isfinite(factor.feedback).all())


@pytest.mark.parametrize("damping", [0.01, 0.1])
@pytest.mark.parametrize("columns", [64, 2048])
def test_factor_of_inputs_that_are_nearly_one(columns: int, damping: float) -> None:
    # All inputs follow one of them: the largest eigenvalue is K times the mean, the others are
    # the damping alone, which is where float32 has the fewest digits left.
    generator = torch.Generator().manual_seed(6)
    inputs = torch.randn(4, columns, generator=generator, dtype=torch.float64) * 1e-4
    inputs += torch.randn(4, 1, generator=generator, dtype=torch.float64)
    hessian = inputs.t() @ inputs
    factor = gptq_factor(hessian, damping=damping, act_order=False)
    mean = hessian.diagonal().mean()
    damped = hessian + damping * mean * torch.eye(columns, dtype=torch.float64)
    lower = torch.linalg.cholesky(damped.flip((0, 1)))
    pivots = lower.diagonal().flip(0)
    feedback = (lower.flip((0, 1)) / pivots).triu(1)
    curvature = pivots.square() / damped.diagonal().mean()
    torch.testing.assert_close(factor.curvature.double(), curvature, rtol=1e-2, atol=0)
    torch.testing.assert_close(factor.feedback.double(), feedback, rtol=1e-2, atol=1e-4)


def test_bad_hessians_are_refused() -> None:
    with pytest.raises(ValueError, match="square"):
        gptq_factor(torch.ones(2, 3))
    with pytest.raises(ValueError, match="finite"):
        gptq_factor(torch.full((2, 2), torch.nan))


@pytest.mark.parametrize("outlier", [1.0, 300.0])
def test_the_float32_factor_is_that_of_float64(outlier: float) -> None:
    # Activations of language models have inputs that are hundreds of times as large as others.
    inputs = torch.randn(2000, 300, generator=torch.Generator().manual_seed(0))
    inputs[:, 7] *= outlier
    hessian = inputs.T @ inputs
    found = gptq_factor(hessian, damping=0.1)
    damped = hessian.double()
    damped.diagonal().add_(0.1 * damped.diagonal().mean())
    backwards = found.order.flip(0)
    upper = torch.linalg.cholesky(damped[backwards][:, backwards]).flip(0, 1)
    expected = (upper / upper.diagonal()).triu(1).float()
    assert (found.feedback - expected).abs().max() <= 1e-3 * expected.abs().max()
    curvature = upper.diagonal().square() / damped.diagonal().mean()
    assert torch.allclose(found.curvature[found.order], curvature.float(), rtol=1e-3)
