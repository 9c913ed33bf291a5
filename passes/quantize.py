"""quantize: replace matrix products and the embedding lookup by their block-quantized operators.

Operators: MatMulNBits and GatherBlockQuantized (onnxruntime's docs/ContribOperators.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import onnx_ir as ir
import torch

from converter.architecture import Architecture
from converter.artifacts import FLOAT_TYPES, MATRIX, Graph, WeightTensor
from converter.decoder import Decoder
from converter.engine import Pass, Run
from converter.errors import Problem
from converter.quantization.rtn import BlockFormat
from converter.quantized import QuantizedMatrix
from converter.recipe import LEFT_IN_FLOAT, QuantConfig, Recipe, TargetConfig
from converter.weight import CastWeight, Weight
from passes.graph import kernel_problems

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
        if decoder is not None:
            yield from _indivisible(recipe.quant, decoder.architecture)

    def run(self, artifact: Graph, run: Run) -> Graph:
        quant, target = run.recipe.quant, run.recipe.target
        shipped, tied = dict(artifact.shipped), tied_format(quant, artifact.decoder)
        table: QuantizedMatrix | None = None
        for node in list(artifact.model.graph):
            matrix = node.metadata_props.get(MATRIX)
            if matrix is None:
                continue
            form = tied if matrix == "embed_tokens" and tied else matrix_format(matrix, quant)
            if form is None:
                continue
            shared = table if matrix == "lm_head" and tied else None
            made = _replace(artifact.model.graph, node, form, quant, target, shared)
            shipped |= split_rows(matrix, made.dequantized(), artifact.decoder)
            table = made if matrix == "embed_tokens" else table
        return dataclasses.replace(artifact, shipped=shipped)

    def ensures(self, given: Graph, run: Run) -> Iterable[Problem]:
        return kernel_problems(given.model, run.recipe.target)

    def summary(self, given: Graph) -> str:
        kinds = [node.op_type for node in given.model.graph]
        return (
            f"{kinds.count('MatMulNBits')} MatMulNBits, "
            f"{kinds.count('GatherBlockQuantized')} GatherBlockQuantized"
        )


def matrix_format(matrix: str, quant: QuantConfig) -> BlockFormat | None:
    """Format of the matrix with this canonical name; None when it stays in float."""
    own = {"lm_head": quant.lm_head, "embed_tokens": quant.embedding}.get(matrix)
    bits = (own.bits if own else None) or quant.bits
    if bits == LEFT_IN_FLOAT:
        return None
    symmetric = quant.symmetric if own is None or own.symmetric is None else own.symmetric
    return BlockFormat(bits, (own.block_size if own else None) or quant.block_size, symmetric)


def tied_format(quant: QuantConfig, decoder: Decoder) -> BlockFormat | None:
    """The one format of a head that is tied to the embedding; None when each has its own.

    The embedding then takes the head's, and their codes lie in the folder once.
    """
    head, embedding = matrix_format("lm_head", quant), matrix_format("embed_tokens", quant)
    weights = decoder.weights
    same = weights["lm_head"] is weights["embed_tokens"] and head and embedding
    columns = decoder.architecture.hidden_size
    return head if same and head and columns % head.block_size == 0 else None


def split_rows(matrix: str, stacked: Weight, decoder: Decoder) -> dict[str, Weight]:
    """Canonical weights of a matrix; a packed qkv_proj is three, gate_up_proj two of them."""
    prefix, _, kind = matrix.rpartition(".")
    arch, parts, offset = decoder.architecture, {}, 0
    if kind == "qkv_proj":
        rows = {f"{part}_proj": arch.heads.part_rows(part) for part in ("q", "k", "v")}
    elif kind == "gate_up_proj":
        rows = {"gate_proj": arch.intermediate_size, "up_proj": arch.intermediate_size}
    else:
        return {matrix: stacked}
    for name, count in rows.items():
        parts[f"{prefix}.{name}"] = stacked.permute_rows(torch.arange(offset, offset + count))
        offset += count
    return parts


def _indivisible(quant: QuantConfig, arch: Architecture) -> Iterator[Problem]:
    columns = {
        "q_proj": arch.hidden_size,
        "o_proj": arch.num_attention_heads * arch.head_dim,
        "down_proj": arch.intermediate_size,
        "lm_head": arch.hidden_size,
        "embed_tokens": arch.hidden_size,
    }
    for matrix, count in columns.items():
        form = matrix_format(matrix, quant)
        padded = quant.pad_last_block and matrix != "embed_tokens"
        if form is None or count % form.block_size == 0 or padded:
            continue
        key = {"lm_head": "quant.lm_head", "embed_tokens": "quant.embedding"}.get(matrix, "quant")
        fitting = [size for size in (256, 128, 64, 32, 16) if count % size == 0]
        yield Problem(
            f"{matrix} has {count} columns, which blocks of {form.block_size} do not divide.",
            f"a block size that divides {count}: "
            f"{', '.join(map(str, fitting)) or 'none is large enough for MatMulNBits'}",
            f"set {key}.block_size={fitting[0]}"
            if fitting
            else f"set {key}.bits=16"
            if key != "quant"
            else "set quant.pad_last_block=true",
        )


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    form: BlockFormat,
    quant: QuantConfig,
    target: TargetConfig,
    shared: QuantizedMatrix | None = None,
) -> QuantizedMatrix:
    """Put quantized operators in the node's place; `shared` holds the codes of a tied matrix."""
    embedding = node.op_type == "Gather"
    table = node.inputs[0 if embedding else 1]
    assert table is not None and isinstance(table.const_value, WeightTensor)
    stored = table.const_value.weight
    source = stored.transpose() if node.op_type == "MatMul" else stored
    dequantize = not embedding and target.quantized_weights == "DequantizeLinear"
    matrix = shared or QuantizedMatrix(
        _unrounded(source),
        form,
        FLOAT_TYPES[target.float_type],
        flat=embedding or dequantize,
        signed=dequantize,
    )
    label = "lm_head.MatMul.weight" if shared else str(table.name)
    if embedding:
        new = [_gather(node, _parts(graph, label, matrix), form)]
    elif dequantize:
        new = _dequantize(graph, node, label, matrix)
    else:
        new = [_matmul(node, _parts(graph, label, matrix, blocks=True), matrix, quant, target)]
    _put(graph, node, new, form)
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


