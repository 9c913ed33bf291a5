"""Scales moved between neighbours without changing what they compute together.

The legal folds (AWQ, arXiv 2306.00978): each norm into the linears that read it, the last one into
lm_head; the up projection's rows into the down projection's columns, because the product with the
gate is elementwise; the value projection's rows into the output projection's columns, because
attention mixes tokens, not channels, with one scale for a KV head's channel and all its query
heads.

Which of them a decoder has follows from its tensors. Without a norm in front of a block there is
nothing to fold into, since linears read the residual stream. Without a gate an activation is
between up and down. A router reads the norm in front of experts. Parallel blocks may read one norm:
its fold scales the linears of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from converter.model.architecture import Architecture
from converter.model.decoder import Decoder
from converter.model.tensor_kinds import (
    ATTENTION_NORM,
    BIAS,
    FEED_FORWARD_NORM,
    FINAL_NORM,
    HEAD,
    NORMS,
)
from converter.quantization.awq import kv_channel_groups
from converter.weights.weight import TensorWeight, Weight


@dataclass(frozen=True)
class Fold:
    """A producer whose outputs are divided by a scale, and the consumers that make up for it."""

    name: str
    producer: str
    consumers: tuple[str, ...]
    stages: tuple[str, ...]
    """Those of the consumers, which all have one input; see `converter.calibration.layer`."""


HEAD_FOLD = Fold("last_norm", FINAL_NORM, (HEAD,), (HEAD,))
"""Not for a head that shares its codes with the embedding, whose columns nothing scales back."""


def folds_of(name: str, decoder: Decoder) -> tuple[Fold, ...]:
    """The legal folds of `layers.N` or of `lm_head`, in the order of computing."""
    layout, found = decoder.layout, list[Fold]()
    if name == HEAD:
        return (HEAD_FOLD,) if layout.tensors.get(FINAL_NORM) else ()
    gated = f"{name}.gate_proj" in decoder.weights
    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    feed: tuple[str, ...] = ("gate_proj", "up_proj") if gated else ("up_proj",)
    named = {kind for kind, published in layout.layer_tensors.items() if published}
    if ATTENTION_NORM in named:
        both = decoder.architecture.parallel and FEED_FORWARD_NORM not in named
        readers = (*attention, *feed) if both else attention
        stages = ("attention", "feed_forward") if both else ("attention",)
        found.append(Fold("attention_norm", ATTENTION_NORM, readers, stages))
    found.append(Fold("value", "v_proj", ("o_proj",), ("output",)))
    if FEED_FORWARD_NORM in named and f"{name}.down_proj" in decoder.weights:
        found.append(Fold("ffn_norm", FEED_FORWARD_NORM, feed, ("feed_forward",)))
    if gated:
        found.append(Fold("up", "up_proj", ("down_proj",), ("down",)))
    return tuple(found)


def input_groups(fold: Fold, arch: Architecture) -> torch.Tensor | None:
    """The producer's channel behind each input, int64, where several inputs share one."""
    if fold.name != "value":
        return None
    return kv_channel_groups(arch.num_attention_heads, arch.num_key_value_heads, arch.head_dim)


def input_scales(fold: Fold, scales: torch.Tensor, arch: Architecture) -> torch.Tensor:
    """What each of the consumers' inputs is divided by, from the producer's scales."""
    groups = input_groups(fold, arch)
    return scales if groups is None else scales[groups]


def apply_folds(
    weights: Mapping[str, Weight],
    name: str,
    scales: Mapping[str, torch.Tensor],
    decoder: Decoder,
) -> dict[str, Weight]:
    """All of the decoder's weights, those of `layers.N`, or lm_head and the norm before it, folded.

    `scales` are the folds' by their names, float32 (channels,); the others are left out.
    """
    found = dict(weights)
    for fold in folds_of(name, decoder):
        if fold.name in scales:
            found = _apply(found, name, fold, scales[fold.name], decoder.architecture)
    return found


def _apply(
    weights: Mapping[str, Weight],
    name: str,
    fold: Fold,
    scales: torch.Tensor,
    arch: Architecture,
) -> dict[str, Weight]:
    """The weights with the producer's channels divided by `scales`, float32 (channels,)."""
    prefix, found = fold_prefix(name), dict(weights)
    inputs = input_scales(fold, scales, arch)
    offset = arch.norm.offset if fold.producer in NORMS else 0.0
    producer, bias = prefix + fold.producer, prefix + fold.producer + BIAS
    found[producer] = _divided(found[producer], scales, offset)
    if bias in found:
        found[bias] = _divided(found[bias], scales)
    for part in fold.consumers:
        found[prefix + part] = found[prefix + part].scale_columns(inputs)
    return found


def fold_prefix(name: str) -> str:
    """What stands before a fold's names in the canonical ones of `layers.N` or `lm_head`."""
    return "" if name == HEAD else f"{name}."


def _divided(weight: Weight, scales: torch.Tensor, offset: float = 0.0) -> Weight:
    """`weight` whose effect, `offset` added, is divided."""
    if len(weight.shape) == 1:
        return TensorWeight((weight.read().float() + offset) / scales - offset, weight.label)
    return weight.scale_rows(1 / scales)
