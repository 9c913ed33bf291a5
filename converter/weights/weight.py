"""Lazy tensors: shape and dtype known from headers, values read in rows on demand.

A `Weight` is a recipe for a tensor, not the tensor. Combinators (`permute_rows`, `cast`, …) build
new ones for free, and reading rows [start, stop) touches only the source bytes those rows need. So
a model of any size passes through the whole pipeline with one tile in memory.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

TILE_VALUES = 1 << 20
"""Values per tile when a tensor is streamed: 4 MiB of fp32, which stays in a core's L2 cache."""


class Weight(ABC):
    """A tensor that is read by rows, along its first dimension. Immutable."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    label: str
    """Where the values come from, for error messages: a tensor name and its file."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Read rows [start, stop): a new tensor of shape `(stop - start, *shape[1:])`, `dtype`.

        Raises `ConvertError` if the source cannot be read.
        """

    def block(self, start: int, stop: int, low: int, high: int) -> torch.Tensor:
        """Columns [low, high) of rows [start, stop): shape (stop - start, high - low)."""
        return self.rows(start, stop)[:, low:high]

    def read(self) -> torch.Tensor:
        """Read the whole tensor."""
        return self.rows(0, self.shape[0])

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def tiles(self, values: int = TILE_VALUES) -> Iterator[tuple[int, int]]:
        """Row ranges that cover the tensor in order, each of about `values` values."""
        step = max(1, values // max(1, math.prod(self.shape[1:])))
        for start in range(0, self.shape[0], step):
            yield start, min(start + step, self.shape[0])

    def permute_rows(self, index: torch.Tensor) -> Weight:
        """Row i of the result is row `index[i]` (int64) of this; `index` may also select rows."""
        return _PermutedRows(self, index)

    def cast(self, dtype: torch.dtype) -> Weight:
        """The same values rounded to `dtype`."""
        return self if dtype == self.dtype else CastWeight(self, dtype)

    def scale_rows(self, scale: torch.Tensor) -> Weight:
        """Row i times `scale[i]`, computed and given in float32."""
        factors = scale.float().reshape(-1, *[1] * (len(self.shape) - 1))
        return _Mapped(
            self, lambda x, start: x.float() * factors[start : start + x.shape[0]], torch.float32
        )

    def scale_columns(self, scale: torch.Tensor) -> Weight:
        """Column k times `scale[k]`, computed and given in float32."""
        return _Mapped(self, lambda x, _: x.float() * scale.float(), torch.float32)

    def transpose(self) -> Weight:
        """Shape (N, K) as (K, N)."""
        return _Transposed(self)


class TensorWeight(Weight):
    """A weight whose values are in memory: small things such as norms and caches."""

    def __init__(self, tensor: torch.Tensor, label: str = "computed") -> None:
        self.tensor, self.label = tensor, label
        self.shape, self.dtype = tuple(tensor.shape), tensor.dtype

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.tensor[start:stop].clone()


class ComputedWeight(Weight):
    """A weight whose rows a function makes on demand: `compute(start, stop)`."""

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        compute: Callable[[int, int], torch.Tensor],
        label: str,
    ) -> None:
        self.shape, self.dtype, self.label = shape, dtype, label
        self._compute = compute

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self._compute(start, stop)


class _Mapped(Weight):
    def __init__(
        self,
        source: Weight,
        function: Callable[[torch.Tensor, int], torch.Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.shape, self.dtype, self.label = source.shape, dtype, source.label
        self._source, self._function = source, function

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self._function(self._source.rows(start, stop), start)


class CastWeight(_Mapped):
    """The values of `source` rounded to another dtype."""

    def __init__(self, source: Weight, dtype: torch.dtype) -> None:
        super().__init__(source, lambda x, _: x.to(dtype), dtype)
        self.source = source


class _PermutedRows(Weight):
    def __init__(self, source: Weight, index: torch.Tensor) -> None:
        self.shape = (len(index), *source.shape[1:])
        self.dtype, self.label = source.dtype, source.label
        self._source, self._index = source, index

    def rows(self, start: int, stop: int) -> torch.Tensor:
        index = self._index[start:stop]
        breaks = torch.nonzero(torch.diff(index) != 1).flatten() + 1
        low, high = int(index.min()), int(index.max()) + 1
        # Many short runs (rotary pairs, for example): one read of the span and a gather is
        # cheaper than one read a row, as long as the span is not much larger than the rows.
        if len(breaks) > len(index) // 8 and high - low <= 4 * len(index):
            return self._source.rows(low, high)[index - low]
        bounds = [0, *breaks.tolist(), len(index)]
        runs = [
            self._source.rows(int(index[a]), int(index[b - 1]) + 1) for a, b in pairwise(bounds)
        ]
        return runs[0] if len(runs) == 1 else torch.cat(runs)


class _Concatenated(Weight):
    def __init__(self, sources: Sequence[Weight]) -> None:
        first = sources[0]
        self.shape = (sum(source.shape[0] for source in sources), *first.shape[1:])
        self.dtype, self.label = first.dtype, " + ".join(source.label for source in sources)
        self._sources = tuple(sources)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        parts, offset = [], 0
        for source in self._sources:
            a, b = max(start - offset, 0), min(stop - offset, source.shape[0])
            if a < b:
                parts.append(source.rows(a, b).to(self.dtype))
            offset += source.shape[0]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Transposed(Weight):
    def __init__(self, source: Weight) -> None:
        self.shape, self.dtype = (source.shape[1], source.shape[0]), source.dtype
        self.label, self._source = source.label, source

    def rows(self, start: int, stop: int) -> torch.Tensor:
        out = torch.empty(stop - start, self.shape[1], dtype=self.dtype)
        for a, b in self._source.tiles():
            out[:, a:b] = self._source.rows(a, b)[:, start:stop].T
        return out

    def tiles(self, values: int = TILE_VALUES) -> Iterator[tuple[int, int]]:
        # Each tile reads the whole source once, so tiles are as large as memory allows.
        return super().tiles(max(values, 1 << 24))

    def transpose(self) -> Weight:
        return self._source


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor, shared with it and writable."""
    array: Any = tensor.flatten().view(torch.uint8).numpy()
    return memoryview(array)


