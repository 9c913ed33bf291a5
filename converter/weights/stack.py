"""Stacks of equal matrices, as checkpoints and operators hold the weights of experts.

A stack (E, R, …) has E matrices; flattened, their rows follow each other: (E·R, …). Block
quantization, tiles and files know rows, so experts are flattened, and stay lazy.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch

from converter.weights.safetensors_file import FileWeight
from converter.weights.weight import TILE_VALUES, Weight


def flatten_stack(stack: Weight) -> Weight:
    """(E, R, …) as (E·R, …): the rows of the matrices, one matrix after the other."""
    count, rows, *rest = stack.shape
    if isinstance(stack, _Stacked):
        return stack.source
    if isinstance(stack, FileWeight):
        return stack.reshaped((count * rows, *rest))
    if isinstance(stack, _TransposedEach):
        return _FlatTransposed(stack.source)
    return _Flattened(stack)


def stack_rows(flat: Weight, count: int) -> Weight:
    """(E·R, …) as (E, R, …), E being `count`: `flatten_stack` undone."""
    return flat.source if isinstance(flat, _Flattened) else _Stacked(flat, count)


def transpose_each(stack: Weight) -> Weight:
    """(E, R, C) as (E, C, R)."""
    return stack.source if isinstance(stack, _TransposedEach) else _TransposedEach(stack)


def interleave_rows(even: Weight, odd: Weight) -> Weight:
    """Rows of two weights of one shape in turns, the first one's first; its dtype counts."""
    return _Interleaved(even, odd)


class _Flattened(Weight):
    def __init__(self, source: Weight) -> None:
        count, self._each, *rest = source.shape
        self.shape, self.dtype, self.label = (count * self._each, *rest), source.dtype, source.label
        self.source = source

    def rows(self, start: int, stop: int) -> torch.Tensor:
        first = start // self._each
        whole = self.source.rows(first, (stop - 1) // self._each + 1).flatten(0, 1)
        offset = first * self._each
        return whole[start - offset : stop - offset].clone()


class _Stacked(Weight):
    def __init__(self, source: Weight, count: int) -> None:
        self._each = source.shape[0] // count
        self.shape = (count, self._each, *source.shape[1:])
        self.dtype, self.label, self.source = source.dtype, source.label, source

    def rows(self, start: int, stop: int) -> torch.Tensor:
        flat = self.source.rows(start * self._each, stop * self._each)
        return flat.reshape(stop - start, *self.shape[1:])


class _TransposedEach(Weight):
    def __init__(self, source: Weight) -> None:
        count, rows, columns = source.shape
        self.shape, self.dtype, self.label = (count, columns, rows), source.dtype, source.label
        self.source = source

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.source.rows(start, stop).transpose(1, 2).contiguous()


class _FlatTransposed(Weight):
    """A flattened stack whose matrices are those of the source, transposed."""

    def __init__(self, source: Weight) -> None:
        count, self._columns, self._each = source.shape
        self.shape = (count * self._each, self._columns)
        self.dtype, self.label, self._source = source.dtype, source.label, source

    def rows(self, start: int, stop: int) -> torch.Tensor:
        parts = []
        for number in range(start // self._each, (stop - 1) // self._each + 1):
            low = number * self._each
            matrix = _LAST.matrix(self._source, number)
            parts.append(matrix[:, max(start - low, 0) : min(stop - low, self._each)].T)
        return torch.cat(parts)


class _Last(threading.local):
    """The matrix that a thread read last: the next rows of a transposed one need it again."""

    held: tuple[Weight, int, torch.Tensor] | None = None

    def matrix(self, source: Weight, number: int) -> torch.Tensor:
        held = self.held
        if held is None or held[0] is not source or held[1] != number:
            self.held = None  # one matrix at a time
            self.held = held = (source, number, source.rows(number, number + 1)[0])
        return held[2]


_LAST = _Last()


class _Interleaved(Weight):
    def __init__(self, even: Weight, odd: Weight) -> None:
        self.shape = (2 * even.shape[0], *even.shape[1:])
        self.dtype, self.label = even.dtype, f"{even.label} + {odd.label}"
        self._even, self._odd = even, odd

    def rows(self, start: int, stop: int) -> torch.Tensor:
        first, last = start // 2, (stop + 1) // 2
        parts = [part.rows(first, last).to(self.dtype) for part in (self._even, self._odd)]
        return torch.stack(parts, dim=1).flatten(0, 1)[start - 2 * first : stop - 2 * first].clone()

    def tiles(self, values: int = TILE_VALUES) -> Iterator[tuple[int, int]]:
        step = 2 * max(1, values // max(1, 2 * self.numel // self.shape[0]))
        for start in range(0, self.shape[0], step):
            yield start, min(start + step, self.shape[0])
