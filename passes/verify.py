"""verify: load the folder with onnxruntime-genai, generate, and compare with the reference.

The reference runs on the weights that the folder holds, dequantized, so the error is that of graph,
files and kernels alone; how far quantization moved the model is the business of evaluate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
import torch

from converter.engine.artifacts import Graph, Package
from converter.engine.engine import Pass, Run
from converter.engine.memory import RUNTIME_BYTES, reference_memory, session_memory
from converter.errors import ConvertError, Problem
from converter.evaluation.runtime_logits import model_inputs
from converter.graph.cpu_model import widen
from converter.model.decoder import Decoder
from converter.model.reference import Reference
from converter.output.model_writer import (
    DATA_FILE,
    MODEL_FILE,
    data_size,
    model_weights,
    place_tensors,
)
from converter.recipe.schema import Recipe
from converter.runtime.session import missing_runtime

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


class Verify(Pass[Package, Package]):
    """Publishes only a folder whose numbers are the reference's."""

    name = "verify"
    takes = Package
    gives = Package
    slot = "verify"
    guarantees = (
        "onnxruntime-genai loads the folder and generates",
        "logits are within verify.max_error of the reference on the same weights",
    )

    def __init__(self) -> None:
        self._summary = ""

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

    def peak_memory(self, graph: Graph, recipe: Recipe) -> int | None:
        weights = model_weights(graph.model)
        whole = data_size(place_tensors(weights))
        if whole <= recipe.verify.max_bytes:  # the session is gone when the reference begins
            return max(session_memory(whole), RUNTIME_BYTES + reference_memory(graph.decoder))
        outside = sum(w.nbytes for name, w in weights.items() if "embed_tokens" in name)
        layer = sum(w.nbytes for name, w in weights.items() if ".layers.0." in name)
        cut = outside + recipe.verify.first_layers * layer
        return session_memory(cut) + reference_memory(graph.decoder)

    def run(self, artifact: Package, run: Run) -> Package:
        verify = run.recipe.verify
        if artifact.nbytes > verify.max_bytes:
            comparison = compare_first_layers(artifact, run.recipe, verify.first_layers)
        else:
            comparison = compare_generation(artifact, run.recipe)
        error, limit = comparison.error, verify.max_error[precision(run.recipe)]
        self._summary = f"{comparison.what}: relative error {error:.1e} (at most {limit:.0e})"
        run.facts[self.name] = {"compared": comparison.what, "relative_error": error}
        if not error <= limit:  # NaN is a failure
            raise ConvertError(
                Problem(
                    f"The {comparison.what} differ from the reference by {error:.2e}.",
                    f"a relative error of at most {limit:.2e} ({precision(run.recipe)})",
                    "report this; verify=none publishes the folder unchecked",
                )
            )
        return artifact

    def summary(self, given: Package) -> str:
        return self._summary


def precision(recipe: Recipe) -> str:
    """Which tolerance a recipe falls under."""
    if recipe.rounds_activations or recipe.target.kv_cache == "int8":
        return "int8_activations"
    return recipe.target.float_type


def compare_generation(package: Package, recipe: Recipe) -> Comparison:
    """Generate with onnxruntime-genai on the CPU; compare the logits of every step."""
    with TemporaryDirectory(dir=package.folder.parent, prefix=".verify-") as name:
        folder = cpu_copy(package.folder, Path(name))
        prompt = prompt_tokens(package, recipe, folder)
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
        _cut_model(package.folder / MODEL_FILE, cut, layers)
        session = onnxruntime.InferenceSession(str(cut), providers=["CPUExecutionProvider"])
        ids = _spread_ids(graph.decoder.architecture.vocab_size, recipe.verify.new_tokens)
        (found,) = session.run(None, model_inputs(session, np.asarray(ids)))
    finally:
        cut.unlink(missing_ok=True)
    expected = _reference(graph).hidden_states(torch.tensor([ids]), layers)
    what = f"hidden states after {layers} layers"
    return Comparison(torch.from_numpy(found)[0].float(), expected[0], what)


def cpu_copy(folder: Path, target: Path) -> Path:
    """A folder of links to `folder` that runs on the CPU whatever its provider and type are."""
    model = ir.load(folder / MODEL_FILE)
    own = {"genai_config.json"}
    if widen(model):
        own |= {MODEL_FILE, DATA_FILE}
        ir.save(model, target / MODEL_FILE)
        # onnxruntime refuses a data file that is a link out of the model's folder.
        os.link(folder / DATA_FILE, target / DATA_FILE)
    for path in folder.iterdir():
        if path.name not in own:
            os.symlink(path, target / path.name)
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    options = config["model"]["decoder"]["session_options"]
    options["provider_options"] = []
    if options.get("intra_op_num_threads", 0) > (cores := os.cpu_count() or 1):
        options["intra_op_num_threads"] = cores  # another machine's number
    (target / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def generate(folder: Path, prompt: Sequence[int], count: int) -> tuple[list[int], torch.Tensor]:
    """Greedy generation: all tokens, and the float32 logits (count, vocab_size) of each step."""
    import numpy as np
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + count, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.asarray(prompt, dtype=np.int32))
    tokens, steps = list(prompt), []
    for _ in range(count):
        last = np.asarray(generator.get_output("logits"))[0, -1]
        steps.append(torch.from_numpy(last.astype(np.float32)))
        tokens.append(int(steps[-1].argmax()))
        if len(steps) < count:
            generator.append_tokens(np.asarray(tokens[-1:], dtype=np.int32))
    return tokens, torch.stack(steps)


def _reference(graph: Graph) -> Reference:
    arch = graph.decoder.architecture
    longer = graph.context_length > arch.max_position_embeddings
    return Reference(arch, graph.shipped, cache_length=graph.context_length if longer else None)


def prompt_tokens(package: Package, recipe: Recipe, folder: Path) -> list[int]:
    """Token ids of the recipe's prompt; `folder` is the package in a form that runs here."""
    vocab_size = package.graph.decoder.architecture.vocab_size
    if not (package.folder / "tokenizer.json").is_file():
        return _spread_ids(vocab_size, 8)
    import onnxruntime_genai as og

    tokenizer = og.Tokenizer(og.Model(str(folder)))
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    return [config["model"]["bos_token_id"], *tokenizer.encode(recipe.verify.prompt).tolist()]


def _spread_ids(vocab_size: int, count: int) -> list[int]:
    """Token ids from all over the vocabulary."""
    return [number * vocab_size // count for number in range(count)]


def _cut_model(path: Path, cut: Path, layers: int) -> None:
    """The graph up to the residual stream that layer number `layers` starts from."""
    model = ir.load(path)
    norm = f"/model/layers.{layers}/input_layernorm/"
    # The sum comes out of the fused norm, or of the addition in front of one in plain operators.
    node = next(node for node in model.graph if node.name in (norm + "SkipLayerNorm", norm + "Add"))
    hidden = node.outputs[-1]
    model.graph.outputs[:] = [hidden]
    ir_passes.RemoveUnusedNodesPass()(model)
    used = {value.name for item in model.graph for value in item.inputs if value is not None}
    model.graph.inputs[:] = [value for value in model.graph.inputs if value.name in used]
    widen(model)
    ir.save(model, cut)
