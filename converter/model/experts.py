"""The experts of a decoder as numbers: how many, which layers have them, how a product is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from converter.model.description import Description, Values
from converter.recipe.schema import ExpertsConfig

ACTIVATION = "silu"
"""What the operators of experts compute on a gate, besides alpha, beta and the limit."""


@dataclass(frozen=True)
class Experts:
    """Experts in the place of the feed-forward block; see `ExpertsConfig` for the numbers."""

    count: int
    per_token: int
    intermediate_size: int
    layers: tuple[bool, ...]
    """Whether each layer has experts."""
    normalize: bool = True
    shared_intermediate_size: int = 0
    """0 where no expert computes every token."""
    alpha: float = 1.0
    beta: float = 0.0
    limit: float | None = None
    """None means no bound."""

    @property
    def said(self) -> str:
        """How many experts a layer has, such as `8 experts, 2 for each token`."""
        shared = ", and one for all" if self.shared_intermediate_size else ""
        return f"{self.count} experts, {self.per_token} for each token{shared}"


def read_experts(
    values: Values, description: Description, layers: int, activation: str
) -> Experts | None:
    """The experts of a description that names a router; None for another.

    What is wrong is noted in `values`.
    """
    named, graph = description.layout.layer_tensors, description.graph.experts
    if named.get("router") is None:
        return None
    names = ["count", "per_token", "intermediate_size"]
    names += ["shared_intermediate_size"] if named.get("shared_down_proj") else []
    sizes = {name: values.size(f"graph.experts.{name}", getattr(graph, name)) for name in names}
    if sizes["per_token"] > sizes["count"]:
        expected = f"no more than the {sizes['count']} experts of a layer"
        values.refuse("graph.experts.per_token", sizes["per_token"], expected)
    if activation != ACTIVATION:
        values.refuse("graph.feed_forward.activation", activation, f"{ACTIVATION}, with experts")
    normalize = values.value("graph.experts.normalize", graph.normalize)
    if not isinstance(normalize, bool):
        values.refuse("graph.experts.normalize", normalize, "true or false")
    limit = values.value("graph.experts.limit", graph.limit)
    return Experts(
        **sizes,
        layers=_layers(values, graph, layers),
        normalize=normalize is True,
        alpha=values.number("graph.experts.alpha", graph.alpha, 1.0),
        beta=values.number("graph.experts.beta", graph.beta, 0.0),
        limit=None if limit is None else values.number("graph.experts.limit", limit, 0.0),
    )


def _layers(values: Values, graph: ExpertsConfig, layers: int) -> tuple[bool, ...]:
    first = values.number("graph.experts.first_dense", graph.first_dense, 0)
    step = values.size("graph.experts.step", graph.step)
    dense: Any = values.value("graph.experts.dense_layers", graph.dense_layers)
    dense = [] if dense is None else dense
    if not isinstance(dense, list) or not all(isinstance(number, int) for number in dense):
        values.refuse("graph.experts.dense_layers", dense, "a list of layers' numbers, or null")
        dense = []
    return tuple(
        number >= first and number not in dense and (number + 1) % step == 0
        for number in range(layers)
    )
