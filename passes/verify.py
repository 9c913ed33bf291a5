"""verify: publish only a folder that runs and whose numbers are the reference's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from converter.engine.contract import Done, Pass, Run
from converter.engine.estimates import (
    RUNTIME_BYTES,
    expert_bytes,
    reference_memory,
    session_memory,
)
from converter.errors import Problem, raise_if
from converter.evaluation.verification import (
    INT8_ACTIVATIONS,
    ActivationCost,
    Comparison,
    compare_first_layers,
    compare_generation,
    compare_past_window,
    compared_layers,
    precision,
)
from converter.graph.form import context_length
from converter.graph.graph import Graph
from converter.graph.names import is_of_layer, plain_initializer
from converter.graph.tensors import model_weights
from converter.model.decoder import Decoder
from converter.model.reference import reference_problems
from converter.model.tensor_kinds import EMBEDDING
from converter.output.package import Package
from converter.recipe.schema import Recipe
from converter.runtime.session import missing_runtime
from converter.weights.placement import data_size, place_tensors


class Verify(Pass[Package, Package]):
    """Publishes only a folder whose numbers are the reference's."""

    name = "verify"
    slot = "verify"
    guarantees = (
        "onnxruntime-genai loads the folder and generates",
        "with float activations, logits are within verify.max_error of transformers' own class on "
        "the same weights, prefilled and cached, and past a sliding window",
        "what int8 activations cost is reported",
    )

    def enabled(self, recipe: Recipe) -> bool:
        return recipe.verify.enabled

    def requires(self, recipe: Recipe, decoder: Decoder | None) -> Iterable[Problem]:
        yield from missing_runtime("the recipe verifies the result", "verify=none")
        if precision(recipe) not in recipe.verify.max_error:
            yield Problem(
                f"verify.max_error states no tolerance for {precision(recipe)}.",
                "a largest relative error for the recipe's precision",
                f"set verify.max_error.{precision(recipe)}=0.01, or add verify=none",
            )
        if decoder is not None:
            yield from reference_problems(decoder)
        length = context_length(decoder.architecture, recipe) if decoder is not None else None
        if length is not None and length <= recipe.verify.new_tokens:
            yield Problem(
                f"The context holds {length} tokens, and verify.new_tokens="
                f"{recipe.verify.new_tokens}.",
                "room for a prompt of at least one token before those that are generated",
                f"set verify.new_tokens={max(1, length - 1)}, or add verify=none",
                key=("verify.new_tokens", "graph.context_length"),
            )

    def peak_memory(self, graph: Graph, recipe: Recipe) -> int | None:
        weights = model_weights(graph.model)
        whole = data_size(place_tensors(weights))
        reference = RUNTIME_BYTES + reference_memory(graph.decoder)
        if whole <= recipe.verify.max_bytes:  # the session is gone when the reference begins
            return max(session_memory(whole) + expert_bytes(weights), reference)
        # What the embedding is quantized to has a longer name than itself.
        kept = {n: w for n, w in weights.items() if n.startswith(plain_initializer(EMBEDDING))}
        for layer in range(compared_layers(graph, recipe.verify)):
            kept |= {name: w for name, w in weights.items() if is_of_layer(name, layer)}
        cut = sum(weight.nbytes for weight in kept.values())
        return max(session_memory(cut) + expert_bytes(kept), reference)

    def run(self, artifact: Package, run: Run) -> Done[Package]:
        verify, recipe, cost = run.recipe.verify, run.recipe, None
        layers = artifact.graph.decoder.architecture.num_hidden_layers
        if artifact.nbytes > verify.max_bytes and layers > 1:
            count = compared_layers(artifact.graph, verify)
            comparison = compare_first_layers(artifact, recipe, count)
        else:
            comparison, cost = compare_generation(artifact, recipe)
        compared = [item for item in (comparison, compare_past_window(artifact, recipe)) if item]
        raise_if([*_problems(compared, cost, recipe)])
        limit = verify.max_error[precision(recipe)]
        worst = max(item.error for item in compared)
        what = " and ".join(item.what for item in compared)
        facts: dict[str, Any] = {"compared": what, "relative_error": worst}
        summary = f"{what}: relative error {worst:.1e} (at most {limit:.0e})"
        if comparison.typical:
            largest = max(item.largest for item in compared)
            facts["largest_relative_error"] = largest
            summary += f" in the median step, {largest:.1e} where rounding chose another expert"
        if cost is not None:
            facts["int8_activations"] = {"relative_error": cost.error, "kl_divergence": cost.kld}
            summary += f"; int8 activations change {cost.error:.1e}, KL {cost.kld:.1e} nats"
        return Done(artifact, facts, summary)


def _problems(
    compared: Iterable[Comparison], cost: ActivationCost | None, recipe: Recipe
) -> Iterator[Problem]:
    limits, kind = recipe.verify.max_error, precision(recipe)
    kept = ""
    if recipe.quant.calibrated:
        kept = "; what was calibrated is kept, and the same command takes it from the cache"
    for item in compared:
        if not item.error <= limits[kind]:  # NaN is a failure
            yield Problem(
                f"The {item.what} differ from the reference by {item.error:.2e}.",
                f"a relative error of at most {limits[kind]:.2e} ({kind})",
                f"report this; verify=none publishes the folder unchecked{kept}",
            )
    most = limits.get(INT8_ACTIVATIONS, math.inf)
    if cost is not None and not cost.error <= most:
        yield Problem(
            f"Rounding activations to int8 changes the logits by {cost.error:.2e}.",
            f"at most {most:.2e}" if most < math.inf else "a finite change",
            f"set quant.accuracy_level=1 for float activations, or a larger "
            f"verify.max_error.{INT8_ACTIVATIONS}{kept}",
            key=(f"verify.max_error.{INT8_ACTIVATIONS}",),
        )
