"""Block-wise rounding to nearest, byte for byte as ONNX Runtime's quantizer does it.

Source: onnxruntime's `mlas_q4dq` / `quantize_matmul_4bits` (default settings). The layout is that
of the operator MatMulNBits: a row's columns in blocks of `block_size`, codes packed with the lower
column in the lower bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


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


def quantize_rtn(rows: torch.Tensor, form: BlockFormat) -> Codes:
    """Round rows (float, (rows, columns)) to the nearest code of each block.

    Symmetric: scale = m / −2^(bits−1) with m the value of largest magnitude (the minimum on a
    tie); asymmetric: the range, widened to hold 0, in 2^bits − 1 steps.
    """
    blocks = as_blocks(rows, form)
    low, high = blocks.amin(-1), blocks.amax(-1)
    if form.symmetric:
        extreme = torch.where(-low >= high, low, high)
        # A block of zeros takes the sign of its first one, as a scan from the front does.
        extreme = torch.where(extreme == 0, blocks[..., 0], extreme)
        scales = extreme / -float(form.zero_point)
        zero_points, offset = None, torch.tensor(form.zero_point + 0.5)
    else:
        low, high = low.clamp_(max=0), high.clamp_(min=0)
        scales = (high - low) / form.max_code
        zero = torch.where(scales == 0, 0.0, -low / scales)
        offset = round_half_away(zero).clamp_(0, form.max_code)
        zero_points, offset = offset.to(torch.uint8), offset.unsqueeze(-1) + 0.5
    inverse = (1 / scales).masked_fill_(scales == 0, 0).unsqueeze(-1)
    # Codes are clamped at 0, so half away from zero is floor(x + 0.5), and the conversion to an
    # integer is that floor.
    values = blocks.mul_(inverse).add_(offset).clamp_(0, form.max_code)
    # PyTorch converts to int8 2.5 times faster than to uint8.
    codes = values.to(torch.int8).view(torch.uint8) if form.bits == 4 else values.to(torch.uint8)
    codes.flatten(1)[:, rows.shape[1] :] = 0  # the padding's codes, which nothing reads
    return Codes(codes, scales, zero_points)


def as_blocks(rows: torch.Tensor, form: BlockFormat) -> torch.Tensor:
    """A float32 copy of (rows, columns) as (rows, blocks, block_size), padded with zeros."""
    count, columns = rows.shape
    width = form.blocks(columns) * form.block_size
    values = rows.to(torch.float32, copy=True)
    if width != columns:
        values = torch.nn.functional.pad(values, (0, width - columns))
    return values.reshape(count, -1, form.block_size)


def round_half_away(values: torch.Tensor) -> torch.Tensor:
    """C's roundf: halves go away from zero (torch.round sends them to the even neighbour)."""
    return torch.trunc(values + torch.copysign(torch.tensor(0.5), values))


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
