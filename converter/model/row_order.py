"""Row orders of fused and separate Q, K, V weights, written as patterns over named axes.

A pattern lists nested loops, outermost first; a bracket holds alternatives that follow each other:

    separate query      kv_head group head_dim
    InternLM2's wqkv    kv_head [q: group | k | v] head_dim
    concatenated        [q: kv_head group | k: kv_head | v: kv_head] head_dim
    GPT-NeoX            kv_head [q: group | k | v] head_dim          (group is 1 there)
    interleaved rotary  kv_head group pair half

Axes: `kv_head` (num_key_value_heads), `group` (query heads per KV head, queries only), `head_dim`,
and `half` × `pair` = head_dim for weights whose rotary pairs are neighbours. The canonical order,
that of GroupQueryAttention, is `kv_head group head_dim` for Q, then `kv_head head_dim` for K and
for V, with rotate-half inside a head (half outermost). A pattern is a permutation of rows, so it
applies unchanged to biases, to quantized rows and to LoRA B matrices, and it can be inverted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from converter.errors import ConvertError, Problem

AXES = ("kv_head", "group", "head_dim", "half", "pair")
PARTS = ("q", "k", "v")


@dataclass(frozen=True)
class HeadShape:
    """The sizes that a pattern's axes stand for."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        return self.num_attention_heads // self.num_key_value_heads

    def part_rows(self, part: str) -> int:
        heads = self.num_attention_heads if part == "q" else self.num_key_value_heads
        return heads * self.head_dim


def compile_row_order(pattern: str, heads: HeadShape, parts: Sequence[str] = PARTS) -> torch.Tensor:
    """Permutation that brings rows stored as `pattern` into canonical order.

    Args:
        pattern: see the module's text. Without a bracket it describes one part.
        heads: sizes of the axes.
        parts: the parts that the tensor holds, in canonical order ("q", "k", "v").

    Returns:
        int64 index of shape (rows,): canonical row i is stored row `index[i]`.

    Raises:
        ConvertError: unknown axis or part, or a pattern that misses or repeats a row.
    """
    canonical = _canonical_ids(heads, parts)
    stored = torch.cat([ids.flatten() for ids in _stored_ids(pattern, canonical)])
    total = sum(heads.part_rows(part) for part in parts)
    if len(stored) != total or not torch.equal(stored.sort().values, torch.arange(total)):
        raise _bad(pattern, f"gives {len(stored)} rows where the heads make {total}")
    return invert(stored)


def invert(index: torch.Tensor) -> torch.Tensor:
    """The permutation that undoes `index` (int64, shape (rows,))."""
    inverse = torch.empty_like(index)
    inverse[index] = torch.arange(len(index))
    return inverse


def _canonical_ids(heads: HeadShape, parts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Canonical row numbers of each part, shape (kv_head, group, half, pair)."""
    half = 2 if heads.head_dim % 2 == 0 else 1
    ids, offset = {}, 0
    for part in parts:
        rows = heads.part_rows(part)
        group = heads.group if part == "q" else 1
        shape = (heads.num_key_value_heads, group, half, heads.head_dim // half)
        ids[part] = torch.arange(offset, offset + rows).reshape(shape)
        offset += rows
    return ids


def _stored_ids(pattern: str, canonical: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    outer, alternatives, inner = _parse(pattern, tuple(canonical))
    blocks = [_arrange(pattern, canonical[part], outer, axes, inner) for part, axes in alternatives]
    # Blocks have shape (outer sizes…, rows): alternatives follow each other inside the outer loops.
    return [torch.cat(blocks, dim=-1)]


def _arrange(
    pattern: str, ids: torch.Tensor, outer: list[str], middle: list[str], inner: list[str]
) -> torch.Tensor:
    sizes = dict(zip(("kv_head", "group", "half", "pair"), ids.shape, strict=True))
    axes = [real for axis in (*outer, *middle, *inner) for real in _real_axes(axis)]
    if "group" not in axes and sizes["group"] == 1:
        ids, sizes = ids.squeeze(1), {k: v for k, v in sizes.items() if k != "group"}
    if sorted(axes) != sorted(sizes):
        raise _bad(pattern, f"loops over {' '.join(axes) or 'nothing'} for one of its parts")
    names = list(sizes)
    ordered = ids.permute([names.index(axis) for axis in axes])
    outer_sizes = [sizes[real] for axis in outer for real in _real_axes(axis)]
    return ordered.reshape(*outer_sizes, -1)


def _real_axes(axis: str) -> tuple[str, ...]:
    return ("half", "pair") if axis == "head_dim" else (axis,)


def _parse(
    pattern: str, parts: tuple[str, ...]
) -> tuple[list[str], list[tuple[str, list[str]]], list[str]]:
    match = re.fullmatch(r"([^\[\]]*)(?:\[([^\[\]]*)\])?([^\[\]]*)", pattern)
    if match is None:
        raise _bad(pattern, "has unbalanced or more than one pair of brackets")
    before, bracket, after = match.groups()
    outer, inner = _axes(pattern, before), _axes(pattern, after)
    if bracket is None:
        if len(parts) != 1:
            raise _bad(pattern, f"has no bracket to order the parts {', '.join(parts)}")
        return [], [(parts[0], outer + inner)], []
    alternatives = [_alternative(pattern, text) for text in bracket.split("|")]
    if sorted(part for part, _ in alternatives) != sorted(parts):
        raise _bad(pattern, f"must name each of {', '.join(parts)} once in its bracket")
    return outer, alternatives, inner


def _alternative(pattern: str, text: str) -> tuple[str, list[str]]:
    part, _, axes = text.partition(":")
    return part.strip(), _axes(pattern, axes)


def _axes(pattern: str, text: str) -> list[str]:
    for axis in text.split():
        if axis not in AXES:
            raise _bad(pattern, f"names the unknown axis {axis!r}")
    return text.split()


def _bad(pattern: str, reason: str) -> ConvertError:
    return ConvertError(
        Problem(
            f"The row order {pattern!r} {reason}.",
            f"loops over {', '.join(AXES)} with one bracket such as [q: group | k | v]",
            "correct layout.row_order; converter/model/row_order.py lists the known orders",
        )
    )
