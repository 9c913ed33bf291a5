"""The decoder in canonical terms: one name, one shape and one row order for every architecture.

Canonical names are `embed_tokens`, `norm`, `lm_head` and, inside layer N, `layers.N.` followed by
`input_layernorm`, `q_proj`, `k_proj`, `v_proj`, `o_proj`, `post_attention_layernorm`, `gate_proj`,
`up_proj`, `down_proj`, each projection optionally with `…_bias`. A layout may also name fused
tensors: `qkv_proj` and `gate_up_proj`.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch

from converter.errors import ConvertError, Problem, raise_if
from converter.model.architecture import Architecture
from converter.model.checkpoint import Checkpoint
from converter.model.misfit import FLOATS, Expected, LayoutForm, misfit_problems
from converter.model.row_order import compile_row_order
from converter.recipe.schema import LayoutConfig
from converter.weights.weight import Weight

FUSED = {"qkv_proj": ("q", "k", "v"), "q_proj": ("q",), "k_proj": ("k",), "v_proj": ("v",)}
"""Projections that carry attention heads in their rows, and which parts each holds."""
BIAS = "_bias"
EMBEDDING, HEAD = "embed_tokens", "lm_head"


@dataclass(frozen=True)
class Decoder:
    """Canonical weights of a decoder, with its sizes."""

    architecture: Architecture
    weights: Mapping[str, Weight]
    checkpoint: Checkpoint
    ignored: tuple[str, ...] = field(default=())
    """Checkpoint tensors that carry nothing the graph needs."""


def published_shapes(layout: LayoutConfig, arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that a checkpoint of this layout holds, biases left out."""
    named = _published_names(layout, arch)
    shapes = {canonical: _shape(canonical, arch) for canonical in named}
    tied = arch.tie_word_embeddings
    return {
        named[canonical]: shape
        for canonical, shape in shapes.items()
        if not canonical.endswith(BIAS) and not (tied and canonical == "lm_head")
    }


def build_decoder(checkpoint: Checkpoint, layout: LayoutConfig, arch: Architecture) -> Decoder:
    """Map a checkpoint's tensors to canonical ones, in canonical row order.

    A head that is tied by config.json and differs from the embedding is kept, as transformers 5
    keeps it.

    Raises:
        ConvertError: what does not fit; see `converter.model.misfit`.
    """
    arch = _untied(checkpoint.tensors, layout, arch)
    named = _published_names(layout, arch)
    ignored = tuple(name for name in checkpoint.tensors if _is_ignored(name, layout, arch))
    raise_if(_tensor_problems(checkpoint, named, layout, arch))
    found = {
        canonical: checkpoint.tensors[name]
        for canonical, name in named.items()
        if name in checkpoint.tensors and name not in ignored
    }
    weights = dict(_canonical_weights(found, layout, arch))
    if "lm_head" not in weights:
        weights["lm_head"] = weights["embed_tokens"]
    return Decoder(arch, weights, checkpoint, ignored)


def _untied(
    tensors: Mapping[str, Weight], layout: LayoutConfig, arch: Architecture
) -> Architecture:
    """The architecture with a head of its own where the weights hold another than the embedding."""
    embedding, head = (tensors.get(layout.tensors.get(name, "")) for name in (EMBEDDING, HEAD))
    if arch.tie_word_embeddings and embedding and head and _differ(embedding, head):
        return replace(arch, tie_word_embeddings=False)
    return arch


