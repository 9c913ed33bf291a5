"""The walk over the layers: load, forward, gather, fold, round, spill, next.

Each linear is rounded against inputs that the already rounded parts before it give. A finished
layer is an entry of the cache, and so are the hidden states behind it, so that a run that was
killed goes on at its layer, and one with the same settings has nothing left to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from converter.calibration.experts import LayerExperts
from converter.calibration.fisher import Fisher
from converter.calibration.folds import apply_folds, folds_of, input_scales
from converter.calibration.inputs import Inputs, restored
from converter.calibration.layer import STAGES, LayerStages, check_finite, check_weights
from converter.calibration.rounding import (
    JUDGED_ROWS,
    Rounded,
    Scheme,
    round_matrix,
    sample_rows,
)
from converter.calibration.smooth import find_folds
from converter.calibration.statistics import FloatStatistics
from converter.calibration.store import HIDDEN, Layer, read_layer, write_layer
from converter.calibration.tokens import CalibrationTokens
from converter.graph.matrices import Matrix
from converter.model.reference import Reference
from converter.model.tensor_kinds import EMBEDDING, HEAD
from converter.progress import Advance
from converter.quantization.linear_error import LinearError
from converter.quantization.quantized_matrix import QuantizedMatrix
from converter.quantization.rtn import BlockFormat
from converter.storage.cache import Cache, key_hash
from converter.weights.spill import Spill
from converter.weights.weight import Weight, concatenate_rows

FOLD_TOKENS = 2048
"""AWQ's scales are searched on about so many tokens, from sequences spread over all."""