def write_at(descriptor: int, tensor: torch.Tensor, offset: int) -> None:
    """Write a tensor's bytes to an open file from `offset` on."""
    buffer = tensor_bytes(tensor.contiguous())
    while buffer:
        count = os.pwrite(descriptor, buffer, offset)
        buffer, offset = buffer[count:], offset + count


def concatenate_rows(sources: Sequence[Weight]) -> Weight:
    """Stack weights of equal width along the rows; the dtype is the first one's."""
    return sources[0] if len(sources) == 1 else _Concatenated(sources)


@dataclass(frozen=True)
class PartSpec:
    """One tensor of a `RowGroup`: shape (rows, …) and dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class RowGroup(ABC):
    """Several tensors computed together, row by row: codes, scales and zero points, say.

    The package pass asks the group for a range of rows once and writes all of its parts, so
    nothing is computed twice. `part` gives each tensor as an ordinary `Weight`.
    """

    label: str

    @property
    @abstractmethod
    def specs(self) -> Mapping[str, PartSpec]:
        """Shape and dtype of each part; all have the same number of rows."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Mapping[str, torch.Tensor]:
        """Rows [start, stop) of every part."""

    @abstractmethod
    def tiles(self) -> Iterator[tuple[int, int]]:
        """Row ranges that cover the group in order."""

    def part(self, name: str) -> GroupPart:
        return GroupPart(self, name)


class GroupPart(Weight):
    """One tensor of a `RowGroup`."""

    def __init__(self, group: RowGroup, name: str) -> None:
        spec = group.specs[name]
        self.group, self.name = group, name
        self.shape, self.dtype, self.label = spec.shape, spec.dtype, f"{group.label} ({name})"

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.group.rows(start, stop)[self.name]