def _differ(one: Weight, other: Weight) -> bool:
    """Whether two tensors hold different values; unknown for those that are not fetched yet."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return True
    if one.dtype not in FLOATS:
        return False
    with contextlib.suppress(ConvertError):
        return any(not torch.equal(one.rows(*rows), other.rows(*rows)) for rows in one.tiles())
    return False


def _published_names(layout: LayoutConfig, arch: Architecture) -> dict[str, str]:
    names = dict(layout.tensors)
    for layer in range(arch.num_hidden_layers):
        prefix = layout.layer_prefix.replace("{layer}", str(layer))
        for canonical, name in layout.layer_tensors.items():
            names[f"layers.{layer}.{canonical}"] = prefix + name
    return names


def _is_ignored(name: str, layout: LayoutConfig, arch: Architecture) -> bool:
    tied_head = arch.tie_word_embeddings and name == layout.tensors.get("lm_head")
    return tied_head or any(fnmatch.fnmatchcase(name, pattern) for pattern in layout.ignored)


def _rows(kind: str, arch: Architecture) -> int:
    if kind in FUSED:
        return sum(arch.heads.part_rows(part) for part in FUSED[kind])
    return {
        "o_proj": arch.hidden_size,
        "gate_proj": arch.intermediate_size,
        "up_proj": arch.intermediate_size,
        "gate_up_proj": 2 * arch.intermediate_size,
        "down_proj": arch.hidden_size,
        "embed_tokens": arch.vocab_size,
        "lm_head": arch.vocab_size,
    }.get(kind, arch.hidden_size)


def _shape(canonical: str, arch: Architecture) -> tuple[int, ...]:
    kind = canonical.rsplit(".", 1)[-1]
    if kind.endswith(BIAS):
        return (_rows(kind.removesuffix(BIAS), arch),)
    if kind.endswith("norm"):
        return (arch.hidden_size,)
    columns = {
        "o_proj": arch.num_attention_heads * arch.head_dim,
        "down_proj": arch.intermediate_size,
    }.get(kind, arch.hidden_size)
    return (_rows(kind, arch), columns)


def _tensor_problems(
    checkpoint: Checkpoint, named: Mapping[str, str], layout: LayoutConfig, arch: Architecture
) -> Iterator[Problem]:
    required = _required(named, checkpoint.tensors, arch, bool(checkpoint.config.get("bias")))
    expected = {
        name: Expected(canonical, _shape(canonical, arch), canonical in required)
        for canonical, name in named.items()
    }
    form = LayoutForm(expected, layout.layer_prefix, layout.tensors, arch.num_hidden_layers)
    return misfit_problems(
        checkpoint.config, checkpoint.tensors, form, lambda name: _is_ignored(name, layout, arch)
    )


def _required(
    named: Mapping[str, str], tensors: Mapping[str, Weight], arch: Architecture, bias: bool
) -> set[str]:
    """Canonical names that must exist: a bias that one layer has, all layers must have."""
    biased = {
        canonical.rsplit(".", 1)[-1]
        for canonical, name in named.items()
        if canonical.endswith(BIAS) and (name in tensors or bias)
    }
    return {
        canonical
        for canonical in named
        if (not canonical.endswith(BIAS) or canonical.rsplit(".", 1)[-1] in biased)
        and not (canonical == "lm_head" and arch.tie_word_embeddings)
    }


def _canonical_weights(
    found: Mapping[str, Weight], layout: LayoutConfig, arch: Architecture
) -> Iterator[tuple[str, Weight]]:
    orders = {kind: _row_order(kind, layout, arch) for kind in FUSED}
    for canonical, weight in found.items():
        prefix, _, leaf = canonical.rpartition(".")
        prefix = prefix + "." if prefix else ""
        suffix = BIAS if leaf.endswith(BIAS) else ""
        kind = leaf.removesuffix(BIAS)
        if kind in FUSED:
            order, offset = orders[kind], 0
            for part in FUSED[kind]:
                rows = arch.heads.part_rows(part)
                index = order[offset : offset + rows]
                yield f"{prefix}{part}_proj{suffix}", weight.permute_rows(index)
                offset += rows
        elif kind == "gate_up_proj":
            half = arch.intermediate_size
            for name, start in (("gate_proj", 0), ("up_proj", half)):
                index = torch.arange(start, start + half)
                yield f"{prefix}{name}{suffix}", weight.permute_rows(index)
        else:
            yield canonical, weight


def _row_order(kind: str, layout: LayoutConfig, arch: Architecture) -> torch.Tensor:
    parts = FUSED[kind]
    separate = "kv_head group head_dim" if parts == ("q",) else "kv_head head_dim"
    together = "[q: kv_head group | k: kv_head | v: kv_head] head_dim"
    default = separate if len(parts) == 1 else together
    return compile_row_order(layout.row_order.get(kind, default), arch.heads, parts)
