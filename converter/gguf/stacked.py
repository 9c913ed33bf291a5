"""Weights one below the other in any order of rows, which are themselves again when taken apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from converter.weights.weight import Weight


class StackedWeight(Weight):
    """Rows `index` (int64) of `parts` stacked.

    Selected rows that all lie in one part give that part's own kind of weight, so that a matrix
    that a description wants fused keeps its codes when a decoder takes it apart.
    """

    def __init__(self, parts: Sequence[Weight], index: torch.Tensor | None = None) -> None:
        self._parts = tuple(parts)
        ends = torch.tensor([part.shape[0] for part in parts]).cumsum(0)
        self._starts, self._ends = ends - torch.tensor([part.shape[0] for part in parts]), ends
        self._index = torch.arange(int(ends[-1])) if index is None else index
        first = parts[0]
        self.shape = (len(self._index), *first.shape[1:])
        self.dtype = first.dtype if len({part.dtype for part in parts}) == 1 else torch.float32
        self.label = " + ".join(part.label for part in parts)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        index = self._index[start:stop]
        out = torch.empty(len(index), *self.shape[1:], dtype=self.dtype)
        places = self._places(index)
        for number in places.unique().tolist():
            chosen = places == number
            own = self._parts[number].permute_rows(index[chosen] - self._starts[number])
            out[chosen] = own.rows(0, own.shape[0]).to(self.dtype)
        return out

    def permute_rows(self, index: torch.Tensor) -> Weight:
        chosen = self._index[index]
        places = self._places(chosen)
        if len(chosen) and bool((places == places[0]).all()):
            number = int(places[0])
            return self._parts[number].permute_rows(chosen - self._starts[number])
        return StackedWeight(self._parts, chosen)

    def _places(self, index: torch.Tensor) -> torch.Tensor:
        """The part of each row."""
        return torch.bucketize(index, self._ends, right=True)
