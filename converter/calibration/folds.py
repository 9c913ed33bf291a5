"""Scales moved between neighbours without changing what they compute together.

The legal folds of a Llama (AWQ, arXiv 2306.00978): each norm into the linears that read it, the
last one into lm_head; the up projection's rows into the down projection's columns, because the
product with the gate is elementwise; the value projection's rows into the output projection's
columns, because attention mixes tokens, not channels, with one scale for a KV head's channel and
all its query heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from converter.model.architecture import Architecture
from converter.model.tensor_kinds import BIAS, HEAD
from converter.quantization.awq import kv_channel_groups
from converter.weights.weight import TensorWeight, Weight


@dataclass(frozen=True)
class Fold:
    """A producer whose outputs are divided by a scale, and the consumers that make up for it."""

    name: str
    producer: str
    consumers: tuple[str, ...]
    stage: str
    """The consumers' common input; see `converter.calibration.layer`."""


FOLDS = (
    Fold("attention_norm", "attn_norm", ("q_proj", "k_proj", "v_proj"), "attention"),
    Fold("value", "v_proj", ("o_proj",), "output"),
    Fold("ffn_norm", "ffn_norm", ("gate_proj", "up_proj"), "feed_forward"),
    Fold("up", "up_proj", ("down_proj",), "down"),
)
"""The folds of a layer."""
HEAD_FOLD = Fold("last_norm", "norm", (HEAD,), HEAD)
"""Not for a head that shares its codes with the embedding, whose columns nothing scales back."""


def folds_of(name: str) -> tuple[Fold, ...]:
    """The folds of `layers.N` or of `lm_head`."""
    return (HEAD_FOLD,) if name == HEAD else FOLDS


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
    arch: Architecture,
) -> dict[str, Weight]:
    """All of the decoder's weights, those of `layers.N`, or lm_head and the norm before it, folded.

    `scales` are the folds' by their names, float32 (channels,); the others are left out.
    """
    found = dict(weights)
    for fold in folds_of(name):
        if fold.name in scales:
            found = _apply(found, name, fold, scales[fold.name], arch)
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
    for part in (fold.producer, fold.producer + BIAS):
        if prefix + part in found:
            found[prefix + part] = _divided(found[prefix + part], scales)
    for part in fold.consumers:
        found[prefix + part] = found[prefix + part].scale_columns(inputs)
    return found


def fold_prefix(name: str) -> str:
    """What stands before a fold's names in the canonical ones of `layers.N` or `lm_head`."""
    return "" if name == HEAD else f"{name}."


def _divided(weight: Weight, scales: torch.Tensor) -> Weight:
    if len(weight.shape) == 1:
        return TensorWeight(weight.read().float() / scales, weight.label)
    return weight.scale_rows(1 / scales)
