"""formats: time the formats that the recipe allows, and go on with the fastest.

A kernel's speed depends on the shape of the codes, not on their values, so each variant is rounded
to nearest, whatever the recipe's scheme. The fastest format goes into the run's recipe, where
quantize, package, verify and evaluate find it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, cast

from converter.engine.contract import Done, Pass, Run
from converter.errors import Problem
from converter.graph.formats import indivisible, quantized_bytes
from converter.graph.graph import Graph
from converter.graph.memory import writing_memory
from converter.graph.quantized_operators import quantized_graph
from converter.graph.template import build_graph
from converter.graph.tensors import model_weights
from converter.machine.disk import Room
from converter.model.decoder import Decoder
from converter.output.genai_config import TokenIds, genai_config
from converter.output.model_writer import write_model
from converter.output.place import output_folder
from converter.recipe.guest_slots import own_settings
from converter.recipe.rules import block_size_problems
from converter.recipe.schema import QuantConfig, Recipe
from converter.speed.benchmarking import CONFIG
from converter.speed.tuning import ANSWER, Trial, fastest, race
from passes.tune_settings import TuneSettings

BLOCK_SIZE = "quant.block_size"
HEAD_BITS = "quant.lm_head.bits"
ANY_TOKENS = TokenIds(bos=1, eos=(2,), pad=2)
"""A trial generates a fixed number of tokens, whatever they are."""


class ChooseFormats(Pass[Graph, Graph]):
    """Times the allowed block sizes and head precisions; the recipe goes on with the fastest."""

    name = "formats"
    slot = "tune"
    guarantees = (
        "only formats that the recipe lists, or its own, are chosen",
        "every format that was tried is in the lock file with its seconds",
        "the variants that were measured are gone, also when the run is stopped",
    )

    def enabled(self, recipe: Recipe) -> bool:
        tune = own_settings(recipe, TuneSettings)
        return tune.enabled and bool(tune.block_sizes or tune.head_bits)

    def requires(self, recipe: Recipe, decoder: Decoder | None) -> Iterable[Problem]:
        sizes = own_settings(recipe, TuneSettings).block_sizes
        yield from _scheme_problems(recipe)
        for size in sizes:
            yield from block_size_problems("tune.block_sizes", size)
        if decoder is None:
            return
        arch = decoder.architecture
        for size in sizes:
            for problem in indivisible(changed(recipe.quant, BLOCK_SIZE, size), arch):
                remedy = f"leave {size} out of tune.block_sizes"
                yield replace(problem, remedy=remedy)

    def disk(self, recipe: Recipe, decoder: Decoder) -> Iterable[Room]:
        yield Room(
            output_folder(recipe).parent,  # the staging folder lies beside the output
            variant_bytes(recipe, decoder),
            "the variants that tune measures",
            "set output=FOLDER on a disk with more room, or leave some values out of "
            "tune.block_sizes and tune.head_bits",
        )

    def peak_memory(self, graph: Graph, recipe: Recipe) -> int | None:
        return writing_memory(model_weights(graph.model).values(), recipe.threads)

    def run(self, artifact: Graph, run: Run) -> Done[Graph]:
        recipe, trials = run.recipe, list[Trial]()
        best: Trial | None = None
        for setting, values in choices(recipe).items():
            variants = [changed(recipe.quant, setting, value) for value in values]
            raced = _race(artifact, replace(run, recipe=recipe), setting, variants)
            best = fastest(raced)
            trials += raced
            recipe = replace(recipe, quant=variants[raced.index(best)])
        if best is None:
            return Done(artifact)
        facts = {
            "formats": dict(best.settings),
            "seconds": best.seconds,
            "answer": ANSWER,
            "trials": [{**item.settings, "seconds": item.seconds} for item in trials],
        }
        shown = ", ".join(f"{name}={value}" for name, value in best.settings.items())
        return Done(artifact, facts, f"{shown}: {best.seconds:.2f} s an answer", recipe)


def _scheme_problems(recipe: Recipe) -> Iterator[Problem]:
    """Formats may be tuned where the recipe has one for all, and before they are used."""
    tune, quant, passes = own_settings(recipe, TuneSettings), recipe.quant, recipe.passes
    stated = f"tune.block_sizes={tune.block_sizes}, head_bits={tune.head_bits}"
    remedy = "set tune.block_sizes=[] tune.head_bits=[]"
    if quant.mixed:
        budget = f"target_size={quant.target_size}, bits_per_weight={quant.bits_per_weight}"
        expected = "formats that either the machine's speed or a budget chooses"
        yield Problem(f"{stated} with {budget}.", expected, remedy)
    elif quant.round == "none":
        yield Problem(f"{stated} with quant.round=none.", "quantized weights to tune", remedy)
    if "formats" in passes and "quantize" in passes[: passes.index("formats")]:
        yield Problem(
            f"{stated}, and the passes are {', '.join(passes)}.",
            "the pass formats before quantize",
            "put formats between graph and quantize in the recipe's passes",
        )


def _race(artifact: Graph, run: Run, setting: str, variants: Sequence[QuantConfig]) -> list[Trial]:
    """Measure the variants of one setting, the recipe's own first."""
    with TemporaryDirectory(dir=run.staging.folder, prefix=".formats-") as name:
        folders: list[Callable[[], AbstractContextManager[Path]]] = []
        for number, quant in enumerate(variants):
            value = formats(quant)[setting]
            run.progress.advance(number, len(variants) + 1, f"{setting}={value}")
            folder = Path(name, str(value))
            write_variant(artifact, replace(run.recipe, quant=quant), folder)
            folders.append(partial(unchanged, folder))
        run.progress.advance(len(variants), len(variants) + 1, f"{setting}: measuring")
        seconds = race(folders)
    return [Trial(formats(quant), time) for quant, time in zip(variants, seconds, strict=True)]


def unchanged(folder: Path) -> AbstractContextManager[Path]:
    """The folder as it is, for `race`."""
    return nullcontext(folder)


def choices(recipe: Recipe) -> dict[str, list[int]]:
    """Values to try for each setting that the recipe opens, its own first."""
    tune, own = own_settings(recipe, TuneSettings), formats(recipe.quant)
    opened: dict[str, Sequence[int]] = {
        BLOCK_SIZE: tune.block_sizes,
        HEAD_BITS: tune.head_bits,
    }
    tried = {name: dict.fromkeys((own[name], *values)) for name, values in opened.items() if values}
    return {name: list(values) for name, values in tried.items()}


def formats(quant: QuantConfig) -> dict[str, int]:
    """The settings that are tried, as `quant` has them."""
    return {BLOCK_SIZE: quant.block_size, HEAD_BITS: quant.lm_head.bits or quant.bits}


def changed(quant: QuantConfig, setting: str, value: int) -> QuantConfig:
    """`quant` with another block size or another precision of the head."""
    if setting == BLOCK_SIZE:
        return replace(quant, block_size=value)
    head = replace(quant.lm_head, bits=cast(Literal[4, 8, 16], value))
    return replace(quant, lm_head=head)


def variant_bytes(recipe: Recipe, decoder: Decoder) -> int:
    """Bytes of the variants that lie on the disk at a time, at least: those of one setting.

    Which value of a setting wins is not known yet; the next setting's variants are counted as if
    the smallest did.
    """
    largest, quant = 0, recipe.quant
    for setting, values in choices(recipe).items():
        variants = [changed(quant, setting, value) for value in values]
        sizes = [quantized_bytes(replace(recipe, quant=variant), decoder) for variant in variants]
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
