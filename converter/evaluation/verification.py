"""A packaged folder against the reference on the same weights.

The reference runs on the weights that the folder holds, dequantized, so the error is that of graph,
files and kernels alone; how far quantization moved the model is the business of evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from converter.evaluation.runtime_logits import model_inputs
from converter.graph.cpu_model import cut_model
from converter.graph.graph import Graph
from converter.graph.names import MODEL_FILE
from converter.model.reference import Reference
from converter.output.package import Package
from converter.providers import CPU
from converter.recipe.schema import Recipe
from converter.runtime.cpu_folder import cpu_copy, generate, prompt_tokens, spread_ids

CUT_MODEL = "first_layers.onnx"


@dataclass(frozen=True)
class Comparison:
    """Logits (or hidden states) of runtime and reference: float32 (steps, width) each."""

    found: torch.Tensor
    expected: torch.Tensor
    what: str

    @property
    def error(self) -> float:
        """Largest relative error of a step, in the Euclidean norm."""
        difference = (self.found - self.expected).norm(dim=-1)
        return float((difference / self.expected.norm(dim=-1)).max())


def precision(recipe: Recipe) -> str:
    """Which tolerance a recipe falls under."""
    if recipe.rounds_activations or recipe.target.kv_cache == "int8":
        return "int8_activations"
    return recipe.target.float_type


def compare_generation(package: Package, recipe: Recipe) -> Comparison:
    """Generate with onnxruntime-genai on the CPU; compare the logits of every step."""
    # In the staging folder, so that what a killed run leaves of it goes with that.
    with TemporaryDirectory(dir=package.folder, prefix=".verify-") as name:
        folder = cpu_copy(package.folder, Path(name))
        vocab_size = package.graph.decoder.architecture.vocab_size
        prompt = prompt_tokens(folder, recipe.verify.prompt, vocab_size)
        prompt = prompt[: package.graph.context_length - recipe.verify.new_tokens]
        tokens, found = generate(folder, prompt, recipe.verify.new_tokens)
    reference = _reference(package.graph)
    hidden = reference.hidden_states(torch.tensor([tokens[:-1]]))
    expected = reference.logits(hidden[0, len(prompt) - 1 :])
    return Comparison(found, expected, "generated logits")


def compare_first_layers(package: Package, recipe: Recipe, layers: int) -> Comparison:
    """Run the first layers of the packaged graph with onnxruntime; compare hidden states."""
    import numpy as np
    import onnxruntime

    graph = package.graph
    layers = min(layers, graph.decoder.architecture.num_hidden_layers - 1)
    cut = package.folder / CUT_MODEL
    try:
        cut_model(package.folder / MODEL_FILE, cut, layers)
        session = onnxruntime.InferenceSession(str(cut), providers=[CPU.onnxruntime_name])
        ids = spread_ids(graph.decoder.architecture.vocab_size, recipe.verify.new_tokens)
        (found,) = session.run(None, model_inputs(session, np.asarray(ids)))
    finally:
        cut.unlink(missing_ok=True)
    expected = _reference(graph).hidden_states(torch.tensor([ids]), layers)
    what = f"hidden states after {layers} layers"
    return Comparison(torch.from_numpy(found)[0].float(), expected[0], what)


def _reference(graph: Graph) -> Reference:
    arch = graph.decoder.architecture
    longer = graph.context_length > arch.max_position_embeddings
    length = graph.context_length if longer else None
    return Reference(graph.decoder, graph.shipped, cache_length=length)
