"""The searched scales against exhaustive and plain ones."""

from __future__ import annotations

import pytest
import torch

from converter.quantization.rtn import BlockFormat, Codes, quantize_rtn
from converter.quantization.search import search_blocks

FORMS = [
    BlockFormat(bits, block_size, symmetric)
    for bits in (4, 8)
    for block_size in (16, 64)
    for symmetric in (True, False)
]


def _heavy_tailed(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight *= torch.exp(torch.randn(rows, columns, generator=generator))
    return weight, torch.exp(3 * torch.randn(columns, generator=generator))


def weighted_error(
    weight: torch.Tensor, diagonal: torch.Tensor, codes: Codes, form: BlockFormat
) -> float:
    difference = weight.double() - codes.dequantize(form)[:, : weight.shape[1]].double()
    return float((difference.square() @ diagonal.double()).sum())


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("columns", [16, 64, 150])
def test_search_is_never_worse_than_rtn_and_mostly_better(form: BlockFormat, columns: int) -> None:
    weight, diagonal = _heavy_tailed(40, columns)
    plain = weighted_error(weight, diagonal, quantize_rtn(weight, form), form)
    found = weighted_error(weight, diagonal, search_blocks(weight, diagonal, form), form)
    assert found <= plain * (1 + 1e-6)
    assert found < plain * 0.97


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_search_is_never_worse_in_any_block(form: BlockFormat) -> None:
    weight, diagonal = _heavy_tailed(200, form.block_size, seed=1)
    plain = quantize_rtn(weight, form).dequantize(form)
    found = search_blocks(weight, diagonal, form).dequantize(form)
    errors = [((weight - rounded) ** 2) @ diagonal for rounded in (plain, found)]
    assert bool((errors[1] <= errors[0] * (1 + 1e-4)).all())


def test_search_is_close_to_an_exhaustive_one() -> None:
    form = BlockFormat(4, 16, True)
    weight, diagonal = _heavy_tailed(12, 16, seed=2)
    found = search_blocks(weight, diagonal, form).dequantize(form)
    scales = torch.linspace(-1, 1, 40001)[:, None] * weight.abs().amax(1) / 4
    for row in range(12):
        scale = scales[:, row : row + 1]
        codes = torch.where(scale == 0, 0.0, weight[row] / scale).round().clamp(-8, 7)
        errors = ((codes * scale - weight[row]) ** 2) @ diagonal
        assert ((found[row] - weight[row]) ** 2) @ diagonal <= 1.3 * errors.min()


@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_nearest_under_scales_stored_as_float16(symmetric: bool) -> None:
    form = BlockFormat(4, 32, symmetric)
    weight, diagonal = _heavy_tailed(30, 64, seed=3)
    weight *= 1e-3
    found = search_blocks(weight, diagonal, form, torch.float16)
    assert torch.equal(found.scales, found.scales.half().float())
    zero = 8.0 if found.zero_points is None else found.zero_points.float()[..., None]
    blocks = weight.view(30, 2, 32)
    error = (blocks - (found.codes.float() - zero) * found.scales[..., None]).abs()
    for code in range(16):
        other = (blocks - (code - zero) * found.scales[..., None]).abs()
        assert bool((error <= other + 1e-9).all())


def test_dead_inputs_are_rounded_as_if_nothing_were_known() -> None:
    form = BlockFormat(4, 32, True)
    weight, diagonal = _heavy_tailed(8, 96, seed=4)
    diagonal[32:64] = 0
    found = search_blocks(weight, diagonal, form)
    even = search_blocks(weight[:, 32:64], torch.ones(32), form)
    assert torch.equal(found.codes[:, 1], even.codes[:, 0])
    nothing = search_blocks(weight, torch.zeros(96), form)
    assert torch.equal(nothing.codes, search_blocks(weight, torch.ones(96), form).codes)


def test_zeros_stay_zero_and_the_padding_holds_the_zero_point() -> None:
    for symmetric in (True, False):
        form = BlockFormat(4, 32, symmetric)
        weight, diagonal = _heavy_tailed(4, 40, seed=5)
        weight[0] = 0
        found = search_blocks(weight, diagonal, form)
        rounded = found.dequantize(form)
        assert not rounded[0].any()
        assert not rounded[:, 40:].any()


def test_row_tiles_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    form = BlockFormat(4, 32, False)
    weight, diagonal = _heavy_tailed(33, 64, seed=6)
    whole = search_blocks(weight, diagonal, form)
    monkeypatch.setattr("converter.quantization.search._TILE_VALUES", 64 * 5)
    tiled = search_blocks(weight, diagonal, form)
    assert torch.equal(whole.codes, tiled.codes) and torch.equal(whole.scales, tiled.scales)


def test_a_diagonal_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="diagonal"):
        search_blocks(torch.ones(2, 32), torch.ones(31), BlockFormat(4, 32, True))
