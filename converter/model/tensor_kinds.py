"""The closed list of canonical tensors of a decoder, each with its shape as axes.

A description (recipes/architecture/) maps these names to a checkpoint's. Inside layer N they are
preceded by `layers.N.`. Every tensor may have a bias, whose name ends in `_bias` and whose shape is
the first axis. A norm before a block, behind it, or both exist when they are named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converter.model.architecture import Architecture

BIAS = "_bias"
EMBEDDING, FINAL_NORM, HEAD = "embed_tokens", "norm", "lm_head"
ATTENTION_NORM, FEED_FORWARD_NORM = "attn_norm", "ffn_norm"
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
    "o_proj": ("hidden", "queries"),
    ATTENTION_POST_NORM: ("hidden",),
    FEED_FORWARD_NORM: ("hidden",),
    "gate_up_proj": ("two_intermediate", "hidden"),
    "gate_proj": ("intermediate", "hidden"),
    "up_proj": ("intermediate", "hidden"),
    "down_proj": ("hidden", "intermediate"),
    FEED_FORWARD_POST_NORM: ("hidden",),
}
"""Tensors of a layer, in the order in which the layer uses them."""
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


def leaf(canonical: str) -> str:
    """`q_proj` of `layers.3.q_proj`."""
    return canonical.rpartition(".")[2]


def is_bias(canonical: str) -> bool:
    """Whether it names a bias."""
    return canonical.endswith(BIAS)


def canonical_shape(canonical: str, arch: Architecture) -> tuple[int, ...]:
    """Shape of a canonical tensor, `layers.N.` in front of its name or not."""
    kind = leaf(canonical).removesuffix(BIAS)
    axes = (MODEL_TENSORS | LAYER_TENSORS)[kind]
    sizes = _axes(arch)
    return tuple(sizes[axis] for axis in (axes[:1] if is_bias(canonical) else axes))


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
    }