@dataclass
class Walk:
    """A calibration under way.

    Attributes:
        reference: the float model, in the type of the matrix products.
        embedding: the embedding as it will be shipped.
        shares_head: whether it will share lm_head's codes.
        forms: format of every matrix of the graph, by name; one without stays in float.
        key: what decides the result, apart from the layer's number.
        statistics: of the float model, to round against; None rounds each linear against the
            inputs that the rounded parts before it give.
    """

    reference: Reference
    embedding: Weight
    shares_head: bool
    matrices: Sequence[Matrix]
    forms: Mapping[str, BlockFormat]
    scheme: Scheme
    tokens: CalibrationTokens
    fisher: Fisher | None
    cache: Cache
    key: Mapping[str, Any]
    advance: Advance
    statistics: FloatStatistics | None = None
    _started: float = 0.0
    _first: int = 0
    _made: str = ""

    def run(self) -> dict[str, Layer]:
        """All finished layers, by `layers.N`, and `lm_head` where it is quantized."""
        self._started = time.monotonic()
        if self.statistics is not None:
            return self._run_shared(self.statistics)
        arch, found = self.reference.arch, dict[str, Layer]()
        names = [f"layers.{number}" for number in range(arch.num_hidden_layers)]
        names += [HEAD] if HEAD in self.forms else []
        while names and (folder := self.cache.find(self._layer_key(names[0]))):
            found[names[0]] = read_layer(folder)
            names.pop(0)
        if not names:
            return found
        self._first = len(found)
        hidden = self._hidden_at(len(found), found)
        for name in names:
            folder = self.cache.get_or_make(self._layer_key(name), self._maker(name, hidden))
            found[name] = read_layer(folder)
            if name == HEAD:
                break
            if self._made != name:  # another process was faster
                hidden = self._hidden_at(len(found), found)
            self._keep(hidden, len(found))
        self._forget(arch.num_hidden_layers)
        return found

    def _run_shared(self, statistics: FloatStatistics) -> dict[str, Layer]:
        """`run` without a forward pass: every layer by itself, on the float model's statistics."""
        layers, found = self.reference.arch.num_hidden_layers, dict[str, Layer]()
        for number in range(layers):
            make = partial(self._shared_layer, number=number, statistics=statistics)
            found[f"layers.{number}"] = self._finished(f"layers.{number}", make)
        if HEAD in self.forms:
            found[HEAD] = self._finished(
                HEAD, lambda folder: self._round_head(folder, statistics.head())
            )
        return found

    def _finished(self, name: str, make: Callable[[Path], None]) -> Layer:
        with torch.no_grad():
            return read_layer(self.cache.get_or_make(self._layer_key(name), make))

    def _maker(self, name: str, hidden: Spill) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            with torch.no_grad():
                if name == HEAD:
                    self._head(folder, hidden)
                else:
                    self._layer(folder, hidden, int(name.rpartition(".")[2]))
            self._made = name

        return make

    # Resuming

    def _layer_key(self, name: str) -> dict[str, Any]:
        return {**self.key, "entry": name}

    def _hidden_key(self, done: int) -> dict[str, Any]:
        return {**self.key, "entry": f"hidden states after {done} layers"}

    def _keep(self, hidden: Spill, done: int) -> None:
        """Make the hidden states after `done` layers findable, and drop those before."""

        def make(folder: Path) -> None:
            hidden.save(folder / HIDDEN)

        self.cache.get_or_make(self._hidden_key(done), make)
        self._forget(done - 1)

    def _forget(self, done: int) -> None:
        self.cache.remove(key_hash(self._hidden_key(done)))

    def _hidden_at(self, done: int, found: Mapping[str, Layer]) -> Spill:
        """Hidden states after `done` layers: stored ones, or the finished layers run again."""
        done = min(done, self.reference.arch.num_hidden_layers)
        number, hidden = self._stored_hidden(done)
        with torch.no_grad():
            for layer in range(number, done):
                self._run_again(hidden, layer, found[f"layers.{layer}"])
        return hidden

    def _stored_hidden(self, done: int) -> tuple[int, Spill]:
        """The latest stored hidden states, after so many layers; after none the embeddings."""
        for number in range(done, 0, -1):
            folder = self.cache.find(self._hidden_key(number))
            if folder is None:
                continue
            hidden = self._spill(self.reference.arch.hidden_size, torch.float32)
            try:
                hidden.load(folder / HIDDEN)
            except FileNotFoundError:  # another process has gone on, and has just dropped them
                hidden.close()
            else:
                return number, hidden
        shipped = {**self.reference.weights, EMBEDDING: self.embedding}
        embedder = Reference(self.reference.decoder, shipped)
        return 0, self.tokens.embedded(embedder, self.cache.folder)

    def _run_again(self, hidden: Spill, number: int, layer: Layer) -> None:
        """Hidden states after a layer that is finished already."""
        name = f"layers.{number}"
        weights = apply_folds(self.reference.weights, name, layer.folds, self.reference.decoder)
        with self._stages(number, weights) as stages:
            for matrix in self._matrices(number):
                read, columns = layer.rounding(matrix.name, matrix.columns), matrix.columns
                values = restored(read(0, matrix.rows), layer.forms[matrix.name], columns)
                self._install(stages, matrix, values)
            for index in self.batches():
                _, hidden[index] = stages.run(hidden[index])

    # One layer

    def _layer(self, folder: Path, hidden: Spill, number: int) -> None:
        arch, folds = self.reference.arch, dict[str, torch.Tensor]()
        if self.scheme.quant.smooth == "awq":
            folds = self._find_folds(hidden, number)
        after, plain = self._folded(number, folds)
        work = _LayerWork(self, number, after, plain)
        with self._stages(number, after) as stages:
            context = self._spill(arch.num_attention_heads * arch.head_dim, self.reference.dtype)
            attended = self._spill(arch.hidden_size, torch.float32)
            experts: dict[str, torch.Tensor] = {}
            work.stage("attention", stages, lambda i: stages.attention_input(hidden[i]))

            def mixed(index: slice) -> torch.Tensor:
                context[index] = stages.output_input(hidden[index])
                return context[index]

            work.stage("output", stages, mixed)

            for index in self.batches():
                attended[index] = stages.attended(context[index])
            context.close()
            if stages.has_experts:
                experts = self._experts(work, stages, hidden, attended)
            else:
                self._feed_forward(work, stages, hidden, attended)
            attended.close()
        write_layer(folder, work.rounded, work.errors, folds, experts)

    def _feed_forward(
        self, work: _LayerWork, stages: LayerStages, hidden: Spill, attended: Spill
    ) -> None:
        """Round the feed-forward block; `hidden` becomes the layer's result."""
        product = self._spill(self.reference.arch.intermediate_size, self.reference.dtype)

        def normed(index: slice) -> torch.Tensor:
            return stages.feed_forward_input(hidden[index], attended[index])

        def gated(index: slice) -> torch.Tensor:
            product[index] = stages.down_input(hidden[index], attended[index])
            return product[index]

        work.stage("feed_forward", stages, normed)
        work.stage("down", stages, gated)
        for index in self.batches():
            fed = stages.fed(product[index])
            hidden[index] = stages.result(hidden[index], attended[index], fed)
        product.close()

    def _experts(
        self, work: _LayerWork, stages: LayerStages, hidden: Spill, attended: Spill
    ) -> dict[str, torch.Tensor]:
        """Round the shared expert, and see what the others are given; see `Layer.experts`.

        The experts run in float: they are rounded when the folder is written, one at a time.
        `hidden` becomes the layer's result.
        """
        experts = self.reference.arch.experts
        assert experts is not None

        def shared(stage: str, index: slice) -> torch.Tensor:
            return stages.shared_input(stage, hidden[index], attended[index])

        for stage in stages.stages:
            if stage.startswith("shared"):
                work.stage(stage, stages, partial(shared, stage))
        seen = LayerExperts(experts.count)
        with stages.watching(seen):
            for index in self.batches():
                hidden[index] = stages.behind_attention(hidden[index], attended[index])
        return seen.found()

    def _shared_layer(self, folder: Path, number: int, statistics: FloatStatistics) -> None:
        inputs, folds = statistics.layer(number), dict[str, torch.Tensor]()
        self._check_inputs(inputs, number)
        if self.scheme.quant.smooth == "awq":
            folds = self._search_folds(inputs, number)
            self._divide(inputs, folds, f"layers.{number}")
        after, plain = self._folded(number, folds)
        work = _LayerWork(self, number, after, plain)
        for stage in list(inputs):
            for matrix in self.stage_matrices(number, stage):
                work.round(matrix, inputs[stage])
            del inputs[stage]
        write_layer(folder, work.rounded, work.errors, folds)

    def _folded(
        self, number: int, folds: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, Weight], dict[str, Weight]]:
        """All weights with a layer's folds, and the same with that layer plainly rounded before."""
        weights, decoder, name = self.reference.weights, self.reference.decoder, f"layers.{number}"
        plain = {**weights, **self._plainly_rounded(number)}
        return apply_folds(weights, name, folds, decoder), apply_folds(plain, name, folds, decoder)

    def _divide(
        self, inputs: Mapping[str, Inputs], folds: Mapping[str, torch.Tensor], name: str
    ) -> None:
        """Make statistics by stage those of the folded weights' inputs."""
        for fold in folds_of(name, self.reference.decoder):
            if fold.name in folds:
                scales = input_scales(fold, folds[fold.name], self.reference.arch)
                for stage in fold.stages:
                    inputs[stage].divide(scales)

    def _find_folds(self, hidden: Spill, number: int) -> dict[str, torch.Tensor]:
        """AWQ's scales from the float layer, on some of the sequences."""
        inputs: dict[str, Inputs] = {}
        with self._stages(number, self.reference.weights) as stages:
            count, length = self.tokens.count - self.tokens.held, self.tokens.ids.shape[1]
            for index in range(0, count, max(1, count * length // FOLD_TOKENS)):
                states, _ = stages.run(hidden[index])
                for stage, state in states.items():
                    if stage not in inputs:
                        inputs[stage] = Inputs(state.shape[-1])
                    inputs[stage].add(state, self.token_weights(f"layers.{number}.{stage}", index))
        self._check_inputs(inputs, number)
        return self._search_folds(inputs, number)

    def _search_folds(self, inputs: Mapping[str, Inputs], number: int) -> dict[str, torch.Tensor]:
        forms = {
            part.rpartition(".")[2]: self.forms[matrix.name]
            for matrix in self._matrices(number)
            for part in matrix.parts
        }
        weights, decoder = self.reference.weights, self.reference.decoder
        return find_folds(weights, f"layers.{number}", inputs, forms, self.scheme, decoder)

    def _check_inputs(self, inputs: Mapping[str, Inputs], number: int) -> None:
        for stage, entry in inputs.items():
            check_finite(entry.diagonal, f"layer {number} ({stage})")

    def _head(self, folder: Path, hidden: Spill) -> None:
        inputs = Inputs(self.reference.arch.hidden_size)
        for index in self.batches():
            self.gather(inputs, self.reference.head_input(hidden[index]), HEAD, index)
        self._round_head(folder, inputs)

    def _round_head(self, folder: Path, inputs: Inputs) -> None:
        arch, weights = self.reference.arch, self.reference.weights
        decoder = self.reference.decoder
        check_finite(inputs.diagonal, "the last norm")
        form, columns, folds = self.forms[HEAD], arch.hidden_size, dict[str, torch.Tensor]()
        sample = sample_rows(weights[HEAD], JUDGED_ROWS)
        plain = restored(self.scheme.plain(sample, form), form, columns)
        before = inputs.relative_error(sample, plain)
        if self.scheme.quant.smooth == "awq" and not self.shares_head:
            statistics, forms = {HEAD: inputs}, {HEAD: form}
            folds = find_folds(weights, HEAD, statistics, forms, self.scheme, decoder)
            self._divide(statistics, folds, HEAD)
        rounded = round_matrix(
            apply_folds(weights, HEAD, folds, decoder)[HEAD], form, inputs, self.scheme
        )
        error = LinearError(None, HEAD, before, rounded.error)
        self.report(arch.num_hidden_layers, error)
        write_layer(folder, {HEAD: rounded}, [error], folds)

    # What layers share

    def batches(self) -> list[slice]:
        """Sequences that run together."""
        return self.tokens.batches(self.reference.arch.intermediate_size)

    def gather(self, inputs: Inputs, state: torch.Tensor, name: str, index: slice) -> None:
        """Add some sequences' inputs to the statistics, or hold them back for judging."""
        gather = inputs.hold if self.tokens.judges(index) else inputs.add
        gather(state, self.token_weights(name, index))

    def report(self, layer: int, error: LinearError) -> None:
        """Tell the progress: where the walk is, the linear's error, and the time left."""
        layers = self.reference.arch.num_hidden_layers
        per = (time.monotonic() - self._started) / max(1, layer - self._first + 0.5)
        left = per * max(0.0, layers - layer - 0.5)
        place = "lm_head" if error.layer is None else f"layer {layer + 1}/{layers} {error.linear}"
        change = f"{100 * error.before:.2f} % → {100 * error.after:.2f} %"
        self.advance(layer, layers + 1, f"{place}: error {change}, {left / 60:.0f} min left")

    def token_weights(self, name: str, index: int | slice) -> torch.Tensor | None:
        """Weights of some sequences' tokens in the stage `name`; None where all weigh alike."""
        if self.fisher is None or self.scheme.quant.token_weights == "none":
            return None
        return self.fisher.tokens[name][index]

    def _matrices(self, number: int) -> list[Matrix]:
        prefix = f"layers.{number}."
        return [m for m in self.matrices if m.name.startswith(prefix) and m.name in self.forms]

    def _plainly_rounded(self, number: int) -> dict[str, Weight]:
        """The layer's linears rounded to nearest: what calibration is compared with."""
        return {
            part: QuantizedMatrix(
                self.reference.weights[part], self.forms[matrix.name], self.scheme.scale_dtype
            ).dequantized()
            for matrix in self._matrices(number)
            for part in matrix.parts
        }

    def stage_matrices(self, number: int, stage: str) -> Iterator[Matrix]:
        """The layer's matrices that read the stage's input."""
        for matrix in self._matrices(number):
            if matrix.parts[0].rpartition(".")[2] in STAGES[stage]:
                yield matrix

    def _spill(self, columns: int, dtype: torch.dtype) -> Spill:
        count, length = self.tokens.ids.shape
        return Spill(self.cache.folder, count, (1, length, columns), dtype)

    @contextmanager
    def _stages(self, number: int, weights: Mapping[str, Weight]) -> Iterator[LayerStages]:
        with self.reference.layer(number) as module:
            check_weights(module, self.reference, number)
            stages = LayerStages(self.reference, module, number)
            stages.take(weights)
            yield stages

    def _install(self, stages: LayerStages, matrix: Matrix, values: torch.Tensor) -> None:
        offset = 0
        for part in matrix.parts:
            count = self.reference.weights[part].shape[0]
            stages.set(part.rpartition(".")[2], values[offset : offset + count])
            offset += count

    def install(self, stages: LayerStages, matrix: Matrix, rounded: Rounded) -> None:
        """Let the layer compute with the rounded matrix from now on."""
        values = restored(rounded.codes, rounded.form, matrix.columns)
        self._install(stages, matrix, values)


class _LayerWork:
    """The rounding of one layer, stage by stage: folded weights, and plainly rounded ones."""

    def __init__(
        self, walk: Walk, number: int, weights: Mapping[str, Weight], plain: Mapping[str, Weight]
    ) -> None:
        self.rounded: dict[str, Rounded] = {}
        self.errors: list[LinearError] = []
        self._walk, self._number, self._weights, self._plain = walk, number, weights, plain

    def stage(
        self, stage: str, stages: LayerStages, state: Callable[[slice], torch.Tensor]
    ) -> None:
        """Gather the stage's inputs, `state(sequences)`, then round what reads them."""
        walk, name = self._walk, f"layers.{self._number}.{stage}"
        inputs: Inputs | None = None
        for index in walk.batches():
            found = state(index)
            inputs = inputs or Inputs(found.shape[-1])
            walk.gather(inputs, found, name, index)
        assert inputs is not None
        check_finite(inputs.diagonal, f"layer {self._number} ({stage})")
        for matrix in walk.stage_matrices(self._number, stage):
            walk.install(stages, matrix, self.round(matrix, inputs))

    def round(self, matrix: Matrix, inputs: Inputs) -> Rounded:
        """Round one matrix and note by how much that lowers its error."""
        walk, form = self._walk, self._walk.forms[matrix.name]
        weight = concatenate_rows([self._weights[part] for part in matrix.parts])
        rounded = round_matrix(weight, form, inputs, walk.scheme)
        plain = concatenate_rows([self._plain[part] for part in matrix.parts])
        before = inputs.relative_error(
            sample_rows(weight, JUDGED_ROWS), sample_rows(plain, JUDGED_ROWS)
        )
        kind = matrix.name.rpartition(".")[2]
        error = LinearError(self._number, kind, before, rounded.error)
        self.rounded[matrix.name] = rounded
        self.errors.append(error)
        walk.report(self._number, error)
        return rounded
