"""Which form a decoder's graph has on a target: what is packed, and where heads are rotated."""

from __future__ import annotations

from dataclasses import dataclass

from converter.model.architecture import Architecture
from converter.recipe.schema import Recipe, TargetConfig

ROTATED_INSIDE = 16
"""GroupQueryAttention rotates heads whose columns, and rotated columns, are multiples of this.
Source: onnxruntime's `group_query_attention_helper.h`."""


@dataclass(frozen=True)
class GraphForm:
    """The target's wishes, as far as the architecture can follow them."""

    rotates_inside: bool
    """Whether GroupQueryAttention rotates queries and keys itself."""
    packs_qkv: bool
    """Whether Q, K and V are one matrix in front of GroupQueryAttention."""
    packs_gate_up: bool
    """Whether gate and up are one matrix."""
    takes_positions: bool
    """Whether position_ids are an input."""


def graph_form(arch: Architecture, target: TargetConfig, context_length: int) -> GraphForm:
    """The form of the graph for sequences of up to `context_length` tokens."""
    attention, rotation = arch.attention, arch.rotation
    fits = arch.head_dim % ROTATED_INSIDE == 0 and rotation.columns % ROTATED_INSIDE == 0
    normed_later = attention.qk_norm != "none" and attention.qk_norm_after_rope
    switches = arch.rope.switch(context_length, arch.max_position_embeddings) is not None
    plain = attention.qk_norm == "none" and attention.query_scale is None
    inside = target.rotary_in_attention and fits and not normed_later and not switches
    return GraphForm(
        rotates_inside=inside,
        packs_qkv=target.packed_qkv and inside and plain,
        packs_gate_up=target.packed_gate_up,
        takes_positions=target.position_ids or not inside or attention.query_scale is not None,
    )


def context_length(arch: Architecture, recipe: Recipe) -> int:
    """Tokens that prompt and answer may have together: the recipe's, or what the config states."""
    return recipe.graph.context_length or arch.max_position_embeddings


def recipe_form(arch: Architecture, recipe: Recipe) -> GraphForm:
    """The form of the graph that a recipe asks for."""
    return graph_form(arch, recipe.target, context_length(arch, recipe))
