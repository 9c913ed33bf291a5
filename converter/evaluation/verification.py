"""A packaged folder against the reference on the same weights: two questions, apart.

Is the graph right? The reference runs on the weights that the folder holds, dequantized, and the
folder with float activations, so the error is that of graph, files and kernels alone. What do int8
activations cost? The folder as it ships against the same folder with float activations. How far
quantization of the weights moved the model is the business of evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from converter.evaluation.runtime_logits import model_inputs
from converter.graph.cpu_model import cut_model
from converter.graph.graph import Graph
from converter.graph.names import MODEL_FILE, is_of_layer
from converter.graph.tensors import model_weights
from converter.machine.memory import return_memory
from converter.model.reference import Reference
from converter.output.package import Package
from converter.providers import CPU
from converter.recipe.schema import Recipe, VerifyConfig
from converter.runtime.cpu_folder import (
    cpu_copy,
    forced_logits,
    generate,
    prompt_tokens,
    spread_ids,
)

CUT_MODEL = "first_layers.onnx"
INT8_CACHE, INT8_ACTIVATIONS = "int8_cache", "int8_activations"
"""Keys of verify.max_error besides the float types."""
PAST_WINDOW = 16
"""Tokens behind a window that are compared."""
LONGEST_WINDOW = 8192
"""Windows past this are not filled: what they cut off is past most prompts."""


@dataclass(frozen=True)
class Comparison:
    """Logits (or hidden states) of runtime and reference: float32 (steps, width) each."""

    found: torch.Tensor
    expected: torch.Tensor
    what: str
    typical: bool = False
    """Whether the median of the steps counts, not the largest one; see `rounds_routing`."""

    @property
    def error(self) -> float:
        """Relative error of the step that counts, in the Euclidean norm."""
        errors = self._errors()
        return float(errors.median() if self.typical else errors.max())

    @property
    def largest(self) -> float:
        """Largest relative error of a step."""
        return float(self._errors().max())

    def _errors(self) -> torch.Tensor:
        difference = (self.found - self.expected).norm(dim=-1)
        errors: torch.Tensor = difference / self.expected.norm(dim=-1)
        return errors


@dataclass(frozen=True)
class ActivationCost:
    """What rounding activations to int8 changes in the logits of the generated text."""

    error: float
    """Largest relative error of a step, in the Euclidean norm."""
    kld: float
    """Mean KL divergence from float activations, nats per token."""


def precision(recipe: Recipe) -> str:
    """Which tolerance the graph of a recipe falls under."""
    return INT8_CACHE if recipe.target.kv_cache == "int8" else recipe.target.float_type


def rounds_routing(graph: Graph, recipe: Recipe) -> bool:
    """Whether rounding can send a token to another expert than the reference's.

    Where two experts are nearly tied, 16 bits decide otherwise than 32: a step is far off, though
    nothing is wrong. A wrong graph is wrong at every step, so there the median counts.
    """
    return graph.decoder.architecture.experts is not None and precision(recipe) != "fp32"


def compare_generation(
    package: Package, recipe: Recipe
) -> tuple[Comparison, ActivationCost | None]:
    """Generate with onnxruntime-genai on the CPU; compare the logits of every step.

    The prompt is computed at once, each later token from the cache. The second result is None
    where the folder's activations are float.
    """
    # In the staging folder, so that what a killed run leaves of it goes with that.
    with TemporaryDirectory(dir=package.folder, prefix=".verify-") as name:
        folder = _made(Path(name) / "exact")
        cpu_copy(package.folder, folder, exact=True)
        vocab_size = package.graph.decoder.architecture.vocab_size
        prompt = prompt_tokens(folder, recipe.verify.prompt, vocab_size)
        prompt = prompt[: package.graph.context_length - recipe.verify.new_tokens]
        tokens, found = generate(folder, prompt, recipe.verify.new_tokens)
        return_memory()  # what the session held, before the next one is opened
        cost = None
        if recipe.rounds_activations:
            shipped = cpu_copy(package.folder, _made(Path(name) / "shipped"))
            cost = _cost(found, forced_logits(shipped, tokens[:-1], len(prompt)))
            return_memory()
    reference = _reference(package.graph)
    hidden = reference.hidden_states(torch.tensor([tokens[:-1]]))
    expected = reference.logits(hidden[0, len(prompt) - 1 :])
    typical = rounds_routing(package.graph, recipe)
    return Comparison(found, expected, "generated logits", typical), cost


def compare_first_layers(package: Package, recipe: Recipe, layers: int) -> Comparison:
    """Run the first layers of the packaged graph with onnxruntime; compare hidden states."""
    arch = package.graph.decoder.architecture
    layers = min(layers, arch.num_hidden_layers - 1)
    ids = spread_ids(arch.vocab_size, recipe.verify.new_tokens)
    found = _compare_layers(package, ids, layers, f"hidden states after {layers} layers")
    return replace(found, typical=rounds_routing(package.graph, recipe))


def compare_past_window(package: Package, recipe: Recipe) -> Comparison | None:
    """The layers up to the first one with a window, on a text that is longer than the window.

    None where no layer has one, or where the context ends before it, or past LONGEST_WINDOW.
    """
    arch = package.graph.decoder.architecture
    windowed = [layer for layer, window in enumerate(arch.attention.windows) if window]
    if not windowed or windowed[0] + 1 >= arch.num_hidden_layers:
        return None
    window, layers = arch.attention.windows[windowed[0]] or 0, windowed[0] + 1
    count = min(window + PAST_WINDOW, package.graph.context_length)
    if count <= window or window > LONGEST_WINDOW:
        return None
    ids = [number * 7919 % arch.vocab_size for number in range(count)]
    found = _compare_layers(package, ids, layers, f"hidden states past the window of {window}")
    typical = rounds_routing(package.graph, recipe)
    return Comparison(found.found[window:], found.expected[window:], found.what, typical)


def compared_layers(graph: Graph, verify: VerifyConfig) -> int:
    """How many layers of a large folder are compared: `verify.first_layers`.

    With experts as few as hold a quarter of `verify.max_bytes`, and at least up to the first that
    has experts: the runtime takes twice their bytes.
    """
    experts = graph.decoder.architecture.experts
    if experts is None or not any(experts.layers):
        return verify.first_layers
    weights, count = model_weights(graph.model), experts.layers.index(True) + 1
    sizes = [
        sum(weight.nbytes for name, weight in weights.items() if is_of_layer(name, layer))
        for layer in range(min(verify.first_layers, len(experts.layers)))
    ]
    while count < len(sizes) and sum(sizes[: count + 1]) <= verify.max_bytes / 4:
        count += 1
    return count


def _compare_layers(package: Package, ids: list[int], layers: int, what: str) -> Comparison:
    found = _states(package.folder, ids, layers)  # its session is gone before the reference begins
    expected = _reference(package.graph).hidden_states(torch.tensor([ids]), layers)
    return Comparison(found, expected[0], what)


def _states(folder: Path, ids: list[int], layers: int) -> torch.Tensor:
    """float32 hidden states (tokens, hidden_size) after the first `layers` of a folder's graph."""
    import numpy as np
    import onnxruntime

    cut = folder / CUT_MODEL
    try:
        cut_model(folder / MODEL_FILE, cut, layers)
        session = onnxruntime.InferenceSession(str(cut), providers=[CPU.onnxruntime_name])
        (found,) = session.run(None, model_inputs(session, np.asarray(ids)))
    finally:
        cut.unlink(missing_ok=True)
    return torch.from_numpy(found)[0].float()


def _cost(exact: torch.Tensor, shipped: torch.Tensor) -> ActivationCost:
    base, other = exact.double().log_softmax(-1), shipped.double().log_softmax(-1)
    kld = (base.exp() * (base - other)).sum(-1).mean()
    return ActivationCost(Comparison(shipped, exact, "").error, float(kld))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _reference(graph: Graph) -> Reference:
    arch = graph.decoder.architecture
    longer = graph.context_length > arch.max_position_embeddings
    length = graph.context_length if longer else None
    return Reference(graph.decoder, graph.shipped, cache_length=length)
