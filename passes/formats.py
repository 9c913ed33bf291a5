"""formats: time the formats that the recipe allows, and go on with the fastest.

A kernel's speed depends on the shape of the codes, not on their values, so each variant is rounded
to nearest, whatever the recipe's scheme. The fastest format goes into the run's recipe, where
quantize, package, verify and evaluate find it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from converter.engine.contract import Done, Pass, Run
from converter.engine.estimates import writing_memory
from converter.errors import Problem
from converter.graph.formats import indivisible
from converter.graph.graph import Graph
from converter.graph.tensors import model_weights
from converter.machine.disk import Room
from converter.model.decoder import Decoder
from converter.output.place import output_folder
from converter.recipe.guest_slots import own_settings
from converter.recipe.rules import block_size_problems
from converter.recipe.schema import QuantConfig, Recipe
from converter.speed.formats import (
    BLOCK_SIZE,
    changed,
    choices,
    formats,
    unchanged,
    variant_bytes,
    write_variant,
)
from converter.speed.tuning import ANSWER, Trial, fastest, race
from passes.tune_settings import TuneSettings


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
            variant_bytes(recipe, decoder, _opened(recipe)),
            "the variants that tune measures",
            "set output=FOLDER on a disk with more room, or leave some values out of "
            "tune.block_sizes and tune.head_bits",
        )

    def peak_memory(self, graph: Graph, recipe: Recipe) -> int | None:
        return writing_memory(model_weights(graph.model).values(), recipe.threads)

    def run(self, artifact: Graph, run: Run) -> Done[Graph]:
        recipe, trials = run.recipe, list[Trial]()
        best: Trial | None = None
        for setting, values in _opened(recipe).items():
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


def _opened(recipe: Recipe) -> dict[str, list[int]]:
    tune = own_settings(recipe, TuneSettings)
    return choices(recipe.quant, tune.block_sizes, tune.head_bits)


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
