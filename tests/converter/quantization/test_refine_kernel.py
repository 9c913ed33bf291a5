"""Coordinate descent, step by step, against the error tr(ΔW H ΔWᵀ) computed in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from converter.quantization.refine_kernel import best_scales, move_codes, move_scales

INPUTS, BLOCK, ROWS = 20, 8, 6


@dataclass
class Case:
    """A weight, inputs' H, and one block of it rounded somehow; the rest is left exact."""

    weight: np.ndarray
    hessian: np.ndarray
    integers: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray

    def difference(self) -> np.ndarray:
        """ΔW, float64 (inputs, rows): of the block alone."""
        found = np.zeros((INPUTS, ROWS))
        found[:BLOCK] = self.weight[:BLOCK] - self.integers.astype(np.float64) * self.scales
        return found

    def error(self) -> np.ndarray:
        """tr(ΔW H ΔWᵀ) by row."""
        delta = self.difference()
        found: np.ndarray = (delta * (self.hessian.astype(np.float64) @ delta)).sum(0)
        return found

    def descent(self) -> np.ndarray:
        """H Δ as the kernels want it."""
        return np.asarray(self.hessian.astype(np.float64) @ self.difference(), np.float32)


@pytest.fixture(params=range(4))
def case(request: pytest.FixtureRequest) -> Case:
    rng = np.random.default_rng(request.param)
    x = rng.normal(size=(100, INPUTS)) @ rng.normal(size=(INPUTS, INPUTS))
    weight = rng.normal(size=(INPUTS, ROWS))
    scales = (np.abs(weight[:BLOCK]).max(0) / 6).astype(np.float32)
    zeros = np.full(ROWS, 8, np.float32)
    integers = np.clip(np.rint(weight[:BLOCK] / scales), -8, 7).astype(np.float32)
    integers += rng.integers(-1, 2, integers.shape)  # not even the nearest ones
    hessian = (x.T @ x / 100).astype(np.float32)
    return Case(weight, hessian, np.clip(integers, -8, 7).astype(np.float32), scales, zeros)


def test_the_best_scale_is_the_exact_minimum(case: Case) -> None:
    square = np.ascontiguousarray(case.hessian[:BLOCK, :BLOCK])
    descent = np.ascontiguousarray(case.descent()[:BLOCK])
    wanted, products, slope, curvature = best_scales(square, case.integers, descent, case.scales)
    np.testing.assert_allclose(products, square @ case.integers, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(slope, (descent * case.integers).sum(0), rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(curvature, (products * case.integers).sum(0), rtol=1e-3)
    case.scales = wanted
    least = case.error()
    for factor in (0.98, 1.02):
        case.scales = wanted * np.float32(factor)
        assert (case.error() >= least - 1e-6).all()


def test_moved_scales_keep_descent_and_change_true(case: Case) -> None:
    before, descent, change = case.error(), case.descent(), np.zeros(ROWS, np.float32)
    inner = np.ascontiguousarray(descent[:BLOCK])
    square = np.ascontiguousarray(case.hessian[:BLOCK, :BLOCK])
    found = best_scales(square, case.integers, inner, case.scales)
    move_scales(case.hessian[:, :BLOCK], case.integers, descent, case.scales, *found, change)
    assert np.array_equal(case.scales, found[0])
    np.testing.assert_allclose(descent, case.descent(), rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(before + change, case.error(), rtol=1e-3, atol=1e-3)
    assert (change <= 1e-5).all()


def test_moved_codes_keep_descent_and_change_true(case: Case) -> None:
    before, change = case.error(), np.zeros(ROWS, np.float32)
    descent = case.descent()
    move_codes(case.hessian, case.integers, descent, case.scales, case.zeros, 15, change)
    # Only what comes after an input is kept up to date: here everything past the block.
    np.testing.assert_allclose(descent[BLOCK:], case.descent()[BLOCK:], rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(before + change, case.error(), rtol=1e-3, atol=1e-3)
    assert (change <= 1e-5).all() and change.min() < 0
    assert case.integers.min() >= -8 and case.integers.max() <= 7
    assert np.array_equal(case.integers, np.rint(case.integers))


def test_the_last_code_is_best_among_all_sixteen(case: Case) -> None:
    """All others were fixed when it was chosen, so no other code of it may be better."""
    change = np.zeros(ROWS, np.float32)
    move_codes(case.hessian, case.integers, case.descent(), case.scales, case.zeros, 15, change)
    chosen, least = case.integers[BLOCK - 1].copy(), case.error()
    for code in range(-8, 8):
        case.integers[BLOCK - 1] = code
        assert (case.error() >= least * (1 - 1e-4)).all()
    case.integers[BLOCK - 1] = chosen


def test_a_scale_of_zero_is_left_alone(case: Case) -> None:
    case.scales[:] = 0
    case.integers[:] = 0
    square = np.ascontiguousarray(case.hessian[:BLOCK, :BLOCK])
    wanted, *_ = best_scales(square, case.integers, case.descent()[:BLOCK], case.scales)
    assert not wanted.any()
    change = np.zeros(ROWS, np.float32)
    move_codes(case.hessian, case.integers, case.descent(), case.scales, case.zeros, 15, change)
    assert not case.integers.any() and not change.any()
