"""quantize: replace matrix products and the embedding lookup by their block-quantized operators.

Operators: MatMulNBits and GatherBlockQuantized (onnxruntime's docs/ContribOperators.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from converter.engine.artifacts import FLOAT_TYPES, MATRIX, Graph, WeightTensor
from converter.engine.engine import Pass, Run
from converter.errors import ConvertError, Problem
from converter.machine.disk import Room
from converter.model.checkpoint import TOKENIZERS
from converter.model.decoder import BIAS, EMBEDDING, HEAD, Decoder
from converter.quantization.formats import (
    budget_problems,
    indivisible,
    matrix_format,
    matrix_parts,
    tied_format,
)
from converter.quantization.quantized_matrix import QuantizedMatrix, Rounding
from converter.quantization.rtn import BlockFormat
from converter.recipe.schema import Recipe
from converter.storage.cache import FOLDER_VARIABLE, Cache, cache_folder
from converter.text.texts import load_text
from converter.weights.weight import CastWeight, Weight, concatenate_rows
from passes.graph import kernel_problems

if TYPE_CHECKING:
    from converter.calibration.calibrate import Calibrated

CONTRIB = "com.microsoft"


class Quantize(Pass[Graph, Graph]):
    """Block-wise weight quantization in the scheme that the recipe asks."""

    name = "quantize"
    takes = Graph
    gives = Graph
    slot = "quant"
    guarantees = (
        "every matrix is quantized in the format that the recipe asks, or left in float as it asks",
        "the weights that the new graph holds are known, dequantized, for verify to compare with",
    )

    def enabled(self, recipe: Recipe) -> bool:
        return recipe.quant.round != "none"

    def requires(self, recipe: Recipe, decoder: Decoder | None) -> Iterable[Problem]:
        quant = recipe.quant
        if quant.calibrated:
            try:
                load_text(recipe.calibration.text, half="calibration")
            except ConvertError as error:
                yield from error.problems
        if decoder is None:
            return
        yield from indivisible(quant, decoder.architecture, check_layers=not quant.mixed)
        if quant.calibrated:
            yield from _calibration_problems(recipe, decoder)
        if quant.mixed:
            yield from budget_problems(recipe, decoder)

    def disk(self, recipe: Recipe, decoder: Decoder) -> Iterable[Room]:
        if recipe.quant.calibrated:
            from converter.calibration.disk import calibration_disk

            folder = cache_folder()
            needed = calibration_disk(recipe, decoder, Cache(folder))
            remedy = f"set {FOLDER_VARIABLE}=FOLDER on a disk with more room"
            yield Room(folder, needed, "what calibration spills and keeps", remedy)

    def run(self, artifact: Graph, run: Run) -> Graph:
        if not run.recipe.quant.calibrated:
            return quantized_graph(artifact, run.recipe)
        from converter.calibration.calibrate import calibrate

        calibrated = calibrate(
            run.recipe, artifact.decoder, Cache(cache_folder()), run.progress.advance
        )
        run.facts[self.name] = calibrated.facts()
        return quantized_graph(artifact, run.recipe, calibrated)

    def preview(self, artifact: Graph, run: Run) -> Graph:
        """The same operators and shapes, rounded to nearest when they are read."""
        return quantized_graph(artifact, run.recipe)

    def peak_memory(self, graph: Graph, recipe: Recipe) -> int | None:
        if not recipe.quant.calibrated:
            return 0  # package computes the codes
        from converter.calibration.memory import calibration_memory

        return calibration_memory(recipe, graph.decoder)

    def ensures(self, given: Graph, run: Run) -> Iterable[Problem]:
        return kernel_problems(given.model, run.recipe.target)

    def summary(self, given: Graph) -> str:
        kinds = [node.op_type for node in given.model.graph]
        return (
            f"{kinds.count('MatMulNBits')} MatMulNBits, "
            f"{kinds.count('GatherBlockQuantized')} GatherBlockQuantized"
        )


def quantized_graph(artifact: Graph, recipe: Recipe, calibrated: Calibrated | None = None) -> Graph:
    """The graph with quantized operators, rounded to nearest or with a calibration's codes."""
    quant, target, decoder = recipe.quant, recipe.target, artifact.decoder
    head = calibrated.forms.get(HEAD) if calibrated else matrix_format(HEAD, quant)
    shipped, tied = dict(artifact.shipped), tied_format(quant, decoder, head)
    if calibrated:
        dtype = FLOAT_TYPES[target.float_type]
        shipped = {name: weight.cast(dtype) for name, weight in calibrated.weights.items()}
        _replace_constants(artifact.model.graph, calibrated.weights, dtype)
    table: QuantizedMatrix | None = None
    for node in list(artifact.model.graph):
        matrix = node.metadata_props.get(MATRIX)
        if matrix is None:
            continue
        form = tied if matrix == EMBEDDING and tied else matrix_format(matrix, quant)
        if form is None:
            continue
        shared = table if matrix == HEAD and tied else None
        codes = HEAD if matrix == EMBEDDING and tied else matrix
        rounding = None
        if calibrated and codes in calibrated.roundings:
            form, rounding = calibrated.forms[codes], calibrated.roundings[codes]
        made = _replace(artifact.model.graph, node, form, recipe, shared, rounding)
        shipped |= split_rows(matrix, made.dequantized(), decoder)
        table = made if matrix == EMBEDDING else table
    return dataclasses.replace(artifact, shipped=shipped)


