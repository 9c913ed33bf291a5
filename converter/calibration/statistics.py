"""Statistics of the float model's activations, kept in the cache for any number of variants.

With `calibration.inputs=float` every linear is rounded against what the float model feeds it. These
statistics depend on the model, the text and the tokens' weights, but not on bits, block size or
method, so a sweep gathers them once. An entry holds one layer, and a killed run finds those that
are finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from converter.calibration.inputs import Inputs
from converter.calibration.layer import STAGES, LayerStages, check_weights
from converter.calibration.tokens import CalibrationTokens
from converter.model.reference import Reference
from converter.model.tensor_kinds import HEAD
from converter.progress import Advance
from converter.storage.cache import Cache
from converter.weights.safetensors_file import open_safetensors, write_safetensors
from converter.weights.spill import Spill
from converter.weights.weight import TensorWeight

FILE, HESSIAN = "statistics.safetensors", ".hessian"

TokenWeights = Callable[[str, slice], torch.Tensor | None]
"""(stage's name, sequences) to the weight of each token, or None where all weigh alike."""


class FloatStatistics:
    """The statistics of all layers, and of lm_head; gathered when the first one is asked for.

    `key` is what decides them, apart from the layer.
    """

    def __init__(
        self,
        reference: Reference,
        tokens: CalibrationTokens,
        token_weights: TokenWeights,
        cache: Cache,
        key: Mapping[str, Any],
        advance: Advance,
    ) -> None:
        self._reference, self._tokens, self._weights = reference, tokens, token_weights
        self._cache, self._key, self._advance = cache, key, advance

    def layer(self, number: int) -> dict[str, Inputs]:
        """Statistics by stage of one layer."""
        folder = self._folder(number)
        found = {name.removesuffix(HESSIAN) for name in open_safetensors(folder / FILE)}
        return {stage: read_inputs(folder, stage) for stage in STAGES if stage in found}

    def head(self) -> Inputs:
        """Statistics of what lm_head reads."""
        return read_inputs(self._folder(self._count), HEAD)

    @property
    def _count(self) -> int:
        return self._reference.arch.num_hidden_layers

    def _entry(self, number: int) -> dict[str, Any]:
        name = HEAD if number == self._count else f"layers.{number}"
        return {**self._key, "entry": f"float statistics of {name}"}

    def _folder(self, number: int) -> Path:
        found = self._cache.find(self._entry(number))
        if found is None:
            self._gather()
            found = self._cache.find(self._entry(number))
        assert found is not None
        return found

    def _gather(self) -> None:
        hidden = self._tokens.embedded(self._reference, self._cache.folder)
        with torch.no_grad():
            for number in range(self._count):
                self._advance(number, self._count, f"float statistics, layer {number + 1}")
                self._one_layer(number, hidden)
            self._cache.get_or_make(self._entry(self._count), lambda to: self._head(to, hidden))
        hidden.close()

    def _one_layer(self, number: int, hidden: Spill) -> None:
        """Gather a layer's statistics, unless an earlier run has, and run it."""
        with self._reference.layer(number) as module:
            check_weights(module, self._reference, number)
            stages = LayerStages(self._reference, module, number)
            made = False

            def make(folder: Path) -> None:
                nonlocal made
                made = True
                sizes = self._columns()
                found = {stage: Inputs(sizes[stage]) for stage in stages.stages}
                self._run(stages, number, hidden, found)
                write_inputs(folder, found)

            self._cache.get_or_make(self._entry(number), make)
            if not made:
                self._run(stages, number, hidden, {})

    def _columns(self) -> dict[str, int]:
        arch = self._reference.arch
        hidden, mixed = arch.hidden_size, arch.num_attention_heads * arch.head_dim
        sizes = (hidden, mixed, hidden, arch.intermediate_size)
        return dict(zip(("attention", "output", "feed_forward", "down"), sizes, strict=True))

    def _run(
        self, stages: LayerStages, number: int, hidden: Spill, found: Mapping[str, Inputs]
    ) -> None:
        for index in self._tokens.batches(self._reference.arch.intermediate_size):
            states, hidden[index] = stages.run(hidden[index])
            for stage, inputs in found.items():
                self._add(inputs, states[stage], f"layers.{number}.{stage}", index)

    def _head(self, folder: Path, hidden: Spill) -> None:
        arch, inputs = self._reference.arch, Inputs(self._reference.arch.hidden_size)
        for index in self._tokens.batches(arch.intermediate_size):
            self._add(inputs, self._reference.head_input(hidden[index]), HEAD, index)
        write_inputs(folder, {HEAD: inputs})

    def _add(self, inputs: Inputs, state: torch.Tensor, name: str, index: slice) -> None:
        weights = self._weights(name, index)
        gather = inputs.hold if self._tokens.judges(index) else inputs.add
        gather(state, weights)


def write_inputs(folder: Path, found: Mapping[str, Inputs]) -> None:
    """Keep statistics by stage in `folder`."""
    tensors: dict[str, torch.Tensor] = {}
    for stage, inputs in found.items():
        tensors[stage + HESSIAN] = inputs.hessian
        if inputs.held is not None:
            tensors[f"{stage}.held"] = inputs.held
    write_safetensors(folder / FILE, {name: TensorWeight(x) for name, x in tensors.items()})


def read_inputs(folder: Path, stage: str) -> Inputs:
    """The statistics of one stage that `write_inputs` kept."""
    tensors = open_safetensors(folder / FILE)
    held = tensors.get(f"{stage}.held")
    return Inputs.of(tensors[stage + HESSIAN].read(), held.read() if held else None)
