"""Experts with block-quantized weights: onnxruntime's operator QMoE in the place of MoE.

Source: docs/ContribOperators.md, com.microsoft.QMoE. Its codes, scales and zero points are those of
MatMulNBits, an expert after the other. `weights_prepacked=0` says so: a provider that wants another
order packs them itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch

from converter.graph.expert_block import stacked_shape
from converter.graph.matrices import matrix_format
from converter.graph.names import CONTRIB, EXPERTS_LAYER, quantized
from converter.graph.quantized_tensors import (
    code_values,
    scale_values,
    searched,
    zero_point_values,
)
from converter.graph.tensors import FLOAT_TYPES
from converter.model.decoder import Decoder
from converter.model.tensor_kinds import EXPERTS_DOWN, EXPERTS_GATE_UP
from converter.quantization.quantized_matrix import QuantizedMatrix, Rounding
from converter.quantization.rtn import BlockFormat
from converter.recipe.schema import Recipe
from converter.weights.weight import Weight

MATRICES = {EXPERTS_GATE_UP: 2, EXPERTS_DOWN: 4}
"""The matrices of all experts of a layer, and their places among MoE's inputs; biases follow."""
ZERO_POINTS, ROUTER_WEIGHTS = 11, 14
"""Places among QMoE's inputs: the first zero points, and the weights of a token's experts."""


def quantize_experts(
    graph: ir.Graph,
    node: ir.Node,
    form: BlockFormat,
    decoder: Decoder,
    recipe: Recipe,
    roundings: Mapping[str, Rounding],
) -> dict[str, Weight]:
    """Put QMoE in the place of a node MoE; `roundings` are what a calibration found.

    Returns:
        The layer's matrices as the codes stand for them, by canonical name.
    """
    experts, layer = decoder.architecture.experts, node.metadata_props[EXPERTS_LAYER]
    assert experts is not None
    inputs: list[ir.Value | None] = list(node.inputs[:2])
    shipped: dict[str, Weight] = {}
    points: list[ir.Value] = []
    before: list[ir.Node] = []
    for kind, place in MATRICES.items():
        source = decoder.weights[layer + kind]
        scale_type, rounding = _rounded(source, form, recipe)
        rounding = roundings.get(layer + kind, rounding)
        matrix = QuantizedMatrix(source, form, scale_type, rounding, flat=True)
        found, zeros, widen = _values(graph, node.inputs[place], matrix, experts.count)
        bias = node.inputs[place + 1] if len(node.inputs) > place + 1 else None
        inputs += [*found, bias]
        points += zeros
        before += widen
        shipped[layer + kind] = matrix.dequantized()
    inputs += [*[None] * (ZERO_POINTS - len(inputs)), *points] if points else []
    if not experts.normalize:
        weights = _router_weights(node)
        inputs += [*[None] * (ROUTER_WEIGHTS - len(inputs)), weights.outputs[0]]
        before.append(weights)
    _replace(graph, node, inputs, before, form, recipe)
    return shipped


def _rounded(
    source: Weight, form: BlockFormat, recipe: Recipe
) -> tuple[torch.dtype, Rounding | None]:
    """Type of the scales, and how codes are found; None: rounded to nearest."""
    scale_type = FLOAT_TYPES[recipe.scale_type]
    search = recipe.quant.round == "search"
    return scale_type, searched(source, form, scale_type) if search else None


def _values(
    graph: ir.Graph, old: ir.Value | None, matrix: QuantizedMatrix, count: int
) -> tuple[list[ir.Value], list[ir.Value], list[ir.Node]]:
    """Codes and scales of all experts, their zero points, and the node that casts the scales."""
    assert old is not None and old.dtype is not None
    shapes = {name: stacked_shape(spec.shape, count) for name, spec in matrix.specs.items()}
    label = str(old.name)
    scales, widen = scale_values(graph, label, matrix, old.dtype, shapes["scales"])
    codes = code_values(graph, label, matrix, shapes["codes"])
    points = zero_point_values(graph, label, matrix, shapes.get("zero_points"))
    return [codes, scales], points, widen


def _router_weights(node: ir.Node) -> ir.Node:
    """The softmax over all experts, by which QMoE weighs those that it chooses.

    Without that input onnxruntime 1.32's kernel for the CPU normalizes their weights, whatever
    `normalize_routing_weights` says; MoE's does as it says.
    """
    weights = ir.node("Softmax", [node.inputs[1]], {"axis": -1}, name=f"{node.name}/Softmax")
    weights.outputs[0].name = f"{weights.name}/output_0"
    return weights


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    inputs: list[ir.Value | None],
    before: list[ir.Node],
    form: BlockFormat,
    recipe: Recipe,
) -> None:
    while inputs[-1] is None:
        inputs.pop()
    attributes: dict[str, ir.Attr | int] = {
        **node.attributes,
        "expert_weight_bits": form.bits,
        "block_size": form.block_size,
        "accuracy_level": recipe.accuracy_level,
        "weights_prepacked": 0,
    }
    new = ir.node("QMoE", inputs, attributes, domain=CONTRIB)
    new.name = quantized(str(node.name), form.bits)
    new.metadata_props[EXPERTS_LAYER] = node.metadata_props[EXPERTS_LAYER]
    made, old = new.outputs[0], node.outputs[0]
    made.name, made.shape, made.type = old.name, old.shape, old.type
    tables = [node.inputs[place] for place in MATRICES.values()]
    ir.convenience.replace_nodes_and_values(graph, node, [node], [*before, new], [old], [made])
    for table in tables:
        assert table is not None
        graph.initializers.pop(str(table.name))


def held_experts(decoder: Decoder, recipe: Recipe, calibrates: bool) -> dict[str, str]:
    """In which form the folder holds experts; nothing of a model without them."""
    if decoder.architecture.experts is None:
        return {}
    form = matrix_format(EXPERTS_DOWN, recipe.quant)
    held = f"int{form.bits}, block {form.block_size}" if form else recipe.target.float_type
    alone = recipe.quant.round == "search" and not calibrates
    search = ", searched on the weights alone" if alone else ""
    return {"experts": held + (search if form else "")}
