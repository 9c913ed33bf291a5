"""The closed list of canonical tensors of a decoder, each with its shape as axes.

A description (recipes/architecture/) maps these names to a checkpoint's. Inside layer N they are
preceded by `layers.N.`. Every tensor may have a bias, whose name ends in `_bias` and whose shape is
the first axis. A norm before a block, behind it, or both exist when they are named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converter.model.architecture import Architecture
    from converter.model.experts import Experts

BIAS = "_bias"
EMBEDDING, FINAL_NORM, HEAD = "embed_tokens", "norm", "lm_head"
ATTENTION_NORM, FEED_FORWARD_NORM = "attn_norm", "ffn_norm"
SINKS = "sinks"
ATTENTION_POST_NORM, FEED_FORWARD_POST_NORM = "attn_post_norm", "ffn_post_norm"
MODEL_TENSORS: dict[str, tuple[str, ...]] = {
    EMBEDDING: ("vocabulary", "hidden"),
    FINAL_NORM: ("hidden",),
    HEAD: ("vocabulary", "hidden"),
}
"""Tensors outside of the layers."""
LAYER_TENSORS: dict[str, tuple[str, ...]] = {
    ATTENTION_NORM: ("hidden",),
    "qkv_proj": ("queries_keys_values", "hidden"),
    "q_proj": ("queries", "hidden"),
    "k_proj": ("keys", "hidden"),
    "v_proj": ("keys", "hidden"),
    "q_norm": ("query_norm",),
    "k_norm": ("key_norm",),
    SINKS: ("heads",),
    "o_proj": ("hidden", "queries"),
    ATTENTION_POST_NORM: ("hidden",),
    FEED_FORWARD_NORM: ("hidden",),
    "gate_up_proj": ("two_intermediate", "hidden"),
    "gate_proj": ("intermediate", "hidden"),
    "up_proj": ("intermediate", "hidden"),
    "down_proj": ("hidden", "intermediate"),
    "router": ("experts", "hidden"),
    "expert_gate_up_proj": ("two_expert_intermediate", "hidden"),
    "expert_gate_proj": ("expert_intermediate", "hidden"),
    "expert_up_proj": ("expert_intermediate", "hidden"),
    "expert_down_proj": ("hidden", "expert_intermediate"),
    "shared_gate_up_proj": ("two_shared_intermediate", "hidden"),
    "shared_gate_proj": ("shared_intermediate", "hidden"),
    "shared_up_proj": ("shared_intermediate", "hidden"),
    "shared_down_proj": ("hidden", "shared_intermediate"),
    "shared_expert_gate": ("one", "hidden"),
    FEED_FORWARD_POST_NORM: ("hidden",),
}
"""Tensors of a layer, in the order in which the layer uses them."""
DENSE = frozenset({"gate_up_proj", "gate_proj", "up_proj", "down_proj"})
"""The feed-forward block of layers without experts."""
EXPERTS = frozenset(name for name in LAYER_TENSORS if name.startswith("expert_"))
"""Tensors that each expert has."""
MIXTURE = frozenset({"router", *EXPERTS, *(n for n in LAYER_TENSORS if n.startswith("shared_"))})
"""Tensors of layers with experts only."""
EXPERTS_GATE_UP, EXPERTS_DOWN = "experts_gate_up_proj", "experts_down_proj"
"""A decoder's own two matrices of all experts of a layer: the rows of the experts follow each
other, those of an expert's gate and up projections take turns."""
EXPERT_NUMBER = "{expert}"
"""Stands for an expert's number in a name of a description."""
NORMS = frozenset(
    {
        FINAL_NORM,
        ATTENTION_NORM,
        ATTENTION_POST_NORM,
        FEED_FORWARD_NORM,
        FEED_FORWARD_POST_NORM,
        "q_norm",
        "k_norm",
    }
)


def is_whole_name(canonical: str, name: str) -> bool:
    """Whether a description's `name` is a parameter's own, not that of the module with a weight."""
    kind = canonical.removesuffix(BIAS)
    stacked = kind in EXPERTS and EXPERT_NUMBER not in name
    return stacked or kind == SINKS or name.endswith((".weight", ".bias"))


def leaf(canonical: str) -> str:
    """`q_proj` of `layers.3.q_proj`."""
    return canonical.rpartition(".")[2]


def is_bias(canonical: str) -> bool:
    """Whether it names a bias."""
    return canonical.endswith(BIAS)


def canonical_shape(canonical: str, arch: Architecture) -> tuple[int, ...]:
    """Shape of a canonical tensor, `layers.N.` in front of its name or not."""
    kind = leaf(canonical).removesuffix(BIAS)
    axes = (MODEL_TENSORS | LAYER_TENSORS | _STACKED)[kind]
    sizes = _axes(arch)
    return tuple(sizes[axis] for axis in (axes[:1] if is_bias(canonical) else axes))


_STACKED = {
    EXPERTS_GATE_UP: ("all_two_expert_intermediate", "hidden"),
    EXPERTS_DOWN: ("all_hidden", "expert_intermediate"),
}


def _axes(arch: Architecture) -> dict[str, int]:
    queries, keys = (arch.heads.part_rows(part) for part in ("q", "k"))
    per_head = arch.attention.qk_norm == "head"
    return {
        "vocabulary": arch.vocab_size,
        "hidden": arch.hidden_size,
        "queries": queries,
        "keys": keys,
        "queries_keys_values": queries + 2 * keys,
        "query_norm": arch.head_dim if per_head else queries,
        "key_norm": arch.head_dim if per_head else keys,
        "intermediate": arch.intermediate_size,
        "two_intermediate": 2 * arch.intermediate_size,
        "heads": arch.num_attention_heads,
        **(_expert_axes(arch.experts, arch.hidden_size) if arch.experts else {}),
    }


def _expert_axes(experts: Experts, hidden: int) -> dict[str, int]:
    each, shared = experts.intermediate_size, experts.shared_intermediate_size
    return {
        "one": 1,
        "experts": experts.count,
        "expert_intermediate": each,
        "two_expert_intermediate": 2 * each,
        "all_two_expert_intermediate": experts.count * 2 * each,
        "all_hidden": experts.count * hidden,
        "shared_intermediate": shared,
        "two_shared_intermediate": 2 * shared,
    }
