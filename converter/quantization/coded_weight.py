"""Matrices that a source keeps quantized, as lazy weights: dequantized when they are read.

A `StoredWeight` gives float32 rows like any other weight. A `CodedWeight` also gives its integers
and scales as they are, where MatMulNBits can hold them: 4 or 8 bits, blocks along the columns of a
power of two, integer zero points. Rows may be permuted, selected and stacked without losing the
codes; whatever else is done to a weight gives an ordinary one, from dequantized values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from converter.quantization.rtn import BlockFormat, Codes, Packed, unpack
from converter.weights.weight import TILE_VALUES, Weight

SMALLEST_BLOCK, LARGEST_BLOCK = 16, 256
"""Block sizes of MatMulNBits: powers of two in this range."""
COLUMNAR_TILE = 1 << 21
"""Values per tile of a matrix whose rows are columns of the stored tensor: each tile walks over
the whole tensor, so fewer are cheaper."""

KEPT_TILE = 1 << 23
"""The same when the codes are only put in another order: four bits a value, no floats."""

RowReader = Callable[[torch.Tensor], torch.Tensor]
"""Rows by an int64 index (n,), float32 (n, columns)."""
PackedReader = Callable[[torch.Tensor], Packed]
"""Rows by an int64 index (n,); the scales have the source's own type."""


class StoredWeight(Weight):
    """A matrix (rows, columns) that its source keeps quantized, given in float32."""

    def __init__(
        self,
        shape: tuple[int, int],
        read: RowReader,
        stored: str,
        label: str,
        obstacle: str = "",
        index: torch.Tensor | None = None,
        columnar: bool = False,
    ) -> None:
        """Describe a matrix.

        Args:
            shape: rows and columns.
            read: gives rows of the source.
            stored: the source's format, such as `GPTQ, 4 bits, groups of 128`.
            label: where the values come from, for error messages.
            obstacle: why MatMulNBits cannot hold the source's codes.
            index: int64, the source's row of each row; None where they are the same.
            columnar: whether rows lie in the source as columns.
        """
        self.shape = shape if index is None else (len(index), shape[1])
        self.dtype, self.label = torch.float32, label
        self.stored, self.obstacle = stored, obstacle
        self._read, self._index, self._columnar = read, index, columnar

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self._read(self._sources(start, stop))

    def tiles(self, values: int = TILE_VALUES) -> Iterator[tuple[int, int]]:
        return super().tiles(max(values, COLUMNAR_TILE) if self._columnar else values)

    def permute_rows(self, index: torch.Tensor) -> StoredWeight:
        return StoredWeight(
            (len(index), self.shape[1]),
            self._read,
            self.stored,
            self.label,
            self.obstacle,
            self._chosen(index),
            self._columnar,
        )

    def _sources(self, start: int, stop: int) -> torch.Tensor:
        return torch.arange(start, stop) if self._index is None else self._index[start:stop]

    def _chosen(self, index: torch.Tensor) -> torch.Tensor:
        return index if self._index is None else self._index[index]


class CodedWeight(StoredWeight):
    """A matrix whose codes MatMulNBits can hold as they are.

    `form` says how they are packed: columns are a multiple of its block size. `scale_dtype` is the
    source's own type of scales.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        form: BlockFormat,
        scale_dtype: torch.dtype,
        read: PackedReader,
        stored: str,
        label: str,
        index: torch.Tensor | None = None,
        columnar: bool = False,
    ) -> None:
        self.form, self.scale_dtype, self._read_packed = form, scale_dtype, read

        def dequantized(rows: torch.Tensor) -> torch.Tensor:
            return unpacked(read(rows), form).dequantize(form)

        super().__init__(shape, dequantized, stored, label, "", index, columnar)

    def packed_tiles(self) -> Iterator[tuple[int, int]]:
        """Row ranges that cover the matrix in order, for `packed`."""
        return self.tiles(KEPT_TILE if self._columnar else TILE_VALUES)

    def packed(self, start: int, stop: int) -> Packed:
        """Codes, scales and zero points of rows [start, stop), to the bit as they are stored."""
        return self._read_packed(self._sources(start, stop))

    def permute_rows(self, index: torch.Tensor) -> CodedWeight:
        return CodedWeight(
            (len(index), self.shape[1]),
            self.form,
            self.scale_dtype,
            self._read_packed,
            self.stored,
            self.label,
            self._chosen(index),
            self._columnar,
        )

    def alike(self, other: CodedWeight) -> bool:
        """Whether the rows of both can stand in one matrix of codes."""
        mine, theirs = (self.form, self.scale_dtype), (other.form, other.scale_dtype)
        return mine == theirs and self.shape[1] == other.shape[1]


def stack_codes(parts: Sequence[CodedWeight]) -> CodedWeight:
    """The rows of `parts`, all `alike`, one below the other."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    bounds = torch.tensor([0, *(part.shape[0] for part in parts)]).cumsum(0)

    def read(rows: torch.Tensor) -> Packed:
        number = torch.bucketize(rows, bounds[1:], right=True)
        found = [
            part.permute_rows(rows[number == place] - bounds[place]).packed(0, count)
            for place, part in enumerate(parts)
            if (count := int((number == place).sum()))
        ]
        order = torch.argsort(torch.argsort(number, stable=True))
        return found[0] if len(found) == 1 else _joined(found, order)

    return CodedWeight(
        (int(bounds[-1]), first.shape[1]),
        first.form,
        first.scale_dtype,
        read,
        first.stored,
        " + ".join(part.label for part in parts),
        columnar=first._columnar,
    )


def _joined(found: Sequence[Packed], order: torch.Tensor) -> Packed:
    points = [item.zero_points for item in found if item.zero_points is not None]
    return Packed(
        torch.cat([item.codes for item in found])[order],
        torch.cat([item.scales for item in found])[order],
        torch.cat(points)[order] if points else None,
    )


def unpacked(found: Packed, form: BlockFormat) -> Codes:
    """Codes of packed rows, one a byte; the scales become float32."""
    points = found.zero_points
    if points is not None:
        points = unpack(points, form.bits, found.scales.shape[1])
    return Codes(unpack(found.codes, form.bits, form.block_size), found.scales.float(), points)


def holding_block(groups: torch.Tensor) -> int | None:
    """The largest block whose columns all have one scale; None where MatMulNBits has none.

    Args:
        groups: int64 (columns,), the group of each column, whose scale it has.
    """
    size = LARGEST_BLOCK
    while size >= SMALLEST_BLOCK:
        if len(groups) % size == 0:
            blocks = groups.view(-1, size)
            if bool((blocks == blocks[:, :1]).all()):
                return size
        size //= 2
    return None


def stored_forms(weights: Iterable[Weight]) -> dict[str, int]:
    """How many of the weights a source holds in each quantized format; each counts once."""
    held = {id(item): item.stored for item in weights if isinstance(item, StoredWeight)}
    return dict(Counter(held.values()))
