"""Matrices of integers with a scale for each group of columns, whatever packs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from converter.errors import ConvertError
from converter.prequantized.module import FETCH, UnfitError, same_shape
from converter.quantization.coded_weight import CodedWeight, StoredWeight, holding_block
from converter.quantization.rtn import BlockFormat, Packed, pack, unpack
from converter.weights.weight import Weight

Reader = Callable[[torch.Tensor], torch.Tensor]
"""Something of rows by an int64 index (n,)."""


@dataclass(frozen=True)
class Integers:
    """What a format stores of a matrix (rows, columns): value = (code − zero point) · scale.

    Attributes:
        shape: rows and columns.
        bits: of a code, 4 or 8.
        groups: int64 (columns,), the group of each column.
        scale_dtype: the scales' own type.
        codes: packed codes, uint8 (n, columns · bits / 8), the earlier column in the lower bits.
        scales: (n, number of groups).
        zero_points: uint8 (n, number of groups); None where all are 2^(bits−1).
        stored: the format in words.
        label: where it comes from, for error messages.
        columnar: whether rows lie in the source as columns.
    """

    shape: tuple[int, int]
    bits: int
    groups: torch.Tensor
    scale_dtype: torch.dtype
    codes: Reader
    scales: Reader
    zero_points: Reader | None
    stored: str
    label: str
    columnar: bool = False

    @property
    def symmetric(self) -> bool:
        return self.zero_points is None

    def weight(self) -> StoredWeight:
        """The matrix as a lazy weight, with its codes where MatMulNBits can hold them."""
        block = holding_block(self.groups)
        if block is None:
            return StoredWeight(
                self.shape,
                self._dequantized,
                self.stored,
                self.label,
                "groups of columns that no block of MatMulNBits holds",
                columnar=self.columnar,
            )
        form = BlockFormat(self.bits, block, self.symmetric)
        first = self.groups[::block]
        same = bool((first == torch.arange(len(first))).all())

        def read(rows: torch.Tensor) -> Packed:
            codes = self.codes(rows).view(len(rows), len(first), block * self.bits // 8)
            scales, points = self.scales(rows), self._points(rows)
            if not same:
                scales = scales[:, first]
                points = None if points is None else points[:, first]
            return Packed(codes, scales, None if points is None else pack(points, self.bits))

        return CodedWeight(
            self.shape,
            form,
            self.scale_dtype,
            read,
            self.stored,
            self.label,
            columnar=self.columnar,
        )

    def _points(self, rows: torch.Tensor) -> torch.Tensor | None:
        return None if self.zero_points is None else self.zero_points(rows)

    def _dequantized(self, rows: torch.Tensor) -> torch.Tensor:
        codes = unpack(self.codes(rows), self.bits, self.shape[1])
        points = self._points(rows)
        zero = float(1 << (self.bits - 1)) if points is None else points[:, self.groups].float()
        return (codes.float() - zero) * self.scales(rows).float()[:, self.groups]


def plain_groups(columns: int, size: int) -> torch.Tensor:
    """The group of each column where groups of `size` columns follow each other; int64."""
    return torch.arange(columns) // size


def read_groups(
    end: str, index: Weight, columns: int, size: int, number: int, ordered: bool
) -> torch.Tensor:
    """int64 (columns,): the group of each column, by the tensor `index` named `end`.

    In a repository that is not fetched yet they are taken for mixed where config.json says that
    columns were `ordered`, and for plain where it does not.

    Raises:
        UnfitError: it has another length, or names groups that there are not.
    """
    same_shape(end, index, (columns,), f"one group for each of the {columns} columns")
    try:
        found = index.read().long()
    except ConvertError:
        return torch.arange(columns) % number if ordered else plain_groups(columns, size)
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= number:
        raise UnfitError(
            f"{end} with groups from {low} to {high}", f"groups from 0 to {number - 1}", FETCH
        )
    return found


def group_words(size: int, columns: int) -> str:
    """The size of groups as a person says it."""
    return "one scale a row" if size >= columns else f"groups of {size}"
