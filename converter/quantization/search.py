"""Scale and zero point per block that minimise the activation-weighted rounding error.

For a linear y = x Wᵀ the squared output error of a rounded weight, with the inputs' second moments
reduced to their diagonal h, is sum_k h_k (w_k - ŵ_k)². Given the integers z = q - zp of a block,
the best scale is the weighted least squares one, s = Σ h w z / Σ h z², and lowers the error from
Σ h w² by (Σ h w z)² / Σ h z². So a candidate scale only has to propose integers: the search
keeps those that lower the error most, and fits the scale to them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from converter.quantization.rtn import BlockFormat, Codes, as_blocks, quantize_rtn
from converter.quantization.search_kernel import encode, propose_asymmetric, propose_symmetric

_TILE_VALUES = 1 << 18  # rows are taken in tiles of about this many weights: 1 MB, stays in cache
_SHRINK = {  # candidate scales, as fractions of the one that spans the block's range
    4: (1.12, 1.06, 1.0, 0.95, 0.9, 0.85, 0.8, 0.74, 0.68, 0.6),
    8: (1.01, 1.0, 0.99, 0.97, 0.94),
}


def block_importance(diagonal: Tensor, form: BlockFormat) -> Tensor:
    """Weights of the squared errors, float32 [n_blocks, block_size], from diag(XᵀX) [K].

    Normalised to a mean of 1. A block whose inputs are all zero (dead) gets equal weights, so that
    it is rounded as if nothing were known; the padding weighs nothing.
    """
    diagonal = diagonal.to(torch.float64)
    normal = diagonal / diagonal.mean().clamp(min=1e-300)
    blocks = as_blocks(normal[None], form)[0]
    real = as_blocks(torch.ones_like(normal)[None], form)[0]
    return torch.where(blocks.sum(-1, keepdim=True) <= 0, real, blocks)


def search_blocks(
    weight: Tensor,
    diagonal: Tensor,
    form: BlockFormat,
    scale_dtype: torch.dtype = torch.float32,
) -> Codes:
    """Round a weight with the scales (and zero points) of least activation-weighted error.

    Never worse in that error than rounding to nearest, which is a candidate in every block.

    Args:
        weight: [N, K], any floating type.
        diagonal: diag(XᵀX) of the linear's inputs, [K], not negative; a common factor is ignored.
        form: bits, block size, symmetric (a signed scale) or not (a zero point per block).
        scale_dtype: type in which the scales will be stored; the codes are the nearest ones under
            the scale as rounded to it.

    Returns:
        Codes whose scales are float32 and exact in `scale_dtype`. Inputs past K have the zero
        point as their code.

    Raises:
        ValueError: the diagonal does not have K values.
    """
    if diagonal.shape != weight.shape[1:]:
        raise ValueError(f"diagonal {tuple(diagonal.shape)} does not match {tuple(weight.shape)}")
    importance = block_importance(diagonal, form)
    tiles = torch.split(weight, max(1, _TILE_VALUES // max(1, weight.shape[1])))
    return concatenate([_search_tile(tile, importance, form, scale_dtype) for tile in tiles])


def concatenate(parts: list[Codes]) -> Codes:
    """Stack the rows of several quantized matrices of one width and format."""
    zeros = [part.zero_points for part in parts if part.zero_points is not None]
    return Codes(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(zeros) if zeros else None,
    )


def _search_tile(
    rows: Tensor, importance: Tensor, form: BlockFormat, scale_dtype: torch.dtype
) -> Codes:
    blocks = as_blocks(rows, form)
    scale, zero = _propose(blocks, importance, form)
    plain = quantize_rtn(rows, form)
    plain_zero = zero if plain.zero_points is None else plain.zero_points.float()
    found = _encode(blocks, importance, scale, zero, form, scale_dtype)
    other = _encode(blocks, importance, plain.scales, plain_zero, form, scale_dtype)
    worse = found[0] > other[0]
    _, codes, scales, zero = (_choose(worse, b, a) for a, b in zip(found, other, strict=True))
    return Codes(codes, scales, None if form.symmetric else zero.to(torch.uint8))


def _choose(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(mask[..., None] if yes.dim() > mask.dim() else mask, yes, no)


def _propose(blocks: Tensor, importance: Tensor, form: BlockFormat) -> tuple[Tensor, Tensor]:
    """Scales and zero points, float32 (rows, blocks), of the integers that gain most."""
    scales, zeros = torch.empty(blocks.shape[:2]), torch.full(blocks.shape[:2], form.zero_point)
    zeros = zeros.float()
    given = blocks.numpy(), importance.numpy(), np.array(_SHRINK[form.bits], np.float32)
    if form.symmetric:
        propose_symmetric(*given, form.zero_point, scales.numpy())
    else:
        offsets = np.array((-1, 0, 1) if form.bits == 4 else (0,), np.float32)
        propose_asymmetric(*given, offsets, form.max_code, scales.numpy(), zeros.numpy())
    return scales, zeros


def _encode(
    blocks: Tensor,
    importance: Tensor,
    scale: Tensor,
    zero: Tensor,
    form: BlockFormat,
    scale_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted errors per block, nearest codes under the stored scales, those scales, zeros."""
    scales = scale.to(scale_dtype).to(torch.float32)
    codes = torch.empty(blocks.shape, dtype=torch.uint8)
    errors = torch.empty(blocks.shape[:2])
    given = (blocks, importance, scales, zero)
    encode(*(item.numpy() for item in given), form.max_code, codes.numpy(), errors.numpy())
    return errors, codes, scales, zero