def _replace_constants(graph: ir.Graph, weights: Mapping[str, Weight], dtype: torch.dtype) -> None:
    """Put the norms and biases of `weights`, which folds have scaled, into the graph."""
    for name, weight in weights.items():
        value = graph.initializers.get(f"model.{name}.weight")
        if name.endswith("norm") and value is not None:
            value.const_value = WeightTensor(str(value.name), weight.cast(dtype))
    for node in graph:
        matrix = node.metadata_props.get(MATRIX)
        if matrix is None or matrix in (EMBEDDING, HEAD):
            continue
        parts = [part + BIAS for part in matrix_parts(matrix)]
        if any(part not in weights for part in parts):
            continue
        (added,) = (use.node for use in node.outputs[0].uses())
        value = next(item for item in added.inputs if item is not None and item.const_value)
        bias = concatenate_rows([weights[part] for part in parts])
        value.const_value = WeightTensor(str(value.name), bias.cast(dtype))


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


def split_rows(matrix: str, stacked: Weight, decoder: Decoder) -> dict[str, Weight]:
    """Canonical weights of a matrix; a packed qkv_proj is three, gate_up_proj two of them."""
    names = matrix_parts(matrix)
    if len(names) == 1:
        return {matrix: stacked}
    parts, offset = {}, 0
    for name in names:
        count = decoder.weights[name].shape[0]
        parts[name] = stacked.permute_rows(torch.arange(offset, offset + count))
        offset += count
    return parts


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    form: BlockFormat,
    recipe: Recipe,
    shared: QuantizedMatrix | None = None,
    rounding: Rounding | None = None,
) -> QuantizedMatrix:
    """Put quantized operators in the node's place; `shared` holds the codes of a tied matrix."""
    embedding = node.op_type == "Gather"
    table = node.inputs[0 if embedding else 1]
    assert table is not None and isinstance(table.const_value, WeightTensor)
    stored = table.const_value.weight
    source = stored.transpose() if node.op_type == "MatMul" else stored
    dequantize = not embedding and recipe.target.quantized_weights == "DequantizeLinear"
    matrix = shared or QuantizedMatrix(
        _unrounded(source),
        form,
        FLOAT_TYPES[recipe.scale_type],
        rounding,
        flat=embedding or dequantize,
        signed=dequantize,
    )
    # A tied head reads the embedding's table; its codes have a name of their own.
    head = node.metadata_props[MATRIX] == HEAD
    label = "lm_head.MatMul.weight" if head else str(table.name)
    scales, widen = _scales(graph, label, matrix, table.const_value.dtype)
    if embedding:
        new = [_gather(node, _parts(graph, label, matrix, scales), form)]
    elif dequantize:
        new = _dequantize(graph, node, label, matrix, scales)
    else:
        parts = _parts(graph, label, matrix, scales, blocks=True)
        new = [_matmul(node, parts, matrix, recipe)]
    _put(graph, node, [*widen, *new], form)
    if not table.uses():
        graph.initializers.pop(str(table.name))
    return matrix


