"""A quantized matrix's codes, scales and zero points as initializers of a graph."""

from __future__ import annotations

import onnx_ir as ir
import torch

from converter.graph.tensors import WeightTensor, add_initializer
from converter.quantization.quantized_matrix import QuantizedMatrix, Rounding
from converter.quantization.rtn import BlockFormat, Codes
from converter.weights.weight import Weight

Shape = tuple[int, ...] | None


def scale_values(
    graph: ir.Graph, label: str, matrix: QuantizedMatrix, dtype: ir.DataType, shape: Shape = None
) -> tuple[ir.Value, list[ir.Node]]:
    """Scales in the graph's type `dtype`, and the node that casts them where they are narrower.

    onnxruntime computes a cast of an initializer once, when it loads the model.
    """
    tensor = WeightTensor(f"{label}_scales", matrix.part("scales"), shape=shape)
    scales = add_initializer(graph, tensor)
    if scales.dtype == dtype:
        return scales, []
    cast = ir.node("Cast", [scales], {"to": dtype}, name=f"{label}_scales/Cast")
    cast.outputs[0].name, cast.outputs[0].dtype = f"{cast.name}/output_0", dtype
    return cast.outputs[0], [cast]


def code_values(graph: ir.Graph, label: str, matrix: QuantizedMatrix, shape: Shape) -> ir.Value:
    """Codes, packed."""
    return add_initializer(graph, WeightTensor(f"{label}_codes", matrix.part("codes"), shape=shape))


def zero_point_values(
    graph: ir.Graph, label: str, matrix: QuantizedMatrix, shape: Shape = None
) -> list[ir.Value]:
    """Zero points, packed; none where codes lie around a fixed zero."""
    if matrix.form.symmetric:
        return []
    points = WeightTensor(f"{label}_zero_points", matrix.part("zero_points"), shape=shape)
    return [add_initializer(graph, points)]


def searched(source: Weight, form: BlockFormat, scale_dtype: torch.dtype) -> Rounding:
    """The scales of least squared error of the weights themselves, without activations."""

    def codes(start: int, stop: int) -> Codes:
        # numba, which only recipes that search have to wait for
        from converter.quantization.search import search_blocks

        rows = source.rows(start, stop)
        return search_blocks(rows, torch.ones(rows.shape[1]), form, scale_dtype)

    return codes
