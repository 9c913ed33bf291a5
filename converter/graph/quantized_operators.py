"""Block-quantized operators in the place of matrix products and the embedding lookup.

Operators: MatMulNBits and GatherBlockQuantized (onnxruntime's docs/ContribOperators.md), or
DequantizeLinear before a MatMul.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import onnx_ir as ir
import torch

from converter.graph.formats import tied_format
from converter.graph.graph import Graph
from converter.graph.matrices import matrix_format, matrix_parts, matrix_weight, split_rows
from converter.graph.names import (
    CONTRIB,
    HEAD_PATH,
    MATRIX,
    bias_initializer,
    matrix_initializer,
    norm_initializer,
    product_path,
    quantized,
)
from converter.graph.norms import shifted
from converter.graph.quantized_experts import quantize_experts
from converter.graph.quantized_tensors import (
    code_values,
    scale_values,
    searched,
    zero_point_values,
)
from converter.graph.source_codes import kept_codes, kept_scale_type
from converter.graph.tensors import FLOAT_TYPES, WeightTensor, add_initializer
from converter.model.decoder import Decoder
from converter.model.tensor_kinds import (
    BIAS,
    EMBEDDING,
    EXPERTS_DOWN,
    HEAD,
    NORMS,
    is_bias,
    leaf,
)
from converter.quantization.quantized_matrix import QuantizedMatrix, Rounding
from converter.quantization.rtn import BlockFormat
from converter.recipe.schema import Recipe
from converter.weights.weight import Weight, concatenate_rows


class Calibrated(Protocol):
    """What a calibration found: see converter/calibration/calibrate.py."""

    @property
    def weights(self) -> Mapping[str, Weight]:
        """All canonical weights, with the folds in them."""

    @property
    def forms(self) -> Mapping[str, BlockFormat]:
        """The format of each quantized matrix."""

    @property
    def roundings(self) -> Mapping[str, Rounding]:
        """The codes of each quantized matrix."""


def quantized_graph(artifact: Graph, recipe: Recipe, calibrated: Calibrated | None = None) -> Graph:
    """The graph with quantized operators: a matrix has the source's codes where the recipe keeps
    them, a calibration's, or is rounded to nearest.

    Where nothing was calibrated, as with experts, a search looks at the weights alone.
    """
    quant, decoder = recipe.quant, artifact.decoder
    head = calibrated.forms.get(HEAD) if calibrated else matrix_format(HEAD, quant)
    shipped, tied = dict(artifact.shipped), tied_format(quant, decoder, head)
    if calibrated:
        dtype = FLOAT_TYPES[recipe.target.float_type]
        shipped = {name: weight.cast(dtype) for name, weight in calibrated.weights.items()}
        offset = decoder.architecture.norm.offset
        _replace_constants(artifact.model.graph, calibrated.weights, dtype, offset)
    shipped |= _all_experts(artifact, recipe, calibrated.roundings if calibrated else {})
    table: QuantizedMatrix | None = None
    for node in list(artifact.model.graph):
        matrix = node.metadata_props.get(MATRIX)
        if matrix is None:
            continue
        codes = HEAD if matrix == EMBEDDING and tied else matrix
        form = tied if matrix == EMBEDDING and tied else matrix_format(matrix, quant)
        if form is None:
            continue
        made = _coded(codes, node, form, recipe, decoder, calibrated)
        if matrix == HEAD and table and (tied or _same_codes(made, table)):
            made = table
        _replace(artifact.model.graph, node, made, recipe)
        shipped |= split_rows(matrix, made.dequantized(), decoder)
        table = made if matrix == EMBEDDING else table
    return dataclasses.replace(artifact, shipped=shipped)


def _all_experts(
    artifact: Graph, recipe: Recipe, roundings: Mapping[str, Rounding]
) -> dict[str, Weight]:
    """Quantize the experts of every layer; their matrices as the codes stand for them."""
    form, graph = matrix_format(EXPERTS_DOWN, recipe.quant), artifact.model.graph
    found: dict[str, Weight] = {}
    for node in [node for node in graph if node.op_type == "MoE"]:
        if form is not None:
            found |= quantize_experts(graph, node, form, artifact.decoder, recipe, roundings)
    return found


def _uncalibrated(
    source: Weight, form: BlockFormat, recipe: Recipe, calibrated: Calibrated | None
) -> Rounding | None:
    """The search of a recipe that nothing was calibrated for; None: rounded to nearest."""
    search = recipe.quant.round == "search" and calibrated is None
    return searched(source, form, FLOAT_TYPES[recipe.scale_type]) if search else None


def _coded(
    matrix: str,
    node: ir.Node,
    form: BlockFormat,
    recipe: Recipe,
    decoder: Decoder,
    calibrated: Calibrated | None,
) -> QuantizedMatrix:
    """The codes of a matrix for a node: calibrated, the source's own, or rounded to `form`."""
    kept = None if calibrated else kept_codes(matrix, recipe, decoder)
    source, scale_type = kept or matrix_weight(matrix, decoder), FLOAT_TYPES[recipe.scale_type]
    rounding = None
    if calibrated and matrix in calibrated.roundings:
        form, rounding = calibrated.forms[matrix], calibrated.roundings[matrix]
    elif kept:
        form, scale_type = kept.form, kept_scale_type(kept, recipe)
    else:
        rounding = _uncalibrated(source, form, recipe, calibrated)
    embedding, dequantize = _is_embedding(node), _dequantizes(node, recipe)
    return QuantizedMatrix(
        source,
        form,
        scale_type,
        rounding,
        flat=embedding or dequantize,
        signed=dequantize,
        keeps=kept is not None,
    )


