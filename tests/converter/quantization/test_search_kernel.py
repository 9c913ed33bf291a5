"""The search for a block's scale, against every candidate tried in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from converter.quantization.search_kernel import encode, propose_asymmetric, propose_symmetric

SHRINKS = np.linspace(0.6, 1.1, 12).astype(np.float32)
OFFSETS = np.array([-1, 0, 1], np.float32)


def blocks(seed: int, rows: int = 5, count: int = 2, size: int = 16) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, size=(rows, count, size)).astype(np.float32)
    return values, rng.exponential(size=(count, size)).astype(np.float32)


def loss(values: np.ndarray, importance: np.ndarray, scale: Any, zero: Any, levels: int) -> float:
    codes = np.clip(np.rint(values / scale) + zero, 0, levels) if scale else np.full(16, zero)
    return float((importance * ((codes - zero) * scale - values) ** 2).sum())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_no_candidate_of_a_symmetric_search_is_better(seed: int, bits: int) -> None:
    values, importance = blocks(seed)
    half = 1 << (bits - 1)
    scales = np.zeros(values.shape[:2], np.float32)
    propose_symmetric(values, importance, SHRINKS, half, scales)
    for row, block in np.ndindex(*scales.shape):
        weight, given = values[row, block], importance[block]
        bottom, top = weight.min(), weight.max()
        spanning = (bottom if -bottom >= top else top) / -half
        found = loss(weight, given, float(scales[row, block]), half, 2 * half - 1)
        for candidate in (spanning * shrink * sign for shrink in SHRINKS for sign in (1, -1)):
            assert found <= loss(weight, given, candidate, half, 2 * half - 1) * 1.01 + 1e-9


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_no_candidate_of_an_asymmetric_search_is_better(seed: int, bits: int) -> None:
    values, importance = blocks(seed)
    levels = (1 << bits) - 1
    scales, zeros = np.zeros(values.shape[:2], np.float32), np.zeros(values.shape[:2], np.float32)
    propose_asymmetric(values, importance, SHRINKS, OFFSETS, levels, scales, zeros)
    assert zeros.min() >= 0 and zeros.max() <= levels and np.array_equal(zeros, np.rint(zeros))
    for row, block in np.ndindex(*scales.shape):
        weight, given = values[row, block], importance[block]
        bottom, top = min(weight.min(), 0), max(weight.max(), 0)
        found = loss(weight, given, float(scales[row, block]), float(zeros[row, block]), levels)
        for shrink in SHRINKS:
            scale = (top - bottom) * shrink / levels
            base = np.rint(levels / 2 - (top + bottom) / 2 / scale)
            for zero in np.clip(base + OFFSETS, 0, levels):
                assert found <= loss(weight, given, scale, zero, levels) * 1.01 + 1e-9


def test_values_without_weight_do_not_count() -> None:
    values, importance = blocks(7)
    importance[:, 3] = 0
    other = values.copy()
    other[..., 3] *= 0.1  # not an extreme of its block before or after
    inside = np.abs(values[..., 3]) < np.abs(np.delete(values, 3, -1)).max(-1) * 0.9
    one, two = (np.zeros(values.shape[:2], np.float32) for _ in range(2))
    propose_symmetric(values, importance, SHRINKS, 8, one)
    propose_symmetric(other, importance, SHRINKS, 8, two)
    assert inside.any() and np.allclose(one[inside], two[inside])


def test_a_block_of_zeros_has_scale_zero() -> None:
    values, importance = np.zeros((1, 1, 16), np.float32), np.ones((1, 16), np.float32)
    scales, zeros = np.ones((1, 1), np.float32), np.ones((1, 1), np.float32)
    propose_symmetric(values, importance, SHRINKS, 8, scales)
    assert scales[0, 0] == 0
    propose_asymmetric(values, importance, SHRINKS, OFFSETS, 15, scales, zeros)
    assert scales[0, 0] == 0 and 0 <= zeros[0, 0] <= 15


@pytest.mark.parametrize("levels", [15, 255])
def test_codes_are_nearest_and_errors_are_theirs(levels: int) -> None:
    values, importance = blocks(8)
    scales = np.full(values.shape[:2], 6 / levels, np.float32)
    zeros = np.full(values.shape[:2], levels // 2, np.float32)
    codes, errors = np.zeros(values.shape, np.uint8), np.zeros(values.shape[:2], np.float32)
    encode(values, importance, scales, zeros, levels, codes, errors)
    grid = (np.arange(levels + 1) - levels // 2) * np.float32(6 / levels)
    nearest = np.abs(values[..., None] - grid).min(-1)
    found = np.abs(values - grid[codes])
    np.testing.assert_allclose(found, nearest, atol=1e-5)
    expected = (importance * found.astype(np.float64) ** 2).sum(-1)
    np.testing.assert_allclose(errors, expected, rtol=1e-4)
