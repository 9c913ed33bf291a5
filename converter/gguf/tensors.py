"""A GGUF file's tensors under the names and in the forms of a description.

llama.cpp stores what transformers has with three differences: its own names, rows of Q and K with
the two of a rotary pair side by side where its kernels rotate neighbours, and the weights of norms
with the offset added that the model adds to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from converter.errors import Problem, raise_if
from converter.gguf.architectures import (
    ROPE_FACTORS,
    ROPE_LONG,
    ROPE_SHORT,
    TENSORS,
    Known,
)
from converter.gguf.stacked import StackedWeight
from converter.model.architecture import Architecture
from converter.model.decoder import FUSED, published_names
from converter.model.row_order import compile_row_order
from converter.model.tensor_kinds import BIAS, EXPERTS, HEAD, NORMS, canonical_shape, is_bias, leaf
from converter.recipe.schema import LayoutConfig
from converter.weights.alike import alike, kinds
from converter.weights.weight import ComputedWeight, Weight

NEIGHBOURS = {"q": "kv_head group pair half", "k": "kv_head pair half"}
"""Row orders of interleaved Q and K, as converter.model.row_order reads them."""
WITHOUT_PLACE = (ROPE_FACTORS, ROPE_LONG, ROPE_SHORT)
"""Tensors that are read into config.json."""


def published_tensors(
    path: Path,
    tensors: Mapping[str, Weight],
    known: Known,
    layout: LayoutConfig,
    arch: Architecture,
) -> dict[str, Weight]:
    """The tensors that the description `layout` names, of those that the file has.

    Raises:
        ConvertError: a tensor is missing, or one has no place.
    """
    found: dict[str, Weight] = {}
    used, missing = set(WITHOUT_PLACE), list[str]()
    for canonical, name in published_names(layout, arch).items():
        names = _names(canonical, tensors, known)
        used.update(names)
        absent = [item for item in names if item not in tensors]
        if not absent:
            found[name] = _published(canonical, [tensors[n] for n in names], known, layout, arch)
        elif not is_bias(canonical) and not (canonical == HEAD and arch.tie_word_embeddings):
            missing += absent
    left = [name for name in tensors if name not in used]
    raise_if([*_missing_problems(path, missing), *_left_problems(path, left, known)])
    return found


def _names(canonical: str, tensors: Mapping[str, Weight], known: Known) -> list[str]:
    """GGUF's names of what a canonical tensor is made of: Q, K and V where it has them apart."""
    prefix, _, kind = canonical.rpartition(".")
    block = f"blk.{prefix.split('.')[1]}." if prefix else ""
    end = "bias" if is_bias(kind) else "weight"
    kind = kind.removesuffix(BIAS)
    whole = f"{block}{known.names.get(kind, TENSORS[kind])}.{end}"
    if kind != "qkv_proj" or whole in tensors:
        return [whole]
    return [f"{block}{TENSORS[f'{part}_proj']}.{end}" for part in FUSED[kind]]


def _published(
    canonical: str,
    weights: list[Weight],
    known: Known,
    layout: LayoutConfig,
    arch: Architecture,
) -> Weight:
    kind = leaf(canonical).removesuffix(BIAS)
    if kind in NORMS and arch.norm.offset and not is_bias(canonical):
        return _without_offset(weights[0], arch.norm.offset)
    if kind in EXPERTS:
        return _expert(canonical, weights[0], arch)
    if kind == "shared_expert_gate" and len(weights[0].shape) == 1:
        return _as_row(weights[0])
    if kind not in FUSED or len(weights) != len(FUSED[kind]):
        return weights[0]
    parts = [
        weight.permute_rows(compile_row_order(NEIGHBOURS[part], arch.heads, (part,)))
        if known.interleaved and part in NEIGHBOURS
        else weight
        for part, weight in zip(FUSED[kind], weights, strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    order = compile_row_order(layout.row_order[kind], arch.heads, FUSED[kind])
    return StackedWeight(parts).permute_rows(torch.argsort(order))


def _expert(canonical: str, weight: Weight, arch: Architecture) -> Weight:
    """The rows of one expert of a layer's stack."""
    number = int(canonical.split(".")[3])
    rows = canonical_shape(canonical, arch)[0]
    return weight.permute_rows(torch.arange(number * rows, (number + 1) * rows))


def _as_row(weight: Weight) -> Weight:
    """A vector as a matrix of one row."""
    (columns,) = weight.shape
    return ComputedWeight(
        (1, columns),
        weight.dtype,
        lambda start, stop: weight.rows(0, columns).reshape(1, -1)[start:stop],
        weight.label,
    )


def _without_offset(weight: Weight, offset: float) -> Weight:
    return ComputedWeight(
        weight.shape,
        torch.float32,
        lambda start, stop: weight.rows(start, stop).float() - offset,
        weight.label,
    )


def _missing_problems(path: Path, missing: list[str]) -> Iterator[Problem]:
    for names in kinds(missing):
        yield Problem(
            f"{path} lacks the tensor {names[0]}{alike(names)}.",
            "every tensor of its architecture",
            "fetch the file again, with all files of a split one",
        )


def _left_problems(path: Path, left: list[str], known: Known) -> Iterator[Problem]:
    for names in kinds(left):
        yield Problem(
            f"{path} has the tensor {names[0]}{alike(names)}, which has no place in "
            f"{known.model_type}.",
            "tensors that the architecture's description names",
            "take the checkpoint that the file was made from, and give its folder",
        )
