"""RMSNorm and LayerNorm, with the addition before them where the provider fuses both."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch

from converter.graph.builder import GraphBuilder
from converter.graph.names import norm_initializer
from converter.model.tensor_kinds import BIAS
from converter.weights.weight import ComputedWeight, Weight


class Norms:
    """Makes the norms of one graph."""

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder, self._norm = builder, builder.arch.norm

    def of_sum(
        self, canonical: str, name: str, hidden: ir.Value, skip: ir.Value | None
    ) -> tuple[ir.Value, ir.Value]:
        """The norm of hidden + skip, and the sum."""
        weight, bias = self._parameters(canonical)
        if not self._builder.target.fused_norm and self._norm.type == "rms":
            return self._plain(weight, name, hidden, skip)
        fused = "SkipSimplifiedLayerNormalization"
        if self._norm.type == "layer":
            fused = "SkipLayerNormalization"
        if skip is not None and fused not in self._builder.kernels:
            hidden, skip = self.sum(name, hidden, skip), None
        if skip is None:
            return self._alone(weight, bias, name, hidden), hidden
        extra = [] if bias is None else [bias]
        outputs = self._builder.ops(
            fused,
            [hidden, skip, weight, *extra],
            f"{name}/SkipLayerNorm",
            4,
            epsilon=self._norm.eps,
        )
        outputs[1].name = outputs[2].name = ""
        return outputs[0], outputs[3]

    def alone(self, canonical: str, name: str, hidden: ir.Value) -> ir.Value:
        """The norm of the last axis of `hidden`."""
        return self.of_sum(canonical, name, hidden, None)[0]

    def of_heads(self, canonical: str, name: str, value: ir.Value, heads: int) -> ir.Value:
        """The norm of each head of (batch, tokens, heads · head_dim)."""
        op, columns = self._builder.op, self._builder.arch.head_dim
        apart = self._shape("apart", [0, 0, heads, columns])
        together = self._shape("together", [0, 0, heads * columns])
        parted = op("Reshape", [value, apart], f"{name}/Reshape")
        normed = self.alone(canonical, name, parted)
        return op("Reshape", [normed, together], f"{name}/ReshapeBack")

    def sum(self, name: str, hidden: ir.Value, skip: ir.Value) -> ir.Value:
        """hidden + skip, in a node of its own."""
        return self._builder.op("Add", [hidden, skip], f"{name}/Add")

    def _shape(self, name: str, sizes: Sequence[int]) -> ir.Value:
        label = f"constants.{name}_{'_'.join(map(str, sizes))}"
        return self._builder.constant(label, list(sizes))

    def _parameters(self, canonical: str) -> tuple[ir.Value, ir.Value | None]:
        weights, dtype = self._builder.decoder.weights, self._builder.float_type
        weight = shifted(weights[canonical], self._norm.offset)
        found = self._builder.initializer(norm_initializer(canonical), weight.cast(dtype))
        bias = weights.get(canonical + BIAS)
        if bias is None:
            return found, None
        return found, self._builder.initializer(
            norm_initializer(canonical + BIAS), bias.cast(dtype)
        )

    def _alone(
        self, weight: ir.Value, bias: ir.Value | None, name: str, hidden: ir.Value
    ) -> ir.Value:
        extra = [] if bias is None else [bias]
        layer = self._norm.type == "layer"
        return self._builder.op(
            "LayerNormalization" if layer else "SimplifiedLayerNormalization",
            [hidden, weight, *extra],
            f"{name}/LayerNorm",
            axis=-1,
            epsilon=self._norm.eps,
            stash_type=1,
        )

    def _plain(
        self, weight: ir.Value, name: str, hidden: ir.Value, skip: ir.Value | None
    ) -> tuple[ir.Value, ir.Value]:
        """RMSNorm in ONNX's own operators, the mean square in fp32."""
        op, constant = self._builder.op, self._builder.constant
        if skip is not None:
            hidden = self.sum(name, hidden, skip)
        wide = op("Cast", [hidden], f"{name}/Cast", to=ir.DataType.FLOAT)
        square = op("Mul", [wide, wide], f"{name}/Square")
        axis = constant("constants.last_axis", [-1])
        mean = op("ReduceMean", [square, axis], f"{name}/ReduceMean", keepdims=1)
        epsilon = constant("constants.epsilon", self._norm.eps)
        shifted_mean = op("Add", [mean, epsilon], f"{name}/AddEpsilon")
        root = op("Sqrt", [shifted_mean], f"{name}/Sqrt")
        normed = op("Div", [wide, root], f"{name}/Div")
        normed = op("Cast", [normed], f"{name}/CastBack", to=self._builder.dtype)
        return op("Mul", [normed, weight], f"{name}/Scale"), hidden


def shifted(weight: Weight, offset: float) -> Weight:
    """A norm's weight plus what its description says is missing, float32."""
    if offset == 0.0:
        return weight

    def compute(start: int, stop: int) -> torch.Tensor:
        return weight.rows(start, stop).float() + offset

    return ComputedWeight(weight.shape, torch.float32, compute, weight.label)
