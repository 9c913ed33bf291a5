"""What a conversion will do, from headers alone: sizes, memory, and what stands against it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir

from converter.engine.contract import Pass, Run
from converter.engine.execution import find_problems, order_problems, rooms
from converter.errors import ConvertError, Problem, raise_if
from converter.graph.graph import Graph
from converter.graph.names import DATA_FILE, EXPERTS_LAYER, MATRIX, MODEL_FILE
from converter.graph.source_codes import source_notes
from converter.graph.tensors import WeightTensor, model_weights
from converter.machine.disk import Room, free_bytes
from converter.machine.memory import process_memory
from converter.model.architecture import Architecture
from converter.model.checkpoint import Checkpoint
from converter.model.decoder import Decoder
from converter.model.tensor_kinds import EXPERTS_DOWN, EXPERTS_GATE_UP
from converter.output.model_writer import write_graph
from converter.output.place import output_folder
from converter.quantization.quantized_matrix import QuantizedMatrix
from converter.recipe.schema import Recipe
from converter.sources.hub import HubUnreachableError
from converter.storage.staging import Staging
from converter.tokenizer import prepare_tokenizer
from converter.weights.placement import data_size, place_tensors
from converter.weights.weight import GroupPart, Weight


@dataclass(frozen=True)
class MatrixPlan:
    """What becomes of the matrices of one kind: all q_proj of one shape, say."""

    kind: str
    count: int
    shape: tuple[int, int]
    """Rows and columns, (N, K)."""
    operator: str
    form: str
    """Bits, block size and symmetry, or the float type."""
    nbytes: int
    """Bytes of all of them in the folder."""


@dataclass(frozen=True)
class Plan:
    """What `convert` would do with a recipe."""

    recipe: Recipe
    passes: tuple[str, ...]
    output: Path
    problems: tuple[Problem, ...]
    """Why the conversion would stop; empty when nothing is known to stand against it."""
    notes: tuple[str, ...] = ()
    unreached: str | None = None
    """The repository that could not be reached: the sizes are those that the recipe states."""
    decoder: Decoder | None = None
    """None, as all that follows, when the checkpoint's headers cannot be read."""
    fetch_bytes: int = 0
    """Bytes of weights that have to be downloaded first."""
    matrices: tuple[MatrixPlan, ...] = ()
    files: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each large file of the result."""
    peak_memory: int = 0
    """Bytes of resident memory at the peak of the process."""
    peak_pass: str = ""
    unknown_memory: tuple[str, ...] = ()
    """Passes that do not say how much memory they take."""
    disk_free: int = 0
    rooms: tuple[Room, ...] = ()
    """What the passes need on disks while they run, at least."""

    @property
    def output_bytes(self) -> int:
        return sum(self.files.values())

    @property
    def disk_bytes(self) -> int:
        """Bytes that have to be free: the result, and the weights that are fetched for it."""
        return self.output_bytes + self.fetch_bytes

    @property
    def parameters(self) -> int:
        """Values of the checkpoint that the model uses; a tied head counts once."""
        return _parameters(self.decoder) if self.decoder else 0

    @property
    def bits_per_weight(self) -> float:
        """Bits of the weight file per parameter, scales, norms and RoPE caches included."""
        return 8 * self.files.get(DATA_FILE, 0) / self.parameters if self.parameters else 0.0


def make_plan(recipe: Recipe, passes: Sequence[Pass[Any, Any]]) -> Plan:
    """Plan a conversion; no weight is read and none is fetched.

    Raises:
        ConvertError: the passes do not follow each other.
    """
    passes = [item for item in passes if item.enabled(recipe)]
    raise_if(order_problems(passes))
    unreached = recipe.source.repo
    recipe, unreachable = _reachable(recipe, passes)
    output = output_folder(recipe)
    decoder, problems = find_problems(recipe, passes, output)
    problems += unreachable
    base = Plan(
        recipe,
        tuple(item.name for item in passes),
        output,
        tuple(problems),
        unreached=unreached if unreachable else None,
    )
    if decoder is None:
        return base
    run = Run(recipe, Staging.nowhere())
    graph, found = _preview_graph(decoder, passes, run)
    checkpoint = decoder.checkpoint
    tokenizer, tokenizer_notes = _tokenizer(checkpoint, decoder.architecture)
    peak, unknown = _memory(graph, passes, recipe)
    return dataclasses.replace(
        base,
        problems=tuple(dict.fromkeys([*problems, *found])),
        notes=(
            *checkpoint.notes,
            *source_notes(recipe, decoder),
            *decoder.notes,
            *tokenizer_notes,
            *_position_notes(graph),
        ),
        decoder=decoder,
        fetch_bytes=_bytes_to_fetch(checkpoint),
        matrices=tuple(_matrices(graph)),
        files={**_model_files(graph), **tokenizer},
        peak_memory=process_memory() + max(peak.values(), default=0),
        peak_pass=max(peak, key=lambda name: peak[name], default=""),
        unknown_memory=unknown,
        disk_free=free_bytes(output) or 0,
        rooms=tuple(rooms(recipe, passes, decoder)),
    )


def _reachable(recipe: Recipe, passes: Sequence[Pass[Any, Any]]) -> tuple[Recipe, list[Problem]]:
    """The recipe, or one on its model's published sizes when the hub cannot be reached."""
    try:
        passes[0].preview(None, Run(recipe, Staging.nowhere()))
    except HubUnreachableError as error:
        if recipe.model.config:
            source = dataclasses.replace(recipe.source, kind="synthetic")
            return dataclasses.replace(recipe, source=source), list(error.problems)
    except ConvertError:
        pass  # find_problems meets it again, with everything else
    return recipe, []


