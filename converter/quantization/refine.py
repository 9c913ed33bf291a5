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

_COLUMNS = 64  # inputs visited, at least, between two matrix products


def refine(
    weight: Tensor,
    quantized: Codes,
    form: BlockFormat,
    hessian: Tensor,
    *,
    sweeps: int = 1,
    damping: float = 0.1,
    scale_dtype: torch.dtype = torch.float32,
) -> Codes:
    """Fit the scales and revisit the codes, block by block; keep per row what is better.

    Args:
        weight: [N, K], any floating type.
        quantized: from `gptq_round` (or any other rounding) in the format `form`.
        form: bits, block size, symmetric or not; zero points stay as they are.
        hessian: XᵀX [K, K].
        sweeps: times that every scale and code is visited; each costs about 2 N K² operations.
        damping: multiple of the mean of diag(H) added to the diagonal, as in `gptq_factor`; 0
            when `damp` has done it, and H is then read in place.
        scale_dtype: type in which the scales will be stored.

    Returns:
        Codes of the same format; in no row is tr(ΔW H ΔWᵀ), damped, larger than before.
    """
    weight = weight.to(torch.float32)
    damped = damp(hessian.to(torch.float32, copy=True), damping) if damping else hessian
    state = _State(weight, quantized, form, damped)
    before = state.error()
    for _ in range(sweeps):
        state.sweep(scale_dtype)
    worse = state.error() > before
    result = state.codes()
    return Codes(
        torch.where(worse[:, None, None], quantized.codes, result.codes),
        torch.where(worse[:, None], quantized.scales, result.scales),
        quantized.zero_points,
    )


def damp(hessian: Tensor, damping: float = 0.1) -> Tensor:
    """Scale a float32 H [K, K] to a mean diagonal of 1 and add `damping` to it, in place."""
    hessian /= hessian.diagonal().mean().clamp(min=1e-30)
    hessian.diagonal().add_(damping if bool(hessian.any()) else 1.0)
    return hessian


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

    def sweep(self, scale_dtype: torch.dtype) -> None:
        """Visit every block in turn: fit its scale, then revisit its codes."""
        size = self.form.block_size
        group = max(size, _COLUMNS)
        for start in range(0, self.columns, group):
            inputs = slice(start, min(start + group, self.columns))
            before = self._rounded(inputs)
            # Within the group its own part of the gradient is kept up to date step by step, the
            # rest in one product at its end.
            inner, descent = self.hessian[inputs, inputs], self.descent[inputs].clone()
            for first in range(0, inputs.stop - start, size):
                block = slice(first, min(first + size, inputs.stop - start))
                self._fit_scale(start, block, inner, descent, scale_dtype)
                for j in range(block.start, block.stop):
                    self._revisit_code(start + j, inner[j, j:], descent[j:])
            change = self._rounded(inputs) - before
            self.descent.addmm_(self.hessian[:, inputs], change, alpha=-1)

    def _rounded(self, inputs: slice) -> Tensor:
        blocks = torch.arange(inputs.start, inputs.stop) // self.form.block_size
        return self.integers[inputs] * self.scales[blocks]

    def _fit_scale(
        self, start: int, block: slice, inner: Tensor, descent: Tensor, scale_dtype: torch.dtype
    ) -> None:
        """The exact minimiser over one block's scale: s += z·(H Δ) / z·H z."""
        number = (start + block.start) // self.form.block_size
        integers = self.integers[start + block.start : start + block.stop]
        square = (integers * (inner[block, block] @ integers)).sum(0)
        step = (integers * descent[block]).sum(0) * reciprocal(square)
        new = (self.scales[number] + step).to(scale_dtype).to(torch.float32)
        change = integers * (new - self.scales[number])
        descent.addmm_(inner[:, block], change, alpha=-1)
        self.scales[number] = new

    def _revisit_code(self, k: int, curvature: Tensor, descent: Tensor) -> None:
        """The exact minimiser over input k's code; `curvature` is H[k, k:], `descent` from k on."""
        block = k // self.form.block_size
        scale, zero = self.scales[block], self.zero[block]
        wanted = self.integers[k] + descent[0] * reciprocal(scale) / curvature[0]
        new = wanted.round_().clamp_(-zero, self.form.max_code - zero)
        descent.addr_(curvature, (new - self.integers[k]) * scale, alpha=-1)
        self.integers[k] = new

    def codes(self) -> Codes:
        """The refined weight; the padding keeps the codes that it had."""
        codes = self.start.codes.flatten(1).clone()
        values = self.integers + self._per_input(self.zero)
        codes[:, : self.columns] = values.t().to(torch.uint8)
        shape = self.start.codes.shape
        return Codes(codes.view(shape), self.scales.t().contiguous(), self.start.zero_points)
