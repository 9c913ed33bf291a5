"""Rounding one matrix of the graph by the recipe's scheme, in tiles of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from converter.calibration.inputs import Inputs, restored
from converter.calibration.parallel import on_cores
from converter.errors import ConvertError
from converter.quantization.gptq import gptq_round
from converter.quantization.quantized_matrix import not_finite
from converter.quantization.refine import refine
from converter.quantization.rtn import BlockFormat, Codes, quantize_rtn
from converter.quantization.search import concatenate, search_blocks
from converter.recipe.schema import QuantConfig
from converter.weights.weight import Weight

TILE_VALUES, TILE_ROWS = 1 << 22, 1024
"""Weights rounded at a time on one core, and the fewest rows: GPTQ's cost per column is fixed."""
JUDGED_ROWS = 256
"""Rows on which GPTQ and search are compared, and errors reported; evenly spaced."""


@dataclass(frozen=True)
class Scheme:
    """How matrices are rounded: the recipe's scheme and the type of the stored scales."""

    quant: QuantConfig
    scale_dtype: torch.dtype

    def plain(self, weight: torch.Tensor, form: BlockFormat) -> Codes:
        """Rounded to nearest, with the scales as they would be stored."""
        found = quantize_rtn(weight, form)
        return Codes(found.codes, found.scales.to(self.scale_dtype).float(), found.zero_points)

    def search(self, weight: torch.Tensor, form: BlockFormat, inputs: Inputs) -> Codes:
        return search_blocks(weight, inputs.diagonal, form, self.scale_dtype)

    def gptq(self, weight: torch.Tensor, form: BlockFormat, inputs: Inputs) -> Codes:
        factor = inputs.factor()
        grid = search_blocks(weight, factor.curvature, form, self.scale_dtype)
        found = gptq_round(weight, grid, form, factor)
        if not self.quant.refine:
            return found
        return refine(weight, found, form, inputs.damped(), damping=0, scale_dtype=self.scale_dtype)


@dataclass(frozen=True)
class Rounded:
    """A rounded matrix; `error` is ‖ΔW x‖² / ‖W x‖² on held-back tokens and a sample of rows.

    `method` is rtn, search or gptq: what was best for this matrix.
    """

    codes: Codes
    form: BlockFormat
    method: str
    error: float


def round_matrix(weight: Weight, form: BlockFormat, inputs: Inputs, scheme: Scheme) -> Rounded:
    """Round a matrix (rows, columns) by the scheme, or by `search` where GPTQ does not help.

    Raises:
        ConvertError: the matrix has NaN or infinite values.
    """
    sample = sample_rows(weight, JUDGED_ROWS)
    method, error = _best_method(sample, form, inputs, scheme)

    def tile(start: int) -> Codes:
        rows = weight.rows(start, min(start + step, weight.shape[0])).float()
        if not bool(torch.isfinite(rows).all()):
            raise ConvertError(not_finite(weight.label, rows.dtype))
        return _round(rows, form, inputs, scheme, method)

    step = max(TILE_ROWS, TILE_VALUES // weight.shape[1])
    tiles = on_cores(tile, range(0, weight.shape[0], step))
    return Rounded(concatenate(tiles), form, method, error)


def round_sample(sample: torch.Tensor, form: BlockFormat, inputs: Inputs, scheme: Scheme) -> Codes:
    """Some rows of a matrix rounded as the scheme would, without comparing methods."""
    method = "search" if form.bits == 8 and scheme.quant.round == "gptq" else scheme.quant.round
    return _round(sample, form, inputs, scheme, method)


def sample_rows(weight: Weight, count: int) -> torch.Tensor:
    """float32 (at most `count`, columns): rows spaced evenly over the matrix."""
    return weight.permute_rows(spaced_rows(weight.shape[0], count)).read().float()


def spaced_rows(rows: int, count: int) -> torch.Tensor:
    """int64: at most `count` of so many rows, spaced evenly."""
    count = min(count, rows)
    return torch.arange(count) * rows // count


def _best_method(
    sample: torch.Tensor, form: BlockFormat, inputs: Inputs, scheme: Scheme
) -> tuple[str, float]:
    methods = {"rtn": ["rtn"], "search": ["search"], "gptq": ["search", "gptq"]}[scheme.quant.round]
    if form.bits == 8 and "gptq" in methods:
        methods = ["search"]  # its error is a hundredth of four bits' already
    if "gptq" in methods:
        inputs.factor()  # on all cores, before each has work of its own
        if scheme.quant.refine:
            inputs.damped()

    def error(method: str) -> float:
        codes = _round(sample, form, inputs, scheme, method)
        return inputs.relative_error(sample, restored(codes, form, sample.shape[1]))

    errors = dict(zip(methods, on_cores(error, methods), strict=True))
    best = min(errors, key=lambda name: errors[name])
    return best, errors[best]


def _round(
    weight: torch.Tensor, form: BlockFormat, inputs: Inputs, scheme: Scheme, method: str
) -> Codes:
    if method == "rtn":
        return scheme.plain(weight, form)
    if method == "search":
        return scheme.search(weight, form, inputs)
    return scheme.gptq(weight, form, inputs)
