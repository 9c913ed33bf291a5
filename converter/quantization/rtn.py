"""Block-wise rounding to nearest, byte for byte as ONNX Runtime's quantizer does it.

Source: onnxruntime's `mlas_q4dq` / `quantize_matmul_4bits` (default settings). The layout is that
of the operator MatMulNBits: a row's columns in blocks of `block_size`, codes packed with the lower
column in the lower bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from converter.quantization.rtn_kernel import round_rows


@dataclass(frozen=True)
class BlockFormat:
    """How a matrix is quantized: 4 or 8 bits, blocks along the columns, signed scale or not."""

    bits: int
    block_size: int
    symmetric: bool

    @property
    def zero_point(self) -> int:
        """MatMulNBits' zero point where no tensor gives one: 2^(bits−1)."""
        return 1 << (self.bits - 1)

    @property
    def max_code(self) -> int:
        return (1 << self.bits) - 1

    def blocks(self, columns: int) -> int:
        """Blocks in a row of `columns` values; the last one may be padded with zeros."""
        return -(-columns // self.block_size)

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row's packed codes."""
        return self.blocks(columns) * self.block_size * self.bits // 8

    def zero_point_bytes(self, columns: int) -> int:
        """Bytes of a row's packed zero points."""
        return -(-self.blocks(columns) * self.bits // 8)


@dataclass(frozen=True)
class Codes:
    """Quantized rows, unpacked.

    `codes` uint8 (rows, blocks, block_size), `scales` float32 (rows, blocks), `zero_points` uint8
    (rows, blocks) or None; the value of a code is (code − zero_point) · scale.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None

    def dequantize(self, form: BlockFormat) -> torch.Tensor:
        """float32 (rows, blocks · block_size), padding included."""
        zero = float(form.zero_point) if self.zero_points is None else self.zero_points.unsqueeze(2)
        return ((self.codes.float() - zero) * self.scales.float().unsqueeze(2)).flatten(1)


@dataclass(frozen=True)
class Packed:
    """Quantized rows as they are stored.

    `codes` uint8 (rows, blocks, block_size · bits / 8), `scales` float32 (rows, blocks),
    `zero_points` uint8 (rows, ceil(blocks · bits / 8)) or None.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None


def round_packed(rows: torch.Tensor, form: BlockFormat) -> Packed:
    """Round rows (float, (rows, columns)) to the nearest code of each block.

    Symmetric: scale = m / −2^(bits−1) with m the value of largest magnitude (the minimum on a
    tie); asymmetric: the range, widened to hold 0, in 2^bits − 1 steps. A value that is NaN or
    infinite makes all scales NaN.
    """
    count, columns = rows.shape
    blocks = form.blocks(columns)
    codes = torch.empty(count, blocks, form.block_size * form.bits // 8, dtype=torch.uint8)
    scales = torch.empty(count, blocks)
    width = 0 if form.symmetric else form.zero_point_bytes(columns)
    zero_points = torch.empty(count, width, dtype=torch.uint8)
    arrays = (codes.numpy(), scales.numpy(), zero_points.numpy())
    if not round_rows(_float_bits(rows), form.bits, form.symmetric, *arrays):
        scales.fill_(torch.nan)
    return Packed(codes, scales, None if form.symmetric else zero_points)


def quantize_rtn(rows: torch.Tensor, form: BlockFormat) -> Codes:
    """The codes of `round_packed`, unpacked."""
    found = round_packed(rows, form)
    codes, zero_points = unpack(found.codes, form.bits, form.block_size), None
    if found.zero_points is not None:
        zero_points = unpack(found.zero_points, form.bits, found.scales.shape[1])
    return Codes(codes, found.scales, zero_points)


def _float_bits(rows: torch.Tensor) -> NDArray[np.integer[Any]]:
    """The bits of contiguous rows: bfloat16 as uint16, anything else as float32 in int32."""
    if rows.dtype == torch.bfloat16:
        return rows.contiguous().view(torch.int16).numpy().view(np.uint16)
    return rows.to(torch.float32).contiguous().view(torch.int32).numpy()


def as_blocks(rows: torch.Tensor, form: BlockFormat) -> torch.Tensor:
    """A float32 copy of (rows, columns) as (rows, blocks, block_size), padded with zeros."""
    count, columns = rows.shape
    width = form.blocks(columns) * form.block_size
    values = rows.to(torch.float32, copy=True)
    if width != columns:
        values = torch.nn.functional.pad(values, (0, width - columns))
    return values.reshape(count, -1, form.block_size)


def pack_codes(found: Codes, form: BlockFormat) -> Packed:
    """Codes in the form in which they are stored."""
    zero_points = None if found.zero_points is None else pack(found.zero_points, form.bits)
    return Packed(pack(found.codes, form.bits), found.scales, zero_points)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack uint8 codes along the last dimension, the earlier one in the lower bits.

    A 4-bit row of odd length (of zero points) is padded with 8, as ONNX Runtime does.
    """
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1), value=8)
    pairs = codes.contiguous().view(torch.int16)  # little endian: the earlier code is the low byte
    return (pairs | pairs >> 4).to(torch.uint8)


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The inverse of `pack`: the first `count` codes of the last dimension."""
    if bits == 8:
        return packed[..., :count]
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)[..., :count]
