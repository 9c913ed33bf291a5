"""evaluate: how far the folder's next-token distributions are from the float32 model's.

The reference runs on the source's own weights, before any quantization; the folder runs through
onnxruntime on the CPU as it ships. The statistics are llama.cpp's (quality/statistics.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from converter.engine.contract import Done, Pass, Run
from converter.engine.estimates import evaluation_memory
from converter.errors import ConvertError, Problem
from converter.evaluation.charts import layer_errors
from converter.evaluation.folder_evaluation import (
    evaluate_folder,
    folder_chunks,
    text_chunks,
    write_report,
)
from converter.evaluation.reference_logits import reference_disk, stored_reference
from converter.evaluation.statistics import Estimate
from converter.graph.graph import Graph
from converter.graph.tensors import model_weights
from converter.machine.disk import Room
from converter.model.checkpoint import TOKENIZERS
from converter.model.decoder import Decoder
from converter.output.package import Package
from converter.quantization.linear_error import LinearError
from converter.recipe.schema import EvaluateConfig, Recipe
from converter.runtime.session import ONNXRUNTIME, missing_runtime
from converter.storage.cache import FOLDER_VARIABLE, Cache, cache_folder
from converter.storage.staging import replacing
from converter.text.folder_tokenizer import source_tokenizer
from converter.text.texts import load_text
from converter.weights.placement import data_size, place_tensors


class Evaluate(Pass[Package, Package]):
    """Measures KL divergence and perplexity; publishes only a folder within the recipe's limit."""

    name = "evaluate"
    slot = "evaluate"
    guarantees = ("the mean KL divergence from the float32 model is at most evaluate.max_kld",)

    def enabled(self, recipe: Recipe) -> bool:
        return recipe.evaluate.enabled

    def requires(self, recipe: Recipe, decoder: Decoder | None) -> Iterable[Problem]:
        why = "the recipe evaluates the result"
        yield from missing_runtime(why, "evaluate=none", ONNXRUNTIME)
        if decoder is not None:
            yield from _tokenizer_problems(decoder)
            yield from _length_problems(recipe, decoder)
        try:
            if decoder is not None and decoder.checkpoint.has_tokenizer:
                text_chunks(source_tokenizer(decoder), recipe.evaluate)
            else:
                load_text(recipe.evaluate.text, half="evaluation")
        except ConvertError as error:
            yield from error.problems

    def disk(self, recipe: Recipe, decoder: Decoder) -> Iterable[Room]:
        cache = Cache(cache_folder())
        needed = reference_disk(
            recipe.evaluate,
            decoder.architecture,
            most_chunks(recipe.evaluate),
            cache.entries_of(decoder.checkpoint),
        )
        remedy = f"set {FOLDER_VARIABLE}=FOLDER on a disk with more room, or evaluate.max_chunks"
        yield Room(cache.folder, needed, "the float model's logits", remedy)

    def peak_memory(self, graph: Graph, recipe: Recipe) -> int | None:
        nbytes = data_size(place_tensors(model_weights(graph.model)))
        return evaluation_memory(recipe.evaluate, graph.decoder, nbytes)

    def run(self, artifact: Package, run: Run) -> Done[Package]:
        recipe, decoder = run.recipe, artifact.graph.decoder
        chunks = folder_chunks(artifact.folder, recipe.evaluate)
        advance = run.progress.advance
        cache = Cache(cache_folder())
        reference = stored_reference(decoder, chunks, cache, advance)
        evaluation = evaluate_folder(
            artifact.folder, recipe.evaluate.text, chunks, reference, advance, recipe.threads
        )
        found = evaluation.statistics
        summary = (
            f"mean KL divergence {found.kld} nats, same top token {100 * found.same_top.value:.1f} "
            f"%, perplexity {found.ppl.value:.3f} (float {found.ppl_reference.value:.3f})"
        ) + (f"; {found.note}" if found.note else "")
        _check_limit(found.kld, recipe.evaluate.max_kld)
        report = write_report(artifact.folder, recipe.name, evaluation)
        _draw_errors(report / "errors.png", run.facts)
        return Done(artifact, evaluation.facts(), summary)


def most_chunks(evaluate: EvaluateConfig) -> int:
    """As many chunks as a text can have at most: a token has a byte or more."""
    kinds = load_text(evaluate.text, half="evaluation")
    nbytes = sum(len(text.encode()) for kind in kinds for text in kind.documents)
    return min(nbytes // evaluate.n_ctx + 1, evaluate.max_chunks or nbytes)


def _draw_errors(path: Path, facts: Mapping[str, Any]) -> None:
    """Draw the linears' errors beside the report, when calibration has measured them."""
    errors = facts.get("quantize", {}).get("linears")
    if errors:
        with replacing(path) as temporary:
            layer_errors(temporary, [LinearError(**error) for error in errors])


def _tokenizer_problems(decoder: Decoder) -> Iterator[Problem]:
    if not decoder.checkpoint.has_tokenizer:
        yield Problem(
            "The source has no tokenizer, and the recipe evaluates on text.",
            f"{' or '.join(TOKENIZERS)} beside the weights",
            "fetch the tokenizer, or add evaluate=none",
        )


def _length_problems(recipe: Recipe, decoder: Decoder) -> Iterator[Problem]:
    length = recipe.graph.context_length or decoder.architecture.max_position_embeddings
    if recipe.evaluate.n_ctx > length:
        yield Problem(
            f"evaluate.n_ctx={recipe.evaluate.n_ctx}, and the graph holds {length} positions.",
            "chunks that fit into the context length",
            f"set evaluate.n_ctx={length}, or a larger graph.context_length",
        )


def _check_limit(kld: Estimate, limit: float | None) -> None:
    if limit is not None and not kld.value <= limit:
        raise ConvertError(
            Problem(
                f"The mean KL divergence from the float32 model is {kld} nats per token.",
                f"at most {limit} (evaluate.max_kld)",
                "set quant=best, quant.block_size=32 or quant.lm_head.bits=8, or raise "
                "evaluate.max_kld",
            )
        )
