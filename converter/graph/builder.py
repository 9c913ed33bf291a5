"""Nodes and initializers of a graph in the making, named as onnxruntime-genai's builder does."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tape import Tape

from converter.graph.kernels import kernels
from converter.graph.names import (
    CONTRIB,
    MATRIX,
    bias_initializer,
    matrix_initializer,
    product_node,
)
from converter.graph.tensors import FLOAT_TYPES, IR_DTYPES, WeightTensor
from converter.model.decoder import Decoder
from converter.model.tensor_kinds import BIAS
from converter.recipe.schema import TargetConfig
from converter.weights.weight import Weight, concatenate_rows

CONTRIB_OPS = frozenset(
    {
        "FusedMatMul",
        "GroupQueryAttention",
        "MoE",
        "RotaryEmbedding",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)


class GraphBuilder:
    """What the blocks of a decoder are made with."""

    def __init__(self, decoder: Decoder, target: TargetConfig) -> None:
        self.decoder, self.arch, self.target = decoder, decoder.architecture, target
        self.float_type = FLOAT_TYPES[target.float_type]
        self.kernels = kernels(target.execution_provider)
        self.dtype = IR_DTYPES[self.float_type]
        self.tape = Tape()
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.constants: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
        """A new input of the graph."""
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, *shape: int | str) -> None:
        """Make a value of the graph's float type an output."""
        value.name, value.shape = name, ir.Shape(shape)
        value.type = ir.TensorType(self.dtype)
        self.outputs.append(value)

    def op(self, op: str, inputs: list[ir.Value | None], name: str, **attributes: Any) -> ir.Value:
        """The only output of a new node."""
        return self.ops(op, inputs, name, 1, **attributes)[0]

    def ops(
        self, op: str, inputs: list[ir.Value | None], name: str, count: int, **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """The `count` outputs of a new node."""
        domain = CONTRIB if op in CONTRIB_OPS else ""
        values = self.tape.op_multi_out(
            op, inputs, attributes, num_outputs=count, domain=domain, name=name
        )
        for number, value in enumerate(values):
            value.name = f"{name}/output_{number}"
        return tuple(values)

    def initializer(
        self, name: str, weight: Weight, shape: tuple[int, ...] | None = None
    ) -> ir.Value:
        """A lazy weight; `shape` says how its values are to be understood, when not as they are."""
        return self.tape.initializer(WeightTensor(name, weight, shape=shape), name=name)

    def constant(self, name: str, value: list[int] | int | float) -> ir.Value:
        """A small int64 or float32 initializer, one for each name."""
        if name not in self.constants:
            dtype = torch.float32 if isinstance(value, float) else torch.int64
            tensor = ir.tensor(torch.tensor(value, dtype=dtype).numpy(), name=name)
            self.constants[name] = self.tape.initializer(tensor, name=name)
        return self.constants[name]

    def number(self, name: str, value: float) -> ir.Value:
        """A scalar initializer of the graph's float type, one for each name."""
        if name not in self.constants:
            tensor = torch.tensor(value, dtype=self.float_type)
            self.constants[name] = self.tape.initializer(ir.tensor(tensor, name=name), name=name)
        return self.constants[name]

    def scaled(self, value: ir.Value, factor: float, name: str) -> ir.Value:
        """The value times a number; itself for 1."""
        if factor == 1.0:
            return value
        return self.op("Mul", [value, self.number(f"constants.{factor!r}", factor)], name)

    def capped(self, value: ir.Value, bound: float, name: str) -> ir.Value:
        """bound·tanh(value / bound); the value itself for 0."""
        if bound == 0.0:
            return value
        number = self.number(f"constants.{bound!r}", bound)
        ratio = self.op("Div", [value, number], f"{name}/Div")
        return self.op("Mul", [self.op("Tanh", [ratio], f"{name}/Tanh"), number], f"{name}/Mul")

    def linear(self, canonical: str, name: str, hidden: ir.Value) -> ir.Value:
        """hidden · Wᵀ (+ bias)."""
        return self.multiply([canonical], canonical, name, hidden)

    def multiply(self, parts: list[str], canonical: str, name: str, hidden: ir.Value) -> ir.Value:
        """hidden · Wᵀ (+ bias), with the rows of `parts` stacked into one matrix."""
        weights = self.decoder.weights
        rows = concatenate_rows([weights[part] for part in parts]).cast(self.float_type)
        matrix = self.initializer(matrix_initializer(name), rows.transpose())
        product = self.op("MatMul", [hidden, matrix], product_node(name))
        self.mark(product, canonical)
        return self.biased(product, parts, name)

    def biased(self, product: ir.Value, parts: list[str], name: str) -> ir.Value:
        """The product, with the biases of `parts` where they have some."""
        weights = self.decoder.weights
        if parts[0] + BIAS not in weights:
            return product
        bias = concatenate_rows([weights[part + BIAS] for part in parts]).cast(self.float_type)
        added = self.initializer(bias_initializer(name), bias)
        return self.op("Add", [product, added], f"{name}/Add")

    def mark(self, value: ir.Value, canonical: str) -> None:
        """Note at a value's node which matrix it multiplies with."""
        node = value.producer()
        assert node is not None
        node.metadata_props[MATRIX] = canonical
