"""H = XᵀX and held-back inputs, against float64 sums of all tokens at once."""

from __future__ import annotations

import pytest
import torch

from converter.calibration.inputs import Inputs, restored, weighted
from converter.quantization.gptq import gptq_factor
from converter.quantization.refine import damp
from converter.quantization.rtn import BlockFormat, quantize_rtn


@pytest.mark.parametrize("columns", [24, 1100])
def test_hessian_is_the_weighted_gram_matrix(columns: int) -> None:
    x, weights, inputs = torch.randn(60, columns), torch.rand(60), Inputs(columns)
    for rows in (slice(0, 13), slice(13, 60)):
        inputs.add(x[rows], weights[rows])
    expected = x.double().T @ (x.double() * weights.double()[:, None])
    assert torch.allclose(inputs.hessian.double(), expected, atol=1e-3)
    assert torch.equal(inputs.diagonal, inputs.hessian.diagonal())


def test_tokens_added_after_a_look_count(columns: int = 1030) -> None:
    """Reading H mirrors it; what comes later must not be added to the mirrored half alone."""
    x, inputs = torch.randn(40, columns), Inputs(columns)
    inputs.add(x[:20])
    first = inputs.hessian.clone()
    inputs.add(x[20:])
    expected = x.double().T @ x.double()
    assert torch.allclose(inputs.hessian.double(), expected, atol=1e-3)
    assert not torch.allclose(first, inputs.hessian)


def test_error_on_held_back_tokens_is_that_of_their_outputs() -> None:
    inputs, x, weight = Inputs(32), torch.randn(50, 32), torch.randn(7, 32)
    inputs.add(torch.randn(10, 32))
    inputs.hold(x)
    form = BlockFormat(4, 32, True)
    rounded = quantize_rtn(weight, form).dequantize(form)
    lost, whole = (x @ weight.T - x @ rounded.T).square().sum(), (x @ weight.T).square().sum()
    assert inputs.relative_error(weight, rounded) == pytest.approx(float(lost / whole), rel=1e-4)


def test_without_held_back_tokens_all_of_them_judge() -> None:
    inputs, x, weight = Inputs(32), torch.randn(50, 32), torch.randn(7, 32)
    inputs.add(x)
    assert inputs.held is None
    rounded = weight + 0.1 * torch.randn(7, 32)
    lost = ((weight - rounded) @ x.T).square().sum()
    expected = float(lost / (weight @ x.T).square().sum())
    assert inputs.relative_error(weight, rounded) == pytest.approx(expected, rel=1e-3)


def test_a_matrix_of_zeros_has_no_relative_error() -> None:
    inputs = Inputs(4)
    inputs.add(torch.randn(8, 4))
    assert inputs.relative_error(torch.zeros(3, 4), torch.zeros(3, 4)) == 0.0


def test_divided_statistics_are_those_of_divided_inputs() -> None:
    x, held, scales = torch.randn(40, 16), torch.randn(6, 16), torch.rand(16) + 0.5
    divided, expected = Inputs(16), Inputs(16)
    for inputs, by in ((divided, torch.ones(16)), (expected, scales)):
        inputs.add(x / by)
        inputs.hold(held / by)
    factor = divided.factor()  # what was worked out before no longer holds
    divided.divide(scales)
    assert torch.allclose(divided.hessian, expected.hessian, atol=1e-3)
    assert divided.factor() is not factor
    assert divided.held is not None and expected.held is not None
    assert torch.allclose(divided.held, expected.held, atol=1e-6)


def test_statistics_gathered_before_are_taken_as_they_are() -> None:
    x, held = torch.randn(40, 12), torch.randn(5, 12)
    inputs = Inputs.of(x.T @ x, held)
    assert inputs.columns == 12 and torch.equal(inputs.hessian, x.T @ x)
    assert inputs.held is not None and torch.equal(inputs.held, held)
    assert Inputs.of(x.T @ x, None).held is None


def test_factor_and_damped_hessian_are_computed_once() -> None:
    x, inputs = torch.randn(80, 16), Inputs(16)
    inputs.add(x)
    expected_factor, expected_damped = gptq_factor(inputs.hessian), damp(inputs.hessian.clone())
    factor = inputs.factor()
    assert inputs.factor() is factor and torch.equal(factor.curvature, expected_factor.curvature)
    damped = inputs.damped()
    assert inputs.damped() is damped and torch.equal(damped, expected_damped)
    inputs.add(x)
    assert inputs.factor() is not factor  # more tokens, another H


def test_damping_in_place_keeps_the_diagonal_that_search_reads() -> None:
    inputs = Inputs(16)
    inputs.add(torch.randn(80, 16))
    inputs.hold(torch.randn(4, 16))
    before = inputs.diagonal.clone()
    inputs.damped()
    assert torch.equal(inputs.diagonal, before)


def test_weights_count_squared_errors() -> None:
    x, weights = torch.randn(2, 3, 8, dtype=torch.bfloat16), torch.rand(2, 3)
    found = weighted(x, weights)
    assert found.dtype == torch.float32 and found.shape == (6, 8)
    norms = x.float().reshape(6, 8).square().sum(1) * weights.reshape(6)
    assert torch.allclose(found.square().sum(1), norms, rtol=1e-5)
    assert torch.equal(weighted(x, None), x.float().reshape(6, 8))


def test_restored_values_have_no_padding() -> None:
    form, weight = BlockFormat(8, 32, False), torch.randn(3, 40)
    found = restored(quantize_rtn(weight, form), form, 40)
    assert found.shape == (3, 40) and torch.allclose(found, weight, atol=0.05)


def test_inputs_do_not_depend_on_how_tokens_are_batched() -> None:
    x, one, many = torch.randn(96, 40), Inputs(40), Inputs(40)
    one.add(x)
    for row in x.split(7):
        many.add(row)
    assert torch.allclose(one.hessian, many.hessian, rtol=1e-5, atol=1e-4)