def _put(graph: ir.Graph, node: ir.Node, new: list[ir.Node], form: BlockFormat) -> None:
    last = new[-1]
    last.name, last.metadata_props[MATRIX] = (
        f"{node.name}_Q{form.bits}",
        node.metadata_props[MATRIX],
    )
    last.outputs[0].name = node.outputs[0].name
    last.outputs[0].shape, last.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, last.outputs)


def _unrounded(weight: Weight) -> Weight:
    """The weight before its cast to the graph's float type, so that rounding happens once."""
    return weight.source if isinstance(weight, CastWeight) else weight


def _scales(
    graph: ir.Graph, label: str, matrix: QuantizedMatrix, dtype: ir.DataType
) -> tuple[ir.Value, list[ir.Node]]:
    """Scales in the graph's type `dtype`; stored in a narrower one, they are cast.

    onnxruntime computes a cast of an initializer once, when it loads the model.
    """
    scales = _initializer(graph, WeightTensor(f"{label}_scales", matrix.part("scales")))
    if scales.dtype == dtype:
        return scales, []
    cast = ir.node("Cast", [scales], {"to": dtype}, name=f"{label}_scales/Cast")
    cast.outputs[0].name, cast.outputs[0].dtype = f"{cast.name}/output_0", dtype
    return cast.outputs[0], [cast]


def _parts(
    graph: ir.Graph, label: str, matrix: QuantizedMatrix, scales: ir.Value, blocks: bool = False
) -> list[ir.Value]:
    """Codes, scales and zero points; codes (N, blocks, bytes) when `blocks`."""
    codes, form = matrix.part("codes"), matrix.form
    rows, columns = matrix.source.shape
    shape = (rows, form.blocks(columns), form.block_size * form.bits // 8) if blocks else None
    values = [_initializer(graph, WeightTensor(f"{label}_codes", codes, shape=shape)), scales]
    if not form.symmetric:
        points = WeightTensor(f"{label}_zero_points", matrix.part("zero_points"))
        values.append(_initializer(graph, points))
    return values


def _initializer(graph: ir.Graph, tensor: WeightTensor) -> ir.Value:
    value = ir.Value(
        name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _gather(node: ir.Node, parts: list[ir.Value], form: BlockFormat) -> ir.Node:
    codes, scales, *zero_points = parts
    return ir.node(
        "GatherBlockQuantized",
        [codes, node.inputs[1], scales, *zero_points],
        {"bits": form.bits, "block_size": form.block_size, "gather_axis": 0, "quantize_axis": 1},
        domain=CONTRIB,
    )


def _matmul(
    node: ir.Node,
    parts: list[ir.Value],
    matrix: QuantizedMatrix,
    recipe: Recipe,
) -> ir.Node:
    return ir.node(
        "MatMulNBits",
        [node.inputs[0], *parts],
        {
            "K": matrix.source.shape[1],
            "N": matrix.source.shape[0],
            "accuracy_level": recipe.accuracy_level,
            "bits": matrix.form.bits,
            "block_size": matrix.form.block_size,
        },
        domain=CONTRIB,
    )


def _dequantize(
    graph: ir.Graph, node: ir.Node, label: str, matrix: QuantizedMatrix, scales: ir.Value
) -> list[ir.Node]:
    """DequantizeLinear → Transpose → MatMul, codes int4 or int8 (N, K): what TensorRT reads."""
    dtype = {4: ir.DataType.INT4, 8: ir.DataType.INT8}[matrix.form.bits]
    codes = WeightTensor(f"{label}_codes", matrix.part("codes"), dtype, matrix.source.shape)
    inputs = [_initializer(graph, codes), scales]
    attributes = {"axis": 1, "block_size": matrix.form.block_size}
    wide = ir.node("DequantizeLinear", inputs, attributes, name=f"{node.name}/DequantizeLinear")
    turned = ir.node("Transpose", wide.outputs, {"perm": [1, 0]}, name=f"{node.name}/Transpose")
    for made in (wide, turned):
        made.outputs[0].name = f"{made.name}/output_0"
    return [wide, turned, ir.node("MatMul", [node.inputs[0], turned.outputs[0]])]
