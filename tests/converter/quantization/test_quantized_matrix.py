"""The parts of a quantized matrix: shapes, signs, padding, and values that do not fit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from converter.errors import ConvertError
from converter.quantization.quantized_matrix import QuantizedMatrix, not_finite
from converter.quantization.rtn import BlockFormat, Codes, quantize_rtn, unpack
from converter.weights.weight import TensorWeight

FORMS = [BlockFormat(*form) for form in itertools.product((4, 8), (16, 32), (True, False))]
COLUMNS = 72
"""Not a multiple of a block, so the last one is padded."""


def matrix(form: BlockFormat, **options: Any) -> QuantizedMatrix:
    values = torch.randn(6, COLUMNS, generator=torch.Generator().manual_seed(0))
    return QuantizedMatrix(TensorWeight(values, "w"), form, torch.float32, **options)


def by_numpy(found: QuantizedMatrix) -> np.ndarray:
    """What the operators read from the parts, by plain numpy."""
    form, parts = found.form, {name: t.numpy() for name, t in found.rows(0, 6).items()}
    blocks = form.blocks(COLUMNS)
    codes: np.ndarray = parts["codes"].reshape(6, -1)
    if form.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(6, -1)
    codes = codes.reshape(6, blocks, form.block_size).astype(np.float32)
    zero = np.full((6, blocks), float(1 << (form.bits - 1)), np.float32)
    if not form.symmetric:
        points = parts["zero_points"]
        if form.bits == 4:
            points = np.stack([points & 15, points >> 4], -1).reshape(6, -1)
        zero = points[:, :blocks].astype(np.float32)
    values = (codes - zero[..., None]) * parts["scales"][..., None]
    array: np.ndarray = values.reshape(6, -1)[:, :COLUMNS]
    return array


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_parts_have_the_shapes_that_they_announce(form: BlockFormat) -> None:
    for flat in (False, True):
        found = matrix(form, flat=flat)
        rows = found.rows(1, 4)
        assert set(rows) == set(found.specs)
        for name, spec in found.specs.items():
            assert rows[name].shape == (3, *spec.shape[1:]) and rows[name].dtype == spec.dtype
            assert found.part(name).shape == spec.shape
    assert ("zero_points" in found.specs) != form.symmetric


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_dequantized_is_what_the_parts_say(form: BlockFormat) -> None:
    found = matrix(form)
    np.testing.assert_allclose(found.dequantized().read().numpy(), by_numpy(found), atol=1e-6)
    np.testing.assert_allclose(by_numpy(found), found.source.read().numpy(), atol=0.6)


@pytest.mark.parametrize("bits", [4, 8])
def test_signed_codes_are_the_same_numbers_around_zero(bits: int) -> None:
    form = BlockFormat(bits, 16, True)
    plain = unpack(matrix(form).rows(0, 6)["codes"].flatten(1), bits, 80).to(torch.int16)
    signed = unpack(matrix(form, signed=True).rows(0, 6)["codes"].flatten(1), bits, 80)
    twos_complement = signed.to(torch.int16)
    twos_complement[twos_complement >= 1 << (bits - 1)] -= 1 << bits
    assert torch.equal(twos_complement, plain - (1 << (bits - 1)))


def test_rows_do_not_depend_on_their_neighbours() -> None:
    found = matrix(BlockFormat(4, 32, False))
    whole = found.rows(0, 6)
    for row in range(6):
        for name, part in found.rows(row, row + 1).items():
            assert torch.equal(part[0], whole[name][row])


def test_given_codes_are_shipped_as_they_are() -> None:
    form, values = BlockFormat(4, 32, False), torch.randn(6, 64)
    other = quantize_rtn(values * 0.5, form)

    def rounding(start: int, stop: int) -> Codes:
        zero = other.zero_points
        assert zero is not None
        return Codes(other.codes[start:stop], other.scales[start:stop], zero[start:stop])

    found = QuantizedMatrix(TensorWeight(values), form, torch.float16, rounding)
    assert found.rows(2, 4)["scales"].dtype == torch.float16
    assert torch.equal(found.rows(2, 4)["scales"], other.scales[2:4].half())
    scales = other.scales.half().float()
    expected = Codes(other.codes, scales, other.zero_points).dequantize(form)
    assert torch.equal(found.dequantized().read(), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("symmetric", [True, False])
def test_values_that_are_not_finite_are_refused_by_their_label(bad: float, symmetric: bool) -> None:
    values = torch.ones(3, 32)
    values[1, 5] = bad
    weight = TensorWeight(values, "layers.0.w1 in a.safetensors")
    found = QuantizedMatrix(weight, BlockFormat(4, 16, symmetric), torch.float32)
    with pytest.raises(ConvertError, match=r"layers\.0\.w1 in a\.safetensors has NaN"):
        found.rows(0, 3)
    found.rows(2, 3)  # only rows that are read are judged


def test_a_scale_past_the_stored_type_is_refused_with_its_range() -> None:
    weight = TensorWeight(torch.full((2, 32), 3e6), "w")
    found = QuantizedMatrix(weight, BlockFormat(4, 32, True), torch.float16)
    with pytest.raises(ConvertError) as caught:
        found.rows(0, 2)
    (problem,) = caught.value.problems
    assert "range of float16" in problem.expected and problem == not_finite("w", torch.float16)
