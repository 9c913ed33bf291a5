"""The compiled rounding of a group of inputs, against a plain float64 loop."""

from __future__ import annotations

import numpy as np
import pytest

from converter.quantization.gptq_kernel import round_group

Given = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def plainly(
    columns: np.ndarray,
    feedback: np.ndarray,
    block: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    highest: int,
) -> tuple[np.ndarray, np.ndarray]:
    """GPTQ's step in the words of its paper: round input j, then correct all later ones."""
    targets = columns.astype(np.float64)
    codes, errors = np.zeros(columns.shape, np.uint8), np.zeros(columns.shape)
    for j in range(len(columns)):
        scale, zero = scales[block[j]].astype(np.float64), zeros[block[j]].astype(np.float64)
        safe = np.where(scale == 0, 1, scale)
        wanted = np.where(scale == 0, 0, targets[j] / safe)
        code = np.clip(np.rint(wanted) + zero, 0, highest)
        codes[j], errors[j] = code, columns[j] - (code - zero) * scale
        targets[j + 1 :] += feedback[j, j + 1 :, None] * errors[j]
    return codes, errors


def arguments(seed: int, inputs: int, rows: int, bits: int) -> Given:
    rng = np.random.default_rng(seed)
    highest = (1 << bits) - 1
    columns = rng.normal(size=(inputs, rows)).astype(np.float32)
    feedback = np.triu(rng.normal(scale=0.2, size=(inputs, inputs)), 1).astype(np.float32)
    block = np.arange(inputs, dtype=np.int64) // 4
    blocks = int(block[-1]) + 1
    scales = rng.uniform(0.5, 1, (blocks, rows)).astype(np.float32) * (6 / highest)
    zeros = rng.integers(highest // 3, 2 * highest // 3, (blocks, rows)).astype(np.float32)
    return columns, feedback, block, scales, zeros


def run(
    columns: np.ndarray,
    feedback: np.ndarray,
    block: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    highest: int,
) -> tuple[np.ndarray, np.ndarray]:
    codes, errors = np.zeros(columns.shape, np.uint8), np.zeros(columns.shape, np.float32)
    targets = columns.copy()
    round_group(targets, columns, feedback, block, scales, zeros, highest, codes, errors)
    return codes, errors


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bits", [4, 8])
def test_equals_a_plain_loop(seed: int, bits: int) -> None:
    given = arguments(seed, 12, 9, bits)
    highest = (1 << bits) - 1
    expected, wanted_errors = plainly(*given, highest)
    codes, errors = run(*given, highest)
    # A value that float32 puts on the other side of an edge changes the inputs after it.
    rows = (codes == expected).all(0)
    assert rows.mean() > 0.8
    np.testing.assert_allclose(errors[:, rows], wanted_errors[:, rows], atol=1e-5)


def test_without_feedback_it_is_rounding_to_nearest() -> None:
    columns, feedback, block, scales, zeros = arguments(0, 8, 50, 4)
    codes, errors = run(columns, feedback * 0, block, scales, zeros, 15)
    inside = (codes > 0) & (codes < 15)
    steps = np.repeat(scales, 4, axis=0)
    assert inside.any() and (np.abs(errors)[inside] <= 0.5001 * steps[inside]).all()


def test_codes_stay_within_their_range() -> None:
    columns, feedback, block, scales, zeros = arguments(1, 8, 20, 4)
    codes, errors = run(columns * 100, feedback, block, scales, zeros, 15)
    assert codes.max() == 15 and codes.min() == 0
    expected = columns * 100 - (codes - np.repeat(zeros, 4, axis=0)) * np.repeat(scales, 4, axis=0)
    np.testing.assert_allclose(errors, expected, rtol=1e-5)


def test_a_block_of_scale_zero_keeps_its_zero_point_and_the_whole_error() -> None:
    columns, feedback, block, scales, zeros = arguments(2, 8, 5, 4)
    scales[0] = 0
    codes, errors = run(columns, feedback, block, scales, zeros, 15)
    assert np.array_equal(codes[:4], np.repeat(zeros[:1], 4, axis=0))
    assert np.array_equal(errors[:4], columns[:4])


def test_a_row_depends_on_no_other() -> None:
    columns, feedback, block, scales, zeros = arguments(3, 12, 33, 4)
    whole = run(columns, feedback, block, scales, zeros, 15)
    for row in (0, 17, 32):
        cut = slice(row, row + 1)
        alone = run(
            np.ascontiguousarray(columns[:, cut]),
            feedback,
            block,
            np.ascontiguousarray(scales[:, cut]),
            np.ascontiguousarray(zeros[:, cut]),
            15,
        )
        for one, all_rows in zip(alone, whole, strict=True):
            assert np.array_equal(one[:, 0], all_rows[:, row])
