"""A quantized matrix as a group of lazy tensors: codes, scales, zero points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from converter.errors import ConvertError, Problem
from converter.quantization.coded_weight import CodedWeight, unpacked
from converter.quantization.rtn import (
    BlockFormat,
    Codes,
    Packed,
    pack_codes,
    quantize_rtn,
    round_packed,
)
from converter.weights.weight import ComputedWeight, PartSpec, RowGroup, Weight

Rounding = Callable[[int, int], Codes]
"""Codes of rows [start, stop) of a matrix."""


class QuantizedMatrix(RowGroup):
    """A matrix (N, K) in the form of MatMulNBits or GatherBlockQuantized.

    The codes are those of `rounding`, or the nearest; or, when `keeps`, those of the source, a
    `CodedWeight` in the same format.

    Parts, packed codes first as the operators take them:
        codes uint8 (N, blocks, block_size · bits / 8), or (N, blocks · block_size · bits / 8) when
        `flat`: numbers around 2^(bits-1) or, when `signed`, two's complement around 0;
        scales (N, blocks) in `scale_dtype`; zero_points uint8 (N, ceil(blocks · bits / 8)), only
        when asymmetric.
    """

    def __init__(
        self,
        source: Weight,
        form: BlockFormat,
        scale_dtype: torch.dtype,
        rounding: Rounding | None = None,
        flat: bool = False,
        signed: bool = False,
        keeps: bool = False,
    ) -> None:
        self.source, self.form, self.label = source, form, source.label
        self._scale_dtype, self._flat = scale_dtype, flat
        # Flipping each code's highest bit turns an excess code into two's complement.
        self._flip = {4: 0x88, 8: 0x80}[form.bits] if signed else 0
        self._rounding, self.keeps = rounding, keeps

    @property
    def specs(self) -> Mapping[str, PartSpec]:
        rows, columns = self.source.shape
        form = self.form
        blocks, blob = form.blocks(columns), form.block_size * form.bits // 8
        shape = (rows, blocks * blob) if self._flat else (rows, blocks, blob)
        specs = {
            "codes": PartSpec(shape, torch.uint8),
            "scales": PartSpec((rows, blocks), self._scale_dtype),
        }
        if not form.symmetric:
            shape = (rows, form.zero_point_bytes(columns))
            specs["zero_points"] = PartSpec(shape, torch.uint8)
        return specs

    def rows(self, start: int, stop: int) -> Mapping[str, torch.Tensor]:
        found = self._packed(start, stop)
        scales = found.scales.to(self._scale_dtype)
        if not bool(torch.isfinite(scales).all()):
            raise ConvertError(not_finite(self.label, scales.dtype))
        codes = found.codes ^ self._flip if self._flip else found.codes
        parts = {"codes": codes.flatten(1) if self._flat else codes, "scales": scales}
        if found.zero_points is not None:
            parts["zero_points"] = found.zero_points
        return parts

    def tiles(self) -> Iterator[tuple[int, int]]:
        # Smaller tiles would fit the cache better, but then threads wait for the interpreter.
        if self.keeps and isinstance(self.source, CodedWeight):
            return self.source.packed_tiles()
        return self.source.tiles()

    def dequantized(self) -> Weight:
        """The matrix that the codes stand for, float32 (N, K)."""
        columns = self.source.shape[1]

        def compute(start: int, stop: int) -> torch.Tensor:
            found = self._codes(start, stop)
            rounded = found.scales.to(self._scale_dtype).float()
            shipped = Codes(found.codes, rounded, found.zero_points)
            return shipped.dequantize(self.form)[:, :columns]

        return ComputedWeight(self.source.shape, torch.float32, compute, self.label)

    def _packed(self, start: int, stop: int) -> Packed:
        if self.keeps:
            assert isinstance(self.source, CodedWeight)
            return self.source.packed(start, stop)
        if self._rounding is None:
            return round_packed(self.source.rows(start, stop), self.form)
        return pack_codes(self._rounding(start, stop), self.form)

    def _codes(self, start: int, stop: int) -> Codes:
        if self.keeps:
            return unpacked(self._packed(start, stop), self.form)
        if self._rounding is None:
            return quantize_rtn(self.source.rows(start, stop), self.form)
        return self._rounding(start, stop)


def not_finite(label: str, dtype: torch.dtype) -> Problem:
    """The problem of a tensor with NaN or infinite values, or values past `dtype`'s range."""
    name = str(dtype).removeprefix("torch.")
    return Problem(
        f"{label} has NaN, infinite, or too large values.",
        f"finite values within the range of {name}",
        "check the checkpoint, or choose target.float_type=fp32 if its values exceed the range",
    )
