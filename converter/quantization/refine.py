"""Refinement of a rounded weight against H = XᵀX: scales by least squares, codes one by one.

Both are coordinate descent on tr(ΔW H ΔWᵀ), ΔW = W - Ŵ, whose negative half gradient is ΔW H; every
step is the exact minimiser over one block's scale, or over one input's code, with all else fixed,
so the error never rises (up to the rounding of the scales to the type they are stored in). GPTQ is
the natural start: it never goes back to an input, this does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from converter.quantization.gptq import grid_zeros
from converter.quantization.refine_kernel import best_scales, move_codes, move_scales
from converter.quantization.rtn import BlockFormat, Codes

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
        sweeps: times that every scale and code is visited; each costs about 2 N K² operations, the
            last one half of that.
        damping: multiple of the mean of diag(H) added to the diagonal, as in `gptq_factor`; 0
            when `damp` has done it, and H is then read in place.
        scale_dtype: type in which the scales will be stored.

    Returns:
        Codes of the same format; in no row is tr(ΔW H ΔWᵀ), damped, larger than before.
    """
    weight = weight.to(torch.float32)
    damped = damp(hessian.to(torch.float32, copy=True), damping) if damping else hessian
    state = _State(weight, quantized, form, damped)
    for number in range(sweeps):
        state.sweep(scale_dtype, last=number == sweeps - 1)
    worse = state.change > 0
    result = state.codes()
    return Codes(
        torch.where(worse[:, None, None], quantized.codes, result.codes),
        torch.where(worse[:, None], quantized.scales, result.scales),
        quantized.zero_points,
    )


def damp(hessian: Tensor, damping: float = 0.1) -> Tensor:
    """Scale a float32 H [K, K] to a mean diagonal of 1 and add `damping` to it, in place.

    Inputs that are always zero do not count for the mean.
    """
    alive = hessian.diagonal()[hessian.diagonal() > 0]
    hessian /= alive.mean().clamp(min=1e-30) if alive.numel() else 1.0
    hessian.diagonal().add_(damping if alive.numel() else 1.0)
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
        self.zeros = grid_zeros(quantized, form)
        codes = quantized.codes.flatten(1)[:, : self.columns].t().contiguous()
        self.integers = codes.to(torch.float32) - self._per_input(self.zeros)
        difference = weight.t() - self.integers * self._per_input(self.scales)
        self.descent = hessian @ difference  # H Δᵀ of the inputs still to be visited
        self.change = torch.zeros(weight.shape[0])  # of each row's share of tr(ΔW H ΔWᵀ)

    def _per_input(self, values: Tensor) -> Tensor:
        return values.repeat_interleave(self.form.block_size, 0)[: self.columns]

    def sweep(self, scale_dtype: torch.dtype, last: bool) -> None:
        """Visit every block in turn: fit its scale, then revisit its codes.

        In the last sweep nobody reads H Δ of an input that has been visited.
        """
        size = self.form.block_size
        group = max(size, _COLUMNS)
        for start in range(0, self.columns, group):
            inputs = slice(start, min(start + group, self.columns))
            before = self._rounded(inputs)
            # Within the group its own part of H Δ is kept up to date step by step, the rest in one
            # product at its end.
            inner, descent = self.hessian[inputs, inputs].contiguous(), self.descent[inputs].clone()
            for first in range(0, inputs.stop - start, size):
                count = min(size, inputs.stop - start - first)
                self._visit(
                    start + first, count, inner[first:, first:], descent[first:], scale_dtype
                )
            change = self._rounded(inputs) - before
            rest = slice(inputs.stop if last else 0, None)
            self.descent[rest].addmm_(self.hessian[rest, inputs], change, alpha=-1)

    def _rounded(self, inputs: slice) -> Tensor:
        blocks = torch.arange(inputs.start, inputs.stop) // self.form.block_size
        return self.integers[inputs] * self.scales[blocks]

    def _visit(
        self, start: int, count: int, inner: Tensor, descent: Tensor, scale_dtype: torch.dtype
    ) -> None:
        """One block; `inner` and `descent` begin at its first input and go on past it."""
        number = start // self.form.block_size
        hessian, integers = inner.numpy(), self.integers[start : start + count].numpy()
        scales, rest, change = self.scales[number].numpy(), descent.numpy(), self.change.numpy()
        wanted, *terms = best_scales(hessian[:count, :count], integers, rest[:count], scales)
        stored = torch.from_numpy(wanted).to(scale_dtype).to(torch.float32).numpy()
        move_scales(hessian, integers, rest, scales, stored, *terms, change)
        zeros = self.zeros[number].numpy()
        move_codes(hessian, integers, rest, scales, zeros, self.form.max_code, change)

    def codes(self) -> Codes:
        """The refined weight; the padding keeps the codes that it had."""
        codes = self.start.codes.flatten(1).clone()
        values = self.integers + self._per_input(self.zeros)
        codes[:, : self.columns] = values.t().to(torch.uint8)
        shape = self.start.codes.shape
        return Codes(codes.view(shape), self.scales.t().contiguous(), self.start.zero_points)
