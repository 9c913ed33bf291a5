"""Experts of a layer: a router, onnxruntime's operator MoE, and an expert for all tokens.

The operator (docs/ContribOperators.md, com.microsoft.MoE) takes the router's logits. It computes a
softmax over all experts, keeps the `k` largest and, with `normalize_routing_weights`, divides them
by their sum, which is the softmax over those k. With `swiglu_fusion=1` the rows of an expert's gate
and up projections take turns.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from converter.graph.blocks import FeedForwardBlock
from converter.graph.builder import GraphBuilder
from converter.graph.names import EXPERTS_LAYER, expert_initializer, layer_path, layer_prefix
from converter.model.experts import Experts
from converter.model.tensor_kinds import BIAS, EXPERTS_DOWN, EXPERTS_GATE_UP


class ExpertsBlock:
    """Σ wₑ·expertₑ(x) over a token's experts, and the shared expert's product."""

    def __init__(
        self, builder: GraphBuilder, feed_forward: FeedForwardBlock, experts: Experts
    ) -> None:
        self._builder, self._feed_forward, self._experts = builder, feed_forward, experts

    def product(self, layer: int, hidden: ir.Value) -> ir.Value:
        """What the block adds, (batch, tokens, hidden)."""
        mixed = self._mixture(layer, hidden)
        if f"{layer_prefix(layer)}shared_down_proj" not in self._builder.decoder.weights:
            return mixed
        shared = self._shared(layer, hidden)
        return self._builder.op("Add", [mixed, shared], f"{layer_path(layer)}/moe/Add")

    def _mixture(self, layer: int, hidden: ir.Value) -> ir.Value:
        builder, name = self._builder, f"{layer_path(layer)}/moe"
        scores = builder.linear(f"{layer_prefix(layer)}router", f"{name}/router", hidden)
        rows = builder.constant("constants.router_rows", [-1, self._experts.count])
        scores = builder.op("Reshape", [scores, rows], f"{name}/router/Reshape")
        inputs: list[ir.Value | None] = [hidden, scores]
        for kind in (EXPERTS_GATE_UP, EXPERTS_DOWN):
            inputs += [self._parameter(layer, kind), self._parameter(layer, kind + BIAS)]
        while inputs[-1] is None:
            inputs.pop()
        mixed = builder.op("MoE", inputs, f"{name}/MoE", **routing_attributes(self._experts))
        node = mixed.producer()
        assert node is not None
        node.metadata_props[EXPERTS_LAYER] = layer_prefix(layer)
        return mixed

    def _parameter(self, layer: int, kind: str) -> ir.Value | None:
        """A matrix of all experts, (experts, rows, columns), or their biases (experts, rows)."""
        weight = self._builder.decoder.weights.get(layer_prefix(layer) + kind)
        if weight is None:
            return None
        shape = stacked_shape(weight.shape, self._experts.count)
        narrow = weight.cast(self._builder.float_type)
        return self._builder.initializer(expert_initializer(layer, kind), narrow, shape)

    def _shared(self, layer: int, hidden: ir.Value) -> ir.Value:
        """The product of the expert for all tokens, weighed by its own gate where it has one."""
        builder, name = self._builder, f"{layer_path(layer)}/shared_expert"
        product = self._feed_forward.product(layer, hidden, "shared_", name)
        gate = f"{layer_prefix(layer)}shared_expert_gate"
        if gate not in builder.decoder.weights:
            return product
        weight = builder.linear(gate, f"{name}/gate", hidden)
        weight = builder.op("Sigmoid", [weight], f"{name}/gate/Sigmoid")
        return builder.op("Mul", [product, weight], f"{name}/gate/Mul")


def stacked_shape(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    """(count·rows, …) as (count, rows, …)."""
    return (count, shape[0] // count, *shape[1:])


def routing_attributes(experts: Experts) -> dict[str, Any]:
    """Attributes that MoE and QMoE share."""
    limit = {} if experts.limit is None else {"swiglu_limit": experts.limit}
    return {
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": experts.alpha,
        "activation_beta": experts.beta,
        "k": experts.per_token,
        "normalize_routing_weights": int(experts.normalize),
        **limit,
    }
