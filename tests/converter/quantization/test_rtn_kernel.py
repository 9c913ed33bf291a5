"""Rounding to nearest, compiled, against its rules written in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.quantization.rtn_kernel import round_rows


def rounded(
    values: np.ndarray, bits: int, block_size: int, symmetric: bool
) -> tuple[bool, np.ndarray, np.ndarray, np.ndarray]:
    """Whether all is finite; codes (rows, blocks · block_size), scales, zero points by block."""
    rows, columns = values.shape
    blocks = -(-columns // block_size)
    codes = np.zeros((rows, blocks, block_size * bits // 8), np.uint8)
    scales = np.zeros((rows, blocks), np.float32)
    points = np.zeros((rows, (blocks * bits + 7) // 8), np.uint8)
    raw = values.view(np.int32 if values.itemsize == 4 else np.uint16)
    good = round_rows(raw, bits, symmetric, codes, scales, points)
    flat = codes.reshape(rows, -1)
    if bits == 4:
        flat = np.stack([flat & 15, flat >> 4], -1).reshape(rows, -1)
        points = np.stack([points & 15, points >> 4], -1).reshape(rows, -1)
    return bool(good), flat, scales, points[:, :blocks]


def blocked(values: np.ndarray, block_size: int) -> np.ndarray:
    rows, columns = values.shape
    padded = np.zeros((rows, -(-columns // block_size) * block_size), np.float32)
    padded[:, :columns] = values
    return padded.reshape(rows, -1, block_size)


CASES = st.tuples(
    st.integers(0, 10**6), st.sampled_from([4, 8]), st.sampled_from([16, 32]), st.integers(1, 70)
)


@given(CASES)
@settings(max_examples=60, deadline=None)
def test_symmetric_blocks_follow_their_rule(case: tuple[int, int, int, int]) -> None:
    seed, bits, block_size, columns = case
    values = np.random.default_rng(seed).normal(size=(3, columns)).astype(np.float32)
    good, codes, scales, _ = rounded(values, bits, block_size, True)
    blocks, half = blocked(values, block_size), 1 << (bits - 1)
    place = np.abs(blocks).argmax(-1)
    extreme = np.take_along_axis(blocks, place[..., None], -1)[..., 0]
    np.testing.assert_array_equal(scales, extreme / np.float32(-half))
    wanted = np.clip(np.floor(blocks / scales[..., None] + half + 0.5), 0, 2 * half - 1)
    found = codes.reshape(blocks.shape)[..., :].reshape(3, -1)[:, :columns]
    assert good and np.abs(found - wanted.reshape(3, -1)[:, :columns]).max() <= 1
    assert (found == wanted.reshape(3, -1)[:, :columns]).mean() > 0.97  # but for ties of rounding
    assert not codes[:, columns:].any()


@given(CASES)
@settings(max_examples=60, deadline=None)
def test_asymmetric_blocks_hold_zero_and_their_ends(case: tuple[int, int, int, int]) -> None:
    seed, bits, block_size, columns = case
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(3, columns)) + rng.normal() * 2).astype(np.float32)
    good, codes, scales, points = rounded(values, bits, block_size, False)
    blocks, levels = blocked(values, block_size), (1 << bits) - 1
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    np.testing.assert_allclose(scales, (high - low) / levels, rtol=1e-6)
    assert good and points.max() <= levels
    signed = codes.reshape(blocks.shape).astype(np.float32) - points[..., None]
    error = np.abs(signed * scales[..., None] - blocks).reshape(3, -1)[:, :columns]
    steps = np.repeat(scales, block_size, axis=1)[:, :columns]
    assert (error <= 1.01 * steps + 1e-6).all()
    assert (error <= 0.51 * steps + 1e-6).mean() > 0.9


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("place", [0, 15, 33])
def test_values_that_are_not_finite_are_found_anywhere(
    bad: float, symmetric: bool, place: int
) -> None:
    values = np.ones((2, 34), np.float32)
    assert rounded(values, 4, 16, symmetric)[0]
    values[1, place] = bad
    assert not rounded(values, 4, 16, symmetric)[0]


def test_the_largest_float_is_finite() -> None:
    values = np.full((1, 16), np.finfo(np.float32).max, np.float32)
    assert rounded(values, 8, 16, True)[0]


@pytest.mark.parametrize("symmetric", [True, False])
def test_bfloat16_is_rounded_as_the_float32_of_the_same_value(symmetric: bool) -> None:
    values = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    wide = (halves.astype(np.uint32) << 16).view(np.float32)
    narrow, plain = rounded(halves, 4, 16, symmetric), rounded(wide, 4, 16, symmetric)
    assert narrow[0] and plain[0]
    for one, other in zip(narrow[1:], plain[1:], strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_an_odd_row_of_zero_points_is_padded_with_eight() -> None:
    values = np.random.default_rng(0).normal(size=(2, 48)).astype(np.float32)
    codes = np.zeros((2, 3, 8), np.uint8)
    scales, points = np.zeros((2, 3), np.float32), np.zeros((2, 2), np.uint8)
    round_rows(values.view(np.int32), 4, False, codes, scales, points)
    assert (points[:, 1] >> 4 == 8).all()
