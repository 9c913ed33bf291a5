"""Codes that a source holds: permuted, selected and stacked rows, and what MatMulNBits can hold."""

from __future__ import annotations

import pytest
import torch

from converter.quantization.coded_weight import CodedWeight, holding_block, stack_codes
from converter.quantization.quantized_matrix import QuantizedMatrix
from converter.quantization.rtn import BlockFormat, Packed, round_packed

ROWS, COLUMNS = 24, 64


def coded(form: BlockFormat, seed: int = 0) -> tuple[CodedWeight, Packed]:
    """A matrix of random codes, and all of its packed rows."""
    values = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))
    whole = round_packed(values, form)
    points = whole.zero_points

    def read(rows: torch.Tensor) -> Packed:
        own = None if points is None else points[rows]
        return Packed(whole.codes[rows], whole.scales[rows], own)

    return CodedWeight((ROWS, COLUMNS), form, torch.float32, read, "test", f"m{seed}"), whole


FORMS = [BlockFormat(4, 16, True), BlockFormat(4, 32, False), BlockFormat(8, 16, False)]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_rows_are_what_rounding_the_same_values_gives(form: BlockFormat) -> None:
    weight, _ = coded(form)
    values = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))

    class Values(CodedWeight):
        def rows(self, start: int, stop: int) -> torch.Tensor:
            return values[start:stop]

    plain = Values((ROWS, COLUMNS), form, torch.float32, lambda _: coded(form)[1], "", "")
    rounded = QuantizedMatrix(plain, form, torch.float32)
    kept = QuantizedMatrix(weight, form, torch.float32, keeps=True)
    for name, tensor in rounded.rows(3, 17).items():
        assert torch.equal(kept.rows(3, 17)[name], tensor)
    assert torch.equal(kept.dequantized().read(), rounded.dequantized().read())
    assert torch.equal(weight.read(), rounded.dequantized().read())


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_permuted_rows_keep_codes_scales_and_zero_points(form: BlockFormat) -> None:
    weight, whole = coded(form)
    first, second = torch.randperm(ROWS), torch.randperm(ROWS)[:10]
    twice = weight.permute_rows(first).permute_rows(second)
    assert isinstance(twice, CodedWeight) and twice.shape == (10, COLUMNS)
    found, rows = twice.packed(2, 9), first[second][2:9]
    assert torch.equal(found.codes, whole.codes[rows])
    assert torch.equal(found.scales, whole.scales[rows])
    if whole.zero_points is not None and found.zero_points is not None:
        assert torch.equal(found.zero_points, whole.zero_points[rows])
    assert (found.zero_points is None) == form.symmetric
    assert torch.equal(twice.read(), weight.read()[first[second]])


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_stacked_rows_read_across_their_bounds_and_in_any_order(form: BlockFormat) -> None:
    parts = [coded(form, seed)[0] for seed in range(3)]
    stacked = stack_codes(parts)
    expected = torch.cat([part.read() for part in parts])
    assert torch.equal(stacked.read(), expected)
    assert torch.equal(stacked.rows(20, 50), expected[20:50])
    order = torch.randperm(3 * ROWS)
    assert torch.equal(stacked.permute_rows(order).read(), expected[order])
    assert stack_codes(parts[:1]) is parts[0]


def test_scaled_columns_are_an_ordinary_weight() -> None:
    weight, _ = coded(FORMS[0])
    scaled = weight.scale_columns(torch.full((COLUMNS,), 2.0))
    assert not isinstance(scaled, CodedWeight)
    assert torch.equal(scaled.read(), weight.read() * 2)


@pytest.mark.parametrize(
    ("groups", "block"),
    [
        (torch.arange(256) // 128, 128),
        (torch.zeros(512).long(), 256),
        (torch.arange(112) // 32, 16),
        (torch.arange(96) // 96, 32),
        (torch.arange(128) // 8, None),
        (torch.arange(100) // 100, None),
        (torch.arange(128) % 2, None),
        ((torch.arange(128) // 32).flip(0), 32),
    ],
)
def test_the_largest_block_whose_columns_have_one_scale(
    groups: torch.Tensor, block: int | None
) -> None:
    assert holding_block(groups) == block


def test_matrices_of_another_form_or_width_are_not_alike() -> None:
    one, _ = coded(FORMS[0])
    assert one.alike(coded(FORMS[0], 1)[0])
    assert not one.alike(coded(FORMS[1])[0])
