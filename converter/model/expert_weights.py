"""Experts between the checkpoint's tensors and the decoder's two matrices a layer.

A checkpoint holds a tensor for each expert's projection, or stacks of them, in which gate and up
may be one tensor, take turns, or be transposed. A decoder has `experts_gate_up_proj`, float
(experts · 2 · intermediate, hidden), whose rows are gate and up in turns, and `experts_down_proj`,
(experts · hidden, intermediate): what onnxruntime's operator MoE takes, flattened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from converter.errors import Problem
from converter.model.architecture import Architecture
from converter.model.experts import Experts
from converter.model.tensor_kinds import (
    BIAS,
    EXPERTS,
    EXPERTS_DOWN,
    EXPERTS_GATE_UP,
    canonical_shape,
    is_bias,
    leaf,
)
from converter.recipe.schema import LayoutConfig
from converter.weights.stack import flatten_stack, interleave_rows, stack_rows, transpose_each
from converter.weights.weight import Weight, concatenate_rows

HALVES, TURNS = "[gate | up] intermediate", "intermediate [gate | up]"
"""Row orders of a tensor with an expert's gate and up projections."""
GATE_UP, GATE, UP, DOWN = (
    "expert_gate_up_proj",
    "expert_gate_proj",
    "expert_up_proj",
    "expert_down_proj",
)


def expert_name(layer_prefix: str, expert: int, canonical: str) -> str:
    """Canonical name of one expert's tensor, such as layers.0.experts.3.expert_up_proj."""
    return f"{layer_prefix}experts.{expert}.{canonical}"


def is_stacked(canonical: str) -> bool:
    """Whether it is one tensor with all experts of a layer."""
    return leaf(canonical).removesuffix(BIAS) in EXPERTS and ".experts." not in canonical


def published_shape(canonical: str, layout: LayoutConfig, arch: Architecture) -> tuple[int, ...]:
    """Shape of a canonical tensor as a checkpoint of the layout holds it."""
    shape = canonical_shape(canonical, arch)
    if not is_stacked(canonical):
        return shape
    assert arch.experts is not None
    turned = leaf(canonical) in layout.transposed
    return (arch.experts.count, *(reversed(shape) if turned else shape))


def row_order_problems(layout: LayoutConfig) -> Iterator[Problem]:
    """Row orders and transpositions of experts that do not exist."""
    order = layout.row_order.get(GATE_UP, HALVES)
    if order not in (HALVES, TURNS):
        yield Problem(
            f"layout.row_order.{GATE_UP} is {order!r}.",
            f"{HALVES!r} or {TURNS!r}",
            f"set \"layout.row_order.{GATE_UP}='{HALVES}'\"",
            key=(f"layout.row_order.{GATE_UP}",),
        )
    for name in layout.transposed:
        if name not in EXPERTS:
            yield Problem(
                f"layout.transposed names {name!r}, which is no tensor of experts.",
                f"some of {', '.join(sorted(EXPERTS))}",
                "set layout.transposed=[]",
                key=("layout.transposed",),
            )


def stacked_experts(
    found: Mapping[str, Weight], layout: LayoutConfig, arch: Architecture
) -> Iterator[tuple[str, Weight]]:
    """The decoder's matrices of experts, and their biases, from the checkpoint's tensors."""
    if arch.experts is None:
        return
    for layer in (number for number, has in enumerate(arch.experts.layers) if has):
        prefix = f"layers.{layer}."
        for bias in ("", BIAS):
            gate_up = _gate_up(found, prefix, bias, layout, arch.experts)
            if gate_up is not None:
                yield f"{prefix}{EXPERTS_GATE_UP}{bias}", gate_up
            down = _all(found, prefix, DOWN + bias, layout, arch.experts)
            if down is not None:
                yield f"{prefix}{EXPERTS_DOWN}{bias}", down


def _gate_up(
    found: Mapping[str, Weight], prefix: str, bias: str, layout: LayoutConfig, experts: Experts
) -> Weight | None:
    both = _all(found, prefix, GATE_UP + bias, layout, experts)
    if both is not None and layout.row_order.get(GATE_UP, HALVES) == TURNS:
        return both
    if both is not None:
        halves = (both.permute_rows(index) for index in _halves(experts))
        return interleave_rows(*halves)
    gate, up = (_all(found, prefix, name + bias, layout, experts) for name in (GATE, UP))
    return None if gate is None or up is None else interleave_rows(gate, up)


def _all(
    found: Mapping[str, Weight], prefix: str, kind: str, layout: LayoutConfig, experts: Experts
) -> Weight | None:
    """One tensor of all experts of a layer, flattened; None where the checkpoint has none."""
    stack = found.get(prefix + kind)
    if stack is not None:
        turned = kind in layout.transposed
        return flatten_stack(transpose_each(stack) if turned else stack)
    parts = [found.get(expert_name(prefix, number, kind)) for number in range(experts.count)]
    known = [part for part in parts if part is not None]
    return concatenate_rows(known) if known else None


def _halves(experts: Experts) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the gates and of the ups where each expert has its gate before its up."""
    size = experts.intermediate_size
    starts = torch.arange(experts.count)[:, None] * 2 * size
    gates = (starts + torch.arange(size)).flatten()
    return gates, gates + size


def published_experts(
    canonical: str, weights: Mapping[str, Weight], layout: LayoutConfig, experts: Experts
) -> Weight | None:
    """The checkpoint's tensor of one or all experts, from the decoder's; None if it has none."""
    kind = leaf(canonical)
    prefix = ".".join(canonical.split(".")[:2]) + "."
    bias, kind = (BIAS if is_bias(kind) else ""), kind.removesuffix(BIAS)
    matrix = weights.get(f"{prefix}{EXPERTS_DOWN if kind == DOWN else EXPERTS_GATE_UP}{bias}")
    if matrix is None:
        return None
    index = None if kind == DOWN else _turns(kind, layout, experts)
    if is_stacked(canonical):
        each = matrix.shape[0] // experts.count
        if index is not None:
            starts = torch.arange(experts.count)[:, None] * each
            matrix = matrix.permute_rows((starts + index).flatten())
        stack = stack_rows(matrix, experts.count)
        return transpose_each(stack) if kind + bias in layout.transposed else stack
    number, each = int(canonical.split(".")[3]), matrix.shape[0] // experts.count
    rows = torch.arange(each) if index is None else index
    return matrix.permute_rows(rows + number * each)


def _turns(kind: str, layout: LayoutConfig, experts: Experts) -> torch.Tensor | None:
    """Rows of an expert's gates and ups in turns that make the checkpoint's tensor; None: all."""
    size = experts.intermediate_size
    gate = torch.arange(0, 2 * size, 2)
    if kind == GATE_UP:
        return None if layout.row_order.get(kind, HALVES) == TURNS else torch.cat([gate, gate + 1])
    return gate if kind == GATE else gate + 1
