from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import ConvertError
from converter.model.row_order import HeadShape, compile_row_order, invert

INTERNLM2 = "kv_head [q: group | k | v] head_dim"
CONCATENATED = "[q: kv_head group | k: kv_head | v: kv_head] head_dim"
SHAPES = st.builds(
    lambda kv_heads, group, half: HeadShape(kv_heads * group, kv_heads, 2 * half),
    st.integers(1, 5),
    st.integers(1, 7),
    st.integers(1, 6),
)


def internlm2_split(rows: torch.Tensor, heads: HeadShape) -> list[torch.Tensor]:
    """InternLM2's own modelling code: rearrange '(h gs d) -> h gs d', then slices."""
    grouped = rows.reshape(heads.num_key_value_heads, heads.group + 2, heads.head_dim)
    return [grouped[:, : heads.group].flatten(), grouped[:, -2].flatten(), grouped[:, -1].flatten()]


@settings(max_examples=50, deadline=None)
@given(SHAPES)
def test_internlm2_order_is_that_of_its_modelling_code(heads: HeadShape) -> None:
    rows = torch.arange(sum(heads.part_rows(part) for part in "qkv"))
    expected = torch.cat(internlm2_split(rows, heads))
    assert torch.equal(compile_row_order(INTERNLM2, heads), expected)


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.sampled_from([INTERNLM2, CONCATENATED]))
def test_inverse_brings_every_row_back(heads: HeadShape, pattern: str) -> None:
    index = compile_row_order(pattern, heads)
    rows = torch.randn(len(index))
    assert torch.equal(rows[index][invert(index)], rows)


def test_concatenated_is_canonical() -> None:
    heads = HeadShape(6, 2, 4)
    assert torch.equal(compile_row_order(CONCATENATED, heads), torch.arange(40))


def test_neox_is_interleaved_by_head() -> None:
    heads = HeadShape(3, 3, 2)
    # GPT-NeoX: view(heads, 3, head_dim), query, key and value of a head follow each other.
    view = torch.arange(18).reshape(3, 3, 2)
    expected = torch.cat([view[:, part].flatten() for part in range(3)])
    assert torch.equal(compile_row_order("kv_head [q | k | v] head_dim", heads), expected)


def test_interleaved_rotary_matches_the_conversion_script_of_transformers() -> None:
    heads = HeadShape(4, 4, 6)
    rows = torch.arange(24)
    # convert_llama_weights_to_hf.py: view(h, d/2, 2).transpose(1, 2)
    expected = rows.view(4, 3, 2).transpose(1, 2).flatten()
    assert torch.equal(compile_row_order("kv_head group pair half", heads, ["q"]), expected)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("kv_head [q | k | v] head_dim", "loops over"),
        ("kv_heads [q: group | k | v] head_dim", "unknown axis 'kv_heads'"),
        ("[q: kv_head group | k: kv_head] head_dim", "name each of q, k, v once"),
        ("kv_head [[q: group | k | v] head_dim", "brackets"),
        ("kv_head group head_dim", "no bracket"),
        ("kv_head [q: group | k | v]", "loops over"),
    ],
)
def test_impossible_patterns_are_refused(pattern: str, reason: str) -> None:
    with pytest.raises(ConvertError, match=reason):
        compile_row_order(pattern, HeadShape(4, 2, 4))
