"""graph: the ONNX graph of a decoder in the form that the target wants."""

from __future__ import annotations

from collections.abc import Iterable

from converter.engine.contract import Done, Pass, Run
from converter.errors import Problem
from converter.graph.expert_kernels import expert_problems
from converter.graph.graph import Graph
from converter.graph.kernels import head_size_problems, kernel_problems, sink_problems
from converter.graph.template import build_graph
from converter.model.decoder import Decoder
from converter.recipe.schema import Recipe


class BuildGraph(Pass[Decoder, Graph]):
    """Builds embedding, attention, feed-forward and head from the decoder template."""

    name = "graph"
    slot = "graph"
    guarantees = (
        "inputs and outputs have the names that onnxruntime-genai expects",
        "weights stay lazy: the graph holds descriptions, not values",
    )

    def requires(self, recipe: Recipe, decoder: Decoder | None) -> Iterable[Problem]:
        if decoder is not None:
            yield from head_size_problems(decoder.architecture.head_dim)
            yield from expert_problems(recipe, decoder.architecture)
            yield from sink_problems(decoder, recipe.target.execution_provider)

    def run(self, artifact: Decoder, run: Run) -> Done[Graph]:
        graph = self.preview(artifact, run)
        summary = f"{len(graph.model.graph)} nodes, context length {graph.context_length}"
        return Done(graph, summary=summary)

    def preview(self, artifact: Decoder, run: Run) -> Graph:
        return build_graph(artifact, run.recipe)

    def ensures(self, given: Graph, run: Run) -> Iterable[Problem]:
        quantizes = run.recipe.quant.round != "none"  # and then QMoE takes the place of MoE
        return kernel_problems(given.model, run.recipe.target, ("MoE",) if quantizes else ())
