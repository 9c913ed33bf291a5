"""Lazy weights as ONNX initializers."""

from __future__ import annotations

import onnx_ir as ir
import torch

from converter.weights.weight import Weight

IR_DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.uint8: ir.DataType.UINT8,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
}
FLOAT_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class WeightTensor(ir.LazyTensor):
    """An ONNX initializer that is a lazy `Weight`; values are computed when they are asked for.

    `dtype` and `shape` say how the weight's bytes are to be understood, when not as they are: two
    four-bit values in a byte, or a matrix of blocks as one of rows.
    """

    def __init__(
        self,
        name: str,
        weight: Weight,
        dtype: ir.DataType | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        dtype, shape = dtype or IR_DTYPES[weight.dtype], shape or weight.shape
        super().__init__(
            lambda: _read(name, weight, dtype, shape), dtype=dtype, shape=ir.Shape(shape), name=name
        )
        self.weight = weight


def _read(
    name: str, weight: Weight, dtype: ir.DataType, shape: tuple[int, ...]
) -> ir.TensorProtocol:
    content = weight.read().contiguous().flatten().view(torch.uint8).numpy()
    if dtype.bitwidth < 8:
        return ir.PackedTensor(content, dtype, shape=ir.Shape(shape), name=name)
    return ir.Tensor(content.view(dtype.numpy()).reshape(shape), dtype=dtype, name=name)


def model_weights(model: ir.Model) -> dict[str, Weight]:
    """The lazy weights among a model's initializers, by name, in order."""
    return {
        name: value.const_value.weight
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, WeightTensor)
    }


def add_initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Give the graph one more initializer."""
    value = ir.Value(
        name=tensor.name,
        shape=ir.Shape(tuple(tensor.shape)),  # type: ignore[arg-type]
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value