def _parts(
    graph: ir.Graph, label: str, matrix: QuantizedMatrix, blocks: bool = False
) -> list[ir.Value]:
    """Initializers of codes, scales and zero points; codes (N, blocks, bytes) when `blocks`."""
    codes, form = matrix.part("codes"), matrix.form
    rows, columns = matrix.source.shape
    shape = (rows, form.blocks(columns), form.block_size * form.bits // 8) if blocks else None
    values = [_initializer(graph, WeightTensor(f"{label}_codes", codes, shape=shape))]
    for name in list(matrix.specs)[1:]:
        values.append(_initializer(graph, WeightTensor(f"{label}_{name}", matrix.part(name))))
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
    quant: QuantConfig,
    target: TargetConfig,
) -> ir.Node:
    level = target.accuracy_level if quant.accuracy_level is None else quant.accuracy_level
    return ir.node(
        "MatMulNBits",
        [node.inputs[0], *parts],
        {
            "K": matrix.source.shape[1],
            "N": matrix.source.shape[0],
            "accuracy_level": level,
            "bits": matrix.form.bits,
            "block_size": matrix.form.block_size,
        },
        domain=CONTRIB,
    )


def _dequantize(
    graph: ir.Graph, node: ir.Node, label: str, matrix: QuantizedMatrix
) -> list[ir.Node]:
    """DequantizeLinear → Transpose → MatMul, codes int4 or int8 (N, K): what TensorRT reads."""
    dtype = {4: ir.DataType.INT4, 8: ir.DataType.INT8}[matrix.form.bits]
    packed, scales = matrix.part("codes"), matrix.part("scales")
    codes = WeightTensor(f"{label}_codes", packed, dtype, matrix.source.shape)
    inputs = [
        _initializer(graph, codes),
        _initializer(graph, WeightTensor(f"{label}_scales", scales)),
    ]
    attributes = {"axis": 1, "block_size": matrix.form.block_size}
    wide = ir.node("DequantizeLinear", inputs, attributes, name=f"{node.name}/DequantizeLinear")
    turned = ir.node("Transpose", wide.outputs, {"perm": [1, 0]}, name=f"{node.name}/Transpose")
    for made in (wide, turned):
        made.outputs[0].name = f"{made.name}/output_0"
    return [wide, turned, ir.node("MatMul", [node.inputs[0], turned.outputs[0]])]
