"""What passes hand to each other after the decoder: a graph, then a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch

from converter.model.decoder import Decoder
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
MATRIX = "convert.matrix"
"""Metadata key of a node: the canonical name of the matrix that it multiplies with."""


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


@dataclass(frozen=True)
class Graph:
    """An ONNX model whose initializers are lazy, with the decoder that it computes."""

    decoder: Decoder
    model: ir.Model
    context_length: int
    """Positions that the graph's cos/sin caches hold."""
    shipped: Mapping[str, Weight]
    """The decoder's canonical weights with the values that the graph holds, dequantized."""


@dataclass(frozen=True)
class Package:
    """A folder that onnxruntime-genai loads, not yet published."""

    folder: Path
    graph: Graph
    nbytes: int
    """Bytes of all its files."""