def _preview_graph(
    decoder: Decoder, passes: Sequence[Pass[Any, Any]], run: Run
) -> tuple[Graph, list[Problem]]:
    artifact: Any = decoder
    problems: list[Problem] = []
    for item in passes:
        if issubclass(item.gives, Graph):
            artifact = item.preview(artifact, run)
            problems += item.ensures(artifact, run)
    return artifact, problems


def _tokenizer(checkpoint: Checkpoint, arch: Architecture) -> tuple[dict[str, int], list[str]]:
    """Bytes of the tokenizer files, and what is to say of them; `package` says what is wrong."""
    folder = checkpoint.folder
    if folder is None or not checkpoint.has_tokenizer:
        return {}, ["The source has no tokenizer: the folder will take token ids only."]
    try:
        made = prepare_tokenizer(folder, arch.vocab_size)
    except ConvertError:
        return {}, []
    stops = ", ".join(map(str, made.eos_token_ids))
    template = "with" if made.chat_template else "without"
    note = f"Tokenizer: stops at {stops}, {template} a chat template."
    sizes = {name: len(content) for name, content in made.files.items()}
    return sizes, [note, *(f"Tokenizer: {text}" for text in made.notes + made.comparison.notes)]


def _memory(
    graph: Graph, passes: Sequence[Pass[Any, Any]], recipe: Recipe
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Bytes by pass, and the passes that do not say."""
    asked = {
        item.name: item.peak_memory(graph, recipe)
        for item in passes
        if not item.headers_only and not issubclass(item.takes, Decoder)
    }
    known = {name: nbytes for name, nbytes in asked.items() if nbytes is not None}
    return known, tuple(name for name in asked if name not in known)


def _position_notes(graph: Graph) -> Iterator[str]:
    """What the context length means for the rotary embedding."""
    arch, length = graph.decoder.architecture, graph.context_length
    rope, trained = arch.rope, arch.max_position_embeddings
    yield f"Positions: {length:,}; RoPE base {rope.theta:g}, scaling {rope.scaling}."
    if rope.scaling == "linear":
        yield f"Linear scaling divides positions by {rope.factor:g}, at every length."
    if length <= trained:
        if rope.scaling == "dynamic":
            yield (
                f"Dynamic scaling (factor {rope.factor:g}) changes nothing up to {trained:,} "
                f"positions; graph.context_length asks for more."
            )
    elif rope.scaling == "dynamic":
        base = rope.base(arch.head_dim, length, trained)
        yield (
            f"{length:,} positions are more than max_position_embeddings ({trained:,}): dynamic "
            f"scaling (factor {rope.factor:g}) gives the base {base:.6g} for that length. The "
            f"folder uses it for shorter texts too, where the model itself uses {rope.theta:g}."
        )
    else:
        yield (
            f"{length:,} positions are more than max_position_embeddings ({trained:,}), and the "
            f"checkpoint asks for no dynamic scaling: quality past {trained:,} is untested ground."
        )


def _matrices(graph: Graph) -> Iterator[MatrixPlan]:
    """Matrices of the graph, alike ones together, in the order of their first appearance."""
    counts: Counter[MatrixPlan] = Counter()
    for node in graph.model.graph:
        kind = node.metadata_props.get(MATRIX)
        if kind is not None:
            counts[_matrix(kind.rpartition(".")[2], node.op_type, _weight_of(node))] += 1
        if EXPERTS_LAYER in node.metadata_props:
            counts.update(_experts(node))
    for plan, count in counts.items():
        yield dataclasses.replace(plan, count=count, nbytes=count * plan.nbytes)


def _experts(node: ir.Node) -> Iterator[MatrixPlan]:
    """The matrices of all experts of a layer."""
    weights = [
        value.const_value.weight
        for value in node.inputs
        if value is not None and isinstance(value.const_value, WeightTensor)
    ]
    matrices = [weight for weight in weights if len(weight.shape) > 1 and _is_first(weight)]
    for kind, weight in zip((EXPERTS_GATE_UP, EXPERTS_DOWN), matrices, strict=True):
        yield _matrix(kind, node.op_type, weight)


def _is_first(weight: Weight) -> bool:
    """Whether a weight stands for its matrix: it is no scales and no zero points."""
    return not isinstance(weight, GroupPart) or weight.name == "codes"


def _matrix(kind: str, operator: str, weight: Weight) -> MatrixPlan:
    if isinstance(weight, GroupPart) and isinstance(weight.group, QuantizedMatrix):
        group = weight.group
        form = group.form
        sign = "symmetric" if form.symmetric else "asymmetric"
        text = f"int{form.bits}, block {form.block_size}, {sign}"
        text += ", kept" if group.keeps else ""
        nbytes = sum(group.part(name).nbytes for name in group.specs)
        rows, columns = group.source.shape
        return MatrixPlan(kind, 1, (rows, columns), operator, text, nbytes)
    rows, columns = weight.shape if operator != "MatMul" else weight.shape[::-1]
    text = str(weight.dtype).removeprefix("torch.")
    return MatrixPlan(kind, 1, (rows, columns), operator, text, weight.nbytes)


def _weight_of(node: ir.Node) -> Weight:
    """The matrix that a node multiplies with; a node before it may dequantize or reshape it."""
    for value in node.inputs:
        if value is None:
            continue
        if isinstance(value.const_value, WeightTensor):
            return value.const_value.weight
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and producer.metadata_props.get(MATRIX) is None:
            for inner in producer.inputs:
                if inner is not None and isinstance(inner.const_value, WeightTensor):
                    return inner.const_value.weight
    raise AssertionError(f"{node.name} multiplies with no initializer")


def _model_files(graph: Graph) -> dict[str, int]:
    places = place_tensors(model_weights(graph.model))
    with TemporaryDirectory() as name:
        write_graph(graph.model, Path(name), places)
        return {DATA_FILE: data_size(places), MODEL_FILE: (Path(name) / MODEL_FILE).stat().st_size}


def _parameters(decoder: Decoder) -> int:
    distinct = {id(weight): weight.numel for weight in decoder.weights.values()}
    return sum(distinct.values())


def _bytes_to_fetch(checkpoint: Checkpoint) -> int:
    """A repository whose weights are not here has no weight files yet."""
    if checkpoint.origin.get("kind") != "hub" or checkpoint.files:
        return 0
    return sum(weight.nbytes for weight in checkpoint.tensors.values())
