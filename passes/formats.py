"""formats: time the formats that the recipe allows, and go on with the fastest.

A kernel's speed depends on the shape of the codes, not on their values, so each variant is rounded
to nearest, whatever the recipe's scheme. The fastest format goes into the run's recipe, where
quantize, package, verify and evaluate find it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, cast

from converter.engine.engine import Pass, Run
from converter.engine.memory import writing_memory
from converter.errors import Problem
from converter.graph.formats import indivisible, quantized_bytes
from converter.graph.graph import Graph
from converter.graph.quantized_operators import quantized_graph
from converter.graph.template import build_graph
from converter.graph.tensors import model_weights
from converter.machine.disk import Room
from converter.model.decoder import Decoder
from converter.output.genai_config import TokenIds, genai_config
from converter.output.model_writer import write_model
from converter.output.place import output_folder
from converter.recipe.schema import QuantConfig, Recipe
from converter.speed.benchmarking import CONFIG
from converter.speed.tuning import ANSWER, Trial, fastest, race

BLOCK_SIZE = "quant.block_size"
HEAD_BITS = "quant.lm_head.bits"
ANY_TOKENS = TokenIds(bos=1, eos=(2,), pad=2)
"""A trial generates a fixed number of tokens, whatever they are."""


class ChooseFormats(Pass[Graph, Graph]):
    """Times the allowed block sizes and head precisions; the recipe goes on with the fastest."""

    name = "formats"
    takes = Graph
    gives = Graph
    slot = "target"
    guarantees = (
        "only formats that the recipe lists, or its own, are chosen",
        "every format that was tried is in the lock file with its seconds",
        "the variants that were measured are gone, also when the run is stopped",
    )

    def __init__(self) -> None:
        self._trials: list[Trial] = []
        self._best: Trial | None = None

    def enabled(self, recipe: Recipe) -> bool:
        target = recipe.target
        return target.tune and bool(target.tune_block_sizes or target.tune_head_bits)

    def requires(self, recipe: Recipe, decoder: Decoder | None) -> Iterable[Problem]:
        if decoder is None:
            return
        sizes, arch = recipe.target.tune_block_sizes, decoder.architecture
        for size in sizes:
            for problem in indivisible(changed(recipe.quant, BLOCK_SIZE, size), arch):
                remedy = f"leave {size} out of target.tune_block_sizes"
                yield dataclasses.replace(problem, remedy=remedy)

    def disk(self, recipe: Recipe, decoder: Decoder) -> Iterable[Room]:
        yield Room(
            output_folder(recipe).parent,  # the staging folder lies beside the output
            variant_bytes(recipe, decoder),
            "the variants that target.tune measures",
            "set output=FOLDER on a disk with more room, or leave some values out of "
            "target.tune_block_sizes and target.tune_head_bits",
        )

    def preview(self, artifact: Graph, run: Run) -> Graph:
        return artifact

    def peak_memory(self, graph: Graph, recipe: Recipe) -> int | None:
        return writing_memory(model_weights(graph.model).values(), recipe.threads)

    def run(self, artifact: Graph, run: Run) -> Graph:
        for setting, values in choices(run.recipe).items():
            self._best, quant = self._race(artifact, run, setting, values)
            run.recipe = dataclasses.replace(run.recipe, quant=quant)
        if self._best is not None:
            run.facts[self.name] = {
                "formats": dict(self._best.settings),
                "seconds": self._best.seconds,
                "answer": ANSWER,
                "trials": [{**item.settings, "seconds": item.seconds} for item in self._trials],
            }
        return artifact

    def summary(self, given: Graph) -> str:
        if self._best is None:
            return ""
        shown = ", ".join(f"{name}={value}" for name, value in self._best.settings.items())
        return f"{shown}: {self._best.seconds:.2f} s an answer"

    def _race(
        self, artifact: Graph, run: Run, setting: str, values: Sequence[int]
    ) -> tuple[Trial, QuantConfig]:
        """Measure the values of one setting, the recipe's own first."""
        variants = [changed(run.recipe.quant, setting, value) for value in values]
        with TemporaryDirectory(dir=run.staging.folder, prefix=".formats-") as name:
            folders: list[Callable[[], AbstractContextManager[Path]]] = []
            for value, quant in zip(values, variants, strict=True):
                run.progress.advance(len(folders), len(values) + 1, f"{setting}={value}")
                folder = Path(name, str(value))
                write_variant(artifact, dataclasses.replace(run.recipe, quant=quant), folder)
                folders.append(partial(unchanged, folder))
            run.progress.advance(len(values), len(values) + 1, f"{setting}: measuring")
            seconds = race(folders)
        trials = [
            Trial(formats(quant), time) for quant, time in zip(variants, seconds, strict=True)
        ]
        self._trials += trials
        best = fastest(trials)
        return best, variants[trials.index(best)]


def unchanged(folder: Path) -> AbstractContextManager[Path]:
    """The folder as it is, for `race`."""
    return nullcontext(folder)


def choices(recipe: Recipe) -> dict[str, list[int]]:
    """Values to try for each setting that the recipe opens, its own first."""
    target, own = recipe.target, formats(recipe.quant)
    opened: dict[str, Sequence[int]] = {
        BLOCK_SIZE: target.tune_block_sizes,
        HEAD_BITS: target.tune_head_bits,
    }
    tried = {name: dict.fromkeys((own[name], *values)) for name, values in opened.items() if values}
    return {name: list(values) for name, values in tried.items()}


def formats(quant: QuantConfig) -> dict[str, int]:
    """The settings that are tried, as `quant` has them."""
    return {BLOCK_SIZE: quant.block_size, HEAD_BITS: quant.lm_head.bits or quant.bits}


def changed(quant: QuantConfig, setting: str, value: int) -> QuantConfig:
    """`quant` with another block size or another precision of the head."""
    if setting == BLOCK_SIZE:
        return dataclasses.replace(quant, block_size=value)
    head = dataclasses.replace(quant.lm_head, bits=cast(Literal[4, 8, 16], value))
    return dataclasses.replace(quant, lm_head=head)


def variant_bytes(recipe: Recipe, decoder: Decoder) -> int:
    """Bytes of the variants that lie on the disk at a time, at least: those of one setting.

    Which value of a setting wins is not known yet; the next setting's variants are counted as if
    the smallest did.
    """
    largest, quant = 0, recipe.quant
    for setting, values in choices(recipe).items():
        variants = [changed(quant, setting, value) for value in values]
        sizes = [
            quantized_bytes(dataclasses.replace(recipe, quant=variant), decoder)
            for variant in variants
        ]
        largest = max(largest, sum(sizes))
        quant = variants[sizes.index(min(sizes))]
    return largest


def write_variant(artifact: Graph, recipe: Recipe, folder: Path) -> None:
    """Write what the runtime needs to generate from token ids, rounded to nearest."""
    folder.mkdir()
    built = build_graph(artifact.decoder, recipe)
    write_model(quantized_graph(built, recipe).model, folder, recipe.threads)
    arch, length = artifact.decoder.architecture, artifact.context_length
    config = genai_config(arch, length, recipe.target, ANY_TOKENS, {})
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
