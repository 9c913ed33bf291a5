"""GPTQ: rounding that lets the inputs not yet rounded make up for the errors of those that are.

GPTQ (arXiv 2210.17323) minimises tr(ΔW H ΔWᵀ), H = XᵀX, one input at a time. With the columns in
the order of rounding and H = R Rᵀ, R upper triangular, that error is ‖ΔW R‖², and its column j is
R_jj (ΔW_j + Σ_{i<j} ΔW_i R_ij / R_jj): so rounding W_j + Σ_{i<j} ΔW_i R_ij / R_jj, ΔW = W - Ŵ, to
the nearest grid point is the greedy choice. It is the same rounding as the paper's (QuIP,
arXiv 2307.13304, theorem 6) and needs one Cholesky factor instead of an inverse and a factor.

Scales and zero points are those of `search_blocks`, fixed before any rounding (static groups), so
that the inputs may be rounded in the order of falling diag(H) (act-order) while the blocks stay
those of the stored order: the runtime needs no g_idx.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from converter.quantization.gptq_kernel import round_group
from converter.quantization.rtn import BlockFormat, Codes

_COLUMNS = 64  # columns rounded between two matrix products
_ROWS = 512  # rows of H copied at a time
_RESOLVED = 0.05  # with so much damping, float32 resolves the eigenvalues of H


@dataclass(frozen=True)
class GptqFactor:
    """What GPTQ needs of H; shared by all linears with the same inputs, in any bits or blocks.

    Attributes:
        order: int64 [K], the inputs in the order of rounding.
        feedback: float32 [K, K] in that order, strictly upper triangular: R_ij / R_jj.
        curvature: float32 [K] in the stored order, R_jj² over the mean of diag(H), 0 for an input
            that is always zero: what an error of input j costs once the inputs after it have made
            up for it. As the importance in
            `search_blocks` it gives GPTQ better scales than diag(H) (measured: 7 % less error).
    """

    order: Tensor
    feedback: Tensor
    curvature: Tensor


def gptq_factor(hessian: Tensor, *, damping: float = 0.1, act_order: bool = True) -> GptqFactor:
    """Factor H = XᵀX for `gptq_round`.

    Args:
        hessian: [K, K], any floating type; it is factored in float32 where the damping bounds the
            span of its eigenvalues and the factor is sound, in float64 otherwise.
        damping: multiple of the mean of diag(H), inputs that are always zero left out, that is
            added to the diagonal. It is raised tenfold until the factorisation succeeds. Few
            tokens, or tokens of unequal weight, want more of it (measured at 8k weighted tokens:
            KL 0.132 with 0.01, 0.116 with 0.1).
        act_order: round the inputs in the order of falling diag(H).

    Raises:
        ValueError: H is not square or holds values that are not finite.
    """
    if hessian.dim() != 2 or hessian.shape[0] != hessian.shape[1]:
        raise ValueError(f"H must be square, found {tuple(hessian.shape)}")
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("H holds values that are not finite")
    diagonal = hessian.diagonal().to(torch.float64)
    order = torch.argsort(diagonal, descending=True, stable=True)
    if not act_order:
        order = torch.arange(diagonal.numel())
    # Cholesky gives H' = L Lᵀ, L lower; with the columns reversed L becomes the upper factor R.
    backwards = order.flip(0)
    lower, mean = _cholesky(hessian, backwards, damping)
    pivots = lower.diagonal().clone()
    lower /= pivots
    curvature = torch.empty(diagonal.shape)
    curvature[backwards] = (pivots.double().square() / mean).to(torch.float32)
    curvature[diagonal <= 0] = 0
    return GptqFactor(order, _reversed(lower), curvature)


def _cholesky(hessian: Tensor, index: Tensor, damping: float) -> tuple[Tensor, float]:
    """Lower Cholesky factor of H[index][:, index] + damping · mean(diag H) · I, and its mean."""
    if damping >= _RESOLVED:
        factor, mean = _factor(hessian, index, damping, torch.float32)
        if factor is not None:
            return factor, mean
    while True:
        factor, mean = _factor(hessian, index, damping, torch.float64)
        if factor is not None:
            return factor, mean
        damping = max(damping * 10, 1e-6)


def _factor(
    hessian: Tensor, index: Tensor, damping: float, dtype: torch.dtype
) -> tuple[Tensor | None, float]:
    matrix = _permuted(hessian, index, dtype)
    mean = _revive_dead(matrix)
    added = damping * mean
    matrix.diagonal().add_(added)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    # No pivot of a sound factor is below the least eigenvalue, which is at least what was added.
    if int(failed) or float(factor.diagonal().min()) ** 2 < 0.5 * added:
        return None, mean + added
    return factor, mean + added


def _permuted(hessian: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """H[index][:, index], by rows: no other copy of the size of H."""
    result = torch.empty(hessian.shape, dtype=dtype)
    for start in range(0, len(index), _ROWS):
        rows = slice(start, start + _ROWS)
        result[rows] = hessian[index[rows]][:, index]
    return result


def _reversed(lower: Tensor) -> Tensor:
    """The rows and columns of L backwards, strictly upper triangular, in float32, by rows."""
    size = lower.shape[0]
    result = torch.empty(lower.shape)
    for start in range(0, size, _ROWS):
        stop = min(start + _ROWS, size)
        result[start:stop] = lower[size - stop : size - start].flip((0, 1))
    return result.triu_(1)


def _revive_dead(hessian: Tensor) -> float:
    """Give inputs that are always zero the mean diagonal of the others, which is returned: they are
    rounded to nearest, alone."""
    diagonal = hessian.diagonal()
    alive = diagonal > 0
    mean = float(diagonal[alive].mean(dtype=torch.float64)) if bool(alive.any()) else 1.0
    diagonal[~alive] = mean
    return mean


def gptq_round(weight: Tensor, grid: Codes, form: BlockFormat, factor: GptqFactor) -> Codes:
    """Round a weight to the scales and zero points of `grid`, feeding errors forward.

    Args:
        weight: [N, K], any floating type.
        grid: scales and zero points, from `search_blocks`; its codes are not used.
        form: the format of the grid.
        factor: of the linear's H [K, K].

    Returns:
        `grid` with other codes.
    """
    size, order = weight.shape[1], factor.order
    columns = weight.to(torch.float32).t()[order].contiguous()
    errors = torch.empty_like(columns)
    codes = torch.empty(columns.shape, dtype=torch.uint8)
    scales, zeros = grid.scales.t().contiguous(), grid_zeros(grid, form)
    block = order // form.block_size
    for start in range(0, size, _COLUMNS):
        group = slice(start, min(start + _COLUMNS, size))
        targets = columns[group].addmm(factor.feedback[:start, group].t(), errors[:start])
        given = (targets, columns[group], factor.feedback[group, group].contiguous(), block[group])
        arrays = [item.numpy() for item in (*given, scales, zeros)]
        round_group(*arrays, form.max_code, codes[group].numpy(), errors[group].numpy())
    return replace(grid, codes=_blocks_of(codes, order, grid))


def grid_zeros(grid: Codes, form: BlockFormat) -> Tensor:
    """The zero points of a grid, float32 [n_blocks, N]."""
    if grid.zero_points is None:
        return torch.full(grid.scales.t().shape, float(form.zero_point))
    return grid.zero_points.t().to(torch.float32).contiguous()


def _blocks_of(codes: Tensor, order: Tensor, grid: Codes) -> Tensor:
    """Codes [K, N] in rounding order as [N, n_blocks, block_size]; the padding is unchanged."""
    result = grid.codes.flatten(1).clone()
    result[:, order] = codes.t()
    return result.view(grid.codes.shape)


def hessian_error(weight: Tensor, rounded: Tensor, hessian: Tensor) -> float:
    """tr(ΔW H ΔWᵀ): the sum of squared output errors over the tokens that H was gathered from.

    Args:
        weight, rounded: [N, K], any floating type.
        hessian: XᵀX [K, K].
    """
    difference = weight.to(torch.float32) - rounded.to(torch.float32)
    product = difference @ hessian.to(torch.float32)
    return float((product * difference).sum(dtype=torch.float64))
