"""quantize: replace matrix products and the embedding lookup by block-quantized operators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from converter.calibration.layer import stage_problems
from converter.engine.contract import Done, Pass, Run
from converter.engine.estimates import calibration_disk, calibration_memory
from converter.errors import ConvertError, Problem
from converter.graph.formats import budget_problems, indivisible
from converter.graph.graph import Graph
from converter.graph.kernels import kernel_problems
from converter.graph.quantized_experts import held_experts
from converter.graph.quantized_operators import quantized_graph
from converter.graph.source_codes import calibration_problems, kept_kinds, source_facts
from converter.machine.disk import Room
from converter.model.checkpoint import TOKENIZERS
from converter.model.decoder import Decoder
from converter.recipe.schema import Recipe
from converter.storage.cache import FOLDER_VARIABLE, Cache, cache_folder
from converter.text.texts import load_text


class Quantize(Pass[Graph, Graph]):
    """Block-wise weight quantization in the scheme that the recipe asks."""

    name = "quantize"
    slot = "quant"
    changes_input = True
    guarantees = (
        "every matrix is quantized in the format that the recipe asks, or left in float as it asks",
        "the weights that the new graph holds are known, dequantized, for verify to compare with",
    )

    def enabled(self, recipe: Recipe) -> bool:
        return recipe.quant.round != "none"

    def requires(self, recipe: Recipe, decoder: Decoder | None) -> Iterable[Problem]:
        quant = recipe.quant
        if quant.calibrated and (decoder is None or _calibrates(recipe, decoder)):
            try:
                load_text(recipe.calibration.text, half="calibration")
            except ConvertError as error:
                yield from error.problems
        if decoder is None:
            return
        kept = set() if _calibrates(recipe, decoder) else kept_kinds(recipe, decoder)
        yield from indivisible(quant, decoder.architecture, not quant.mixed, kept)
        if decoder.architecture.experts is not None:
            yield from _expert_problems(recipe)
        if _calibrates(recipe, decoder):
            yield from stage_problems(decoder, "quant=rtn, or quant=rtn_block128")
            yield from _calibration_problems(recipe, decoder)
            yield from calibration_problems(recipe, decoder)
        if quant.mixed and decoder.architecture.experts is None:
            yield from budget_problems(recipe, decoder)

    def disk(self, recipe: Recipe, decoder: Decoder) -> Iterable[Room]:
        if _calibrates(recipe, decoder):
            folder = cache_folder()
            needed = calibration_disk(recipe, decoder, Cache(folder))
            remedy = f"set {FOLDER_VARIABLE}=FOLDER on a disk with more room"
            yield Room(folder, needed, "what calibration spills and keeps", remedy)

    def run(self, artifact: Graph, run: Run) -> Done[Graph]:
        if not _calibrates(run.recipe, artifact.decoder):
            quantized = self.preview(artifact, run)
            return Done(quantized, _facts(quantized, run.recipe), _operators(quantized))
        from converter.calibration.calibrate import calibrate

        calibrated = calibrate(
            run.recipe, artifact.decoder, Cache(cache_folder()), run.progress.advance
        )
        quantized = quantized_graph(artifact, run.recipe, calibrated)
        facts = _facts(quantized, run.recipe) | calibrated.facts()
        return Done(quantized, facts, _operators(quantized))

    def preview(self, artifact: Graph, run: Run) -> Graph:
        """The same operators and shapes, rounded to nearest when they are read."""
        return quantized_graph(artifact, run.recipe)

    def peak_memory(self, graph: Graph, recipe: Recipe) -> int | None:
        if not _calibrates(recipe, graph.decoder):
            return 0  # package computes the codes
        return calibration_memory(recipe, graph.decoder)

    def ensures(self, given: Graph, run: Run) -> Iterable[Problem]:
        return kernel_problems(given.model, run.recipe.target)


def _operators(graph: Graph) -> str:
    kinds = [node.op_type for node in graph.model.graph]
    names = ("MatMulNBits", "QMoE", "GatherBlockQuantized")
    return ", ".join(
        f"{kinds.count(name)} {name}" for name in names if name != "QMoE" or name in kinds
    )


def _facts(graph: Graph, recipe: Recipe) -> dict[str, object]:
    """What became of the checkpoint's codes, and in which form the folder holds experts."""
    source = source_facts(recipe, graph.decoder)
    experts = held_experts(graph.decoder, recipe, _calibrates(recipe, graph.decoder))
    return {**({"source": source} if source else {}), **experts}


def _calibrates(recipe: Recipe, decoder: Decoder) -> bool:
    """Whether the scheme looks at activations; with experts, a mere search looks at weights."""
    quant = recipe.quant
    if decoder.architecture.experts is not None and quant.round == "search":
        return quant.smooth != "none" or quant.token_weights != "none"
    return quant.calibrated


def _expert_problems(recipe: Recipe) -> Iterator[Problem]:
    """What a calibration cannot do for experts."""
    quant = recipe.quant
    if quant.mixed:
        yield Problem(
            "The recipe states a budget for the weights, and the model has experts.",
            "one format for all experts, and no budget",
            "set quant.target_size=null quant.bits_per_weight=null",
            key=("quant.target_size", "quant.bits_per_weight"),
        )
    if quant.calibrated and recipe.calibration.inputs == "float":
        yield Problem(
            "calibration.inputs=float, and the model has experts.",
            "statistics that are gathered as the layers are rounded",
            "set calibration.inputs=rounded",
            key=("calibration.inputs",),
        )


def _calibration_problems(recipe: Recipe, decoder: Decoder) -> Iterator[Problem]:
    folder, length = decoder.checkpoint.folder, recipe.calibration.sequence_length
    if folder is not None and not decoder.checkpoint.has_tokenizer:
        yield Problem(
            f"{folder} has no tokenizer, and quant.round={recipe.quant.round} reads text.",
            f"{' or '.join(TOKENIZERS)} beside the weights",
            "fetch the tokenizer, or add quant=rtn",
        )
    positions = decoder.architecture.max_position_embeddings
    if length > positions:
        yield Problem(
            f"calibration.sequence_length={length}, and the model has {positions} positions.",
            "sequences that the model was made for",
            f"set calibration.sequence_length={positions}",
        )
