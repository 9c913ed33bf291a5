"""Refinement of a rounded weight against H = XᵀX: scales by least squares, codes one by one.

Both are coordinate descent on tr(ΔW H ΔWᵀ), ΔW = W - Ŵ, whose negative half gradient is ΔW H; every
step is the exact minimiser over one block's scale, or over one input's code, with all else fixed,
so the error never rises (up to the rounding of the scales to the type they are stored in). GPTQ is
the natural start: it never goes back to an input, this does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from converter.quantization.rtn import BlockFormat, Codes
from converter.quantization.search import reciprocal

_COLUMNS = 64  # inputs visited between two matrix products


def refine(
    weight: Tensor,
    quantized: Codes,
    form: BlockFormat,
    hessian: Tensor,
    *,
    damping: float = 0.01,
    scale_dtype: torch.dtype = torch.float32,
) -> Codes:
    """Fit the scales, revisit the codes, fit the scales again; keep per row what is better.

    Args:
        weight: [N, K], any floating type.
        quantized: from `gptq_round` (or any other rounding) in the format `form`.
        form: bits, block size, symmetric or not; zero points stay as they are.
        hessian: XᵀX [K, K].
        damping: multiple of the mean of diag(H) added to the diagonal, as in `gptq_factor`.
        scale_dtype: type in which the scales will be stored.

    Returns:
        Codes of the same format; in no row is tr(ΔW H ΔWᵀ), damped, larger than before.
    """
    weight = weight.to(torch.float32)
    damped = hessian.to(torch.float32, copy=True)
    damped /= damped.diagonal().mean().clamp(min=1e-30)
    damped.diagonal().add_(damping if bool(damped.any()) else 1.0)
    state = _State(weight, quantized, form, damped)
    before = state.error()
    state.fit_scales(scale_dtype)
    state.revisit_codes()
    state.fit_scales(scale_dtype)
    worse = state.error() > before
    result = state.codes()
    return Codes(
        torch.where(worse[:, None, None], quantized.codes, result.codes),
        torch.where(worse[:, None], quantized.scales, result.scales),
        quantized.zero_points,
    )


class _State:
    """A linear being refined, transposed: an input's values over all rows are contiguous."""

    def __init__(
        self, weight: Tensor, quantized: Codes, form: BlockFormat, hessian: Tensor
    ) -> None:
        self.form = form
        self.hessian = hessian
        self.start = quantized
        self.columns = weight.shape[1]
        self.scales = quantized.scales.t().contiguous()
        zero = quantized.zero_points
        full = torch.full_like(quantized.scales, float(form.zero_point))
        self.zero = (full if zero is None else zero.to(torch.float32)).t().contiguous()
        codes = quantized.codes.flatten(1)[:, : self.columns].t()
        self.integers = codes.to(torch.float32) - self._per_input(self.zero)
        self.weight = weight.t().contiguous()
        self.descent = hessian @ self.difference()  # H Δᵀ, kept up to date

    def _per_input(self, values: Tensor) -> Tensor:
        return values.repeat_interleave(self.form.block_size, 0)[: self.columns]

    def difference(self) -> Tensor:
        """ΔWᵀ, [K, N]."""
        return self.weight - self.integers * self._per_input(self.scales)

    def error(self) -> Tensor:
        """Each row's share of tr(ΔW H ΔWᵀ), [N]."""
        return (self.difference() * self.descent).sum(0)

    def fit_scales(self, scale_dtype: torch.dtype) -> None:
        """Minimise over each block's scale in turn: s += z·(H Δ) / z·H z."""
        size = self.form.block_size
        for block in range(self.scales.shape[0]):
            inputs = slice(block * size, min((block + 1) * size, self.columns))
            integers = self.integers[inputs]
            square = (integers * (self.hessian[inputs, inputs] @ integers)).sum(0)
            step = (integers * self.descent[inputs]).sum(0) * reciprocal(square)
            new = (self.scales[block] + step).to(scale_dtype).to(torch.float32)
            change = integers * (new - self.scales[block])
            self.descent.addmm_(self.hessian[:, inputs], change, alpha=-1)
            self.scales[block] = new

    def revisit_codes(self) -> None:
        """Minimise over each input's code in turn, all rows at once."""
        for start in range(0, self.columns, _COLUMNS):
            inputs = slice(start, min(start + _COLUMNS, self.columns))
            before = self.integers[inputs] * self._scale_rows(inputs)
            self._revisit(inputs)
            change = self.integers[inputs] * self._scale_rows(inputs) - before
            self.descent.addmm_(self.hessian[:, inputs], change, alpha=-1)

    def _scale_rows(self, inputs: slice) -> Tensor:
        blocks = torch.arange(inputs.start, inputs.stop) // self.form.block_size
        return self.scales[blocks]

    def _revisit(self, inputs: slice) -> None:
        """Revisit inputs one after the other; `descent` is brought up to date by the caller."""
        inner = self.hessian[inputs, inputs]
        descent = self.descent[inputs].clone()
        for j in range(inputs.stop - inputs.start):
            k = inputs.start + j
            block = k // self.form.block_size
            scale, zero = self.scales[block], self.zero[block]
            wanted = self.integers[k] + descent[j] * reciprocal(scale) / inner[j, j]
            new = wanted.round_().clamp_(-zero, self.form.max_code - zero)
            change = (new - self.integers[k]) * scale
            descent[j:].addr_(inner[j:, j], change, alpha=-1)
            self.integers[k] = new

    def codes(self) -> Codes:
        """The refined weight; the padding keeps the codes that it had."""
        codes = self.start.codes.flatten(1).clone()
        values = self.integers + self._per_input(self.zero)
        codes[:, : self.columns] = values.t().to(torch.uint8)
        shape = self.start.codes.shape
        return Codes(codes.view(shape), self.scales.t().contiguous(), self.start.zero_points)