def _is_embedding(node: ir.Node) -> bool:
    return node.op_type == "Gather"


def _dequantizes(node: ir.Node, recipe: Recipe) -> bool:
    return not _is_embedding(node) and recipe.target.quantized_weights == "DequantizeLinear"


def _same_codes(one: QuantizedMatrix, other: QuantizedMatrix) -> bool:
    """Whether both keep the codes of one matrix of the source."""
    return one.keeps and other.keeps and one.source is other.source


def _replace_constants(
    graph: ir.Graph, weights: Mapping[str, Weight], dtype: torch.dtype, offset: float
) -> None:
    """Put the norms and biases of `weights`, which folds have scaled, into the graph.

    `offset` is what norms add to their stored weights.
    """
    for name, weight in weights.items():
        kind = leaf(name)
        if kind.removesuffix(BIAS) not in NORMS:
            continue
        value = graph.initializers.get(norm_initializer(name))
        if value is not None:
            made = weight if is_bias(kind) else shifted(weight, offset)
            value.const_value = WeightTensor(str(value.name), made.cast(dtype))
    for node in graph:
        matrix = node.metadata_props.get(MATRIX)
        if matrix is None or matrix in (EMBEDDING, HEAD):
            continue
        parts = [part + BIAS for part in matrix_parts(matrix)]
        if any(part not in weights for part in parts):
            continue
        value = graph.initializers[bias_initializer(product_path(str(node.name)))]
        bias = concatenate_rows([weights[part] for part in parts])
        value.const_value = WeightTensor(str(value.name), bias.cast(dtype))


def _replace(graph: ir.Graph, node: ir.Node, matrix: QuantizedMatrix, recipe: Recipe) -> None:
    """Put quantized operators of a matrix in the node's place."""
    embedding, dequantize = _is_embedding(node), _dequantizes(node, recipe)
    table = node.inputs[0 if embedding else 1]
    assert table is not None and table.const_value is not None
    # A tied head reads the embedding's table; its codes have a name of their own.
    head = node.metadata_props[MATRIX] == HEAD
    label = matrix_initializer(HEAD_PATH) if head else str(table.name)
    scales, widen = scale_values(graph, label, matrix, table.const_value.dtype)
    if embedding:
        new = [_gather(node, _parts(graph, label, matrix, scales), matrix.form)]
    elif dequantize:
        new = _dequantize(graph, node, label, matrix, scales)
    else:
        parts = _parts(graph, label, matrix, scales, blocks=True)
        new = [_matmul(node, parts, matrix, recipe)]
    _put(graph, node, [*widen, *new], matrix.form)
    if not table.uses():
        graph.initializers.pop(str(table.name))


def _put(graph: ir.Graph, node: ir.Node, new: list[ir.Node], form: BlockFormat) -> None:
    last = new[-1]
    last.name, last.metadata_props[MATRIX] = (
        quantized(str(node.name), form.bits),
        node.metadata_props[MATRIX],
    )
    last.outputs[0].name = node.outputs[0].name
    last.outputs[0].shape, last.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, last.outputs)


def _parts(
    graph: ir.Graph, label: str, matrix: QuantizedMatrix, scales: ir.Value, blocks: bool = False
) -> list[ir.Value]:
    """Codes, scales and zero points; codes (N, blocks, bytes) when `blocks`."""
    form, (rows, columns) = matrix.form, matrix.source.shape
    shape = (rows, form.blocks(columns), form.block_size * form.bits // 8) if blocks else None
    codes = code_values(graph, label, matrix, shape)
    return [codes, scales, *zero_point_values(graph, label, matrix)]


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
    inputs = [add_initializer(graph, codes), scales]
    attributes = {"axis": 1, "block_size": matrix.form.block_size}
    wide = ir.node("DequantizeLinear", inputs, attributes, name=f"{node.name}/DequantizeLinear")
    turned = ir.node("Transpose", wide.outputs, {"perm": [1, 0]}, name=f"{node.name}/Transpose")
    for made in (wide, turned):
        made.outputs[0].name = f"{made.name}/output_0"
    return [wide, turned, ir.node("MatMul", [node.inputs[0], turned.outputs[0]])]
