"""What the experts of a layer are given: how many tokens each, and how large their inputs are.

Experts are rounded with the scales of least error weighted by diag(XᵀX), each by its own tokens. An
expert that saw few of them is rounded by those of all experts of its layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from converter.model.tensor_kinds import EXPERTS_DOWN, EXPERTS_GATE_UP
from converter.model.transformers_model import ExpertParameter
from converter.quantization.quantized_matrix import Rounding
from converter.quantization.rtn import BlockFormat, Codes
from converter.quantization.search import concatenate, search_blocks
from converter.weights.weight import Weight

ENOUGH = 64
"""Tokens that an expert has to see for its own inputs to count: a diagonal settles soon."""
PARAMETERS = {EXPERTS_GATE_UP: "gate_up", EXPERTS_DOWN: "down"}
"""The decoder's matrices, and what the names of the class's parameters begin with."""


@dataclass
class ExpertInputs:
    """Of one matrix of a layer's experts, what the calibration tokens gave it.

    Attributes:
        squares: diag(XᵀX) of each expert's inputs, float32 (experts, columns).
        tokens: how many each saw, int64 (experts,).
    """

    squares: torch.Tensor
    tokens: torch.Tensor

    def add(self, expert: int, inputs: torch.Tensor) -> None:
        """Add the inputs (tokens, columns) of one expert."""
        self.squares[expert] += inputs.float().square().sum(0)
        self.tokens[expert] += inputs.shape[0]

    @property
    def diagonals(self) -> torch.Tensor:
        """What each expert is rounded by, float32 (experts, columns)."""
        few = (self.tokens < ENOUGH)[:, None]
        return torch.where(few, self.squares.sum(0, keepdim=True), self.squares)


@dataclass
class LayerExperts:
    """The inputs of a layer's experts, by the decoder's names of their matrices."""

    count: int
    matrices: dict[str, ExpertInputs] = field(default_factory=dict)

    @contextmanager
    def watching(self, layer: torch.nn.Module) -> Iterator[None]:
        """Add what the experts of transformers' `layer` are given meanwhile."""
        stacks = {
            kind: stack
            for module in layer.modules()
            for name, stack in vars(module).items()
            if isinstance(stack, ExpertParameter)
            for kind, start in PARAMETERS.items()
            if name.startswith(start) and not name.endswith("bias")
        }
        for kind, stack in stacks.items():
            stack.watch = self._watcher(kind)
        try:
            yield
        finally:
            for stack in stacks.values():
                stack.watch = None

    def found(self) -> dict[str, torch.Tensor]:
        """What `converter.calibration.store.Layer.experts` holds; empty where nothing was seen."""
        tensors = {kind: inputs.diagonals for kind, inputs in self.matrices.items()}
        if self.matrices:
            tensors["tokens"] = next(iter(self.matrices.values())).tokens
        return tensors

    def _watcher(self, kind: str) -> Any:
        def look(expert: int, inputs: torch.Tensor) -> None:
            rows = inputs.detach().reshape(-1, inputs.shape[-1])
            if kind not in self.matrices:
                self.matrices[kind] = ExpertInputs(
                    torch.zeros(self.count, rows.shape[1]),
                    torch.zeros(self.count, dtype=torch.int64),
                )
            self.matrices[kind].add(expert, rows)

        return look


def expert_rounding(
    source: Weight, form: BlockFormat, diagonals: torch.Tensor, scale_dtype: torch.dtype
) -> Rounding:
    """Codes of a matrix (experts · rows, columns), each expert's by its row of `diagonals`."""
    each = source.shape[0] // diagonals.shape[0]

    def codes(start: int, stop: int) -> Codes:
        found, first = [], start
        while first < stop:
            expert = first // each
            last = min(stop, (expert + 1) * each)
            rows = source.rows(first, last)
            found.append(search_blocks(rows, diagonals[expert], form, scale_dtype))
            first = last
        return concatenate(found)

    return codes


def expert_facts(layers: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, int]:
    """What the report says: the fewest tokens an expert saw, and how many saw too few."""
    tokens = [item["tokens"] for item in layers.values()]
    if not tokens:
        return {}
    every = torch.cat(tokens)
    return {
        "fewest_tokens_of_an_expert": int(every.min()),
        "experts_rounded_by_all_tokens": int((every < ENOUGH).sum()),
    }
