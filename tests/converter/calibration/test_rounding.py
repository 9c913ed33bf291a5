"""Rounding a matrix by a scheme: tiles, the best method, what is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from converter.calibration import rounding
from converter.calibration.inputs import Inputs, restored
from converter.calibration.rounding import (
    JUDGED_ROWS,
    Scheme,
    round_matrix,
    round_sample,
    sample_rows,
    spaced_rows,
)
from converter.errors import ConvertError
from converter.quantization.rtn import BlockFormat, quantize_rtn
from converter.recipe.schema import QuantConfig
from converter.weights.weight import TensorWeight

FORM = BlockFormat(4, 32, False)


def inputs(columns: int = 64, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    found = Inputs(columns)
    found.add(torch.randn(400, columns, generator=generator) @ mixing)
    found.hold(torch.randn(100, columns, generator=generator) @ mixing)
    return found


def weight(rows: int = 90, columns: int = 64) -> TensorWeight:
    generator = torch.Generator().manual_seed(1)
    return TensorWeight(torch.randn(rows, columns, generator=generator), "w")


def scheme(quant: QuantConfig, dtype: torch.dtype = torch.float32) -> Scheme:
    return Scheme(quant, dtype)


@pytest.fixture
def quant(make_recipe: Callable[..., Any]) -> Callable[..., QuantConfig]:
    def make(name: str, *words: str) -> QuantConfig:
        found: QuantConfig = make_recipe(f"quant={name}", *words).quant
        return found

    return make


def test_plain_rounding_is_rtn_with_the_stored_scales(quant: Callable[..., QuantConfig]) -> None:
    values, by = weight().tensor, scheme(quant("rtn"), torch.float16)
    expected, found = quantize_rtn(values, FORM), by.plain(values, FORM)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scales, expected.scales.half().float())


@pytest.mark.parametrize("name", ["rtn", "search", "gptq", "best"])
def test_tiles_of_rows_change_nothing(
    quant: Callable[..., QuantConfig], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = round_matrix(weight(), FORM, inputs(), scheme(quant(name)))
    monkeypatch.setattr(rounding, "TILE_ROWS", 7)
    monkeypatch.setattr(rounding, "TILE_VALUES", 1)
    tiled = round_matrix(weight(), FORM, inputs(), scheme(quant(name)))
    assert torch.equal(whole.codes.codes, tiled.codes.codes)
    assert torch.equal(whole.codes.scales, tiled.codes.scales)
    assert (whole.method, whole.error) == (tiled.method, tiled.error)


def test_better_schemes_lose_less_on_held_back_tokens(quant: Callable[..., QuantConfig]) -> None:
    errors = {
        name: round_matrix(weight(), FORM, inputs(), scheme(quant(name))).error
        for name in ("rtn", "search", "gptq", "best")
    }
    assert errors["best"] < errors["gptq"] < errors["search"] < errors["rtn"]


@pytest.mark.parametrize("name", ["rtn", "search", "gptq"])
def test_the_reported_error_is_that_of_the_outputs(
    quant: Callable[..., QuantConfig], name: str
) -> None:
    """All rows are judged here, so the whole matrix's outputs on the held-back tokens decide."""
    values, known = weight(), inputs()
    found = round_matrix(values, FORM, known, scheme(quant(name)))
    x = known.held
    assert x is not None and found.form == FORM
    lost = (values.tensor - restored(found.codes, FORM, 64)) @ x.T
    expected = float(lost.square().sum() / (values.tensor @ x.T).square().sum())
    assert found.error == pytest.approx(expected, rel=1e-3)


def test_search_is_taken_where_gptq_does_not_help(quant: Callable[..., QuantConfig]) -> None:
    """Calibrated on one kind of inputs and judged on another, GPTQ loses."""
    misled = Inputs(64)
    misled.add(torch.ones(50, 64) + 0.01 * torch.randn(50, 64))
    misled.hold(torch.randn(100, 64))
    found = round_matrix(weight(), FORM, misled, scheme(quant("gptq")))
    assert found.method == "search"
    assert round_matrix(weight(), FORM, inputs(), scheme(quant("gptq"))).method == "gptq"


def test_eight_bits_are_only_searched(quant: Callable[..., QuantConfig]) -> None:
    form = BlockFormat(8, 32, False)
    found = round_matrix(weight(), form, inputs(), scheme(quant("best")))
    assert found.method == "search" and found.error < 1e-4
    sample = round_sample(weight().tensor, form, inputs(), scheme(quant("gptq")))
    assert torch.equal(sample.codes, found.codes.codes)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(
    quant: Callable[..., QuantConfig], bad: float
) -> None:
    values = weight().tensor.clone()
    values[-1, -1] = bad
    with pytest.raises(ConvertError, match="lm_head in x has NaN"):
        round_matrix(TensorWeight(values, "lm_head in x"), FORM, inputs(), scheme(quant("rtn")))


@pytest.mark.parametrize(("rows", "count"), [(10, 3), (3, 10), (1000, JUDGED_ROWS), (1, 1)])
def test_sampled_rows_are_spaced_evenly(rows: int, count: int) -> None:
    found = spaced_rows(rows, count)
    assert len(found) == min(rows, count) and found[0] == 0 and found[-1] < rows
    steps = torch.diff(found)
    assert len(found) == 1 or (steps.max() - steps.min() <= 1 and steps.min() >= 1)
    values = weight(rows)
    assert torch.equal(sample_rows(values, count), values.tensor[found])
