from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from converter.weights.safetensors_file import open_safetensors
from converter.weights.stack import (
    flatten_stack,
    interleave_rows,
    stack_rows,
    transpose_each,
)
from converter.weights.weight import ComputedWeight, TensorWeight, Weight

STACK = torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(0))
ROWS = st.tuples(st.integers(0, 29), st.integers(1, 30))


def computed(tensor: torch.Tensor) -> Weight:
    """A weight that is no tensor in memory and no file."""
    return ComputedWeight(tuple(tensor.shape), tensor.dtype, lambda a, b: tensor[a:b], "computed")


@pytest.mark.parametrize("make", [TensorWeight, computed])
@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_flattened_rows_follow_each_other(
    make: Callable[[torch.Tensor], Weight], rows: tuple[int, int]
) -> None:
    start, stop = rows[0], min(30, rows[0] + rows[1])
    flat = flatten_stack(make(STACK))
    assert flat.shape == (30, 4)
    assert torch.equal(flat.rows(start, stop), STACK.flatten(0, 1)[start:stop])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 19), st.integers(1, 20))
def test_transposed_matrices_are_flattened_as_any_other(start: int, count: int) -> None:
    stop = min(20, start + count)
    turned = transpose_each(TensorWeight(STACK))
    assert turned.shape == (5, 4, 6)
    assert torch.equal(turned.rows(1, 3), STACK[1:3].transpose(1, 2))
    flat = flatten_stack(turned)
    assert torch.equal(flat.rows(start, stop), STACK.transpose(1, 2).flatten(0, 1)[start:stop])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 59), st.integers(1, 60))
def test_interleaved_rows_take_turns(start: int, count: int) -> None:
    even, odd = STACK.flatten(0, 1), -STACK.flatten(0, 1)
    stop = min(60, start + count)
    joined = torch.stack([even, odd], 1).flatten(0, 1)
    found = interleave_rows(TensorWeight(even), TensorWeight(odd))
    assert torch.equal(found.rows(start, stop), joined[start:stop])


def test_the_tiles_of_interleaved_rows_cover_them_once() -> None:
    flat = TensorWeight(STACK.flatten(0, 1))
    found = interleave_rows(flat, flat)
    assert torch.equal(torch.cat([found.rows(*tile) for tile in found.tiles(12)]), found.read())


def test_biases_are_stacks_of_numbers() -> None:
    flat = flatten_stack(TensorWeight(STACK[:, :, 0]))
    assert torch.equal(flat.rows(3, 11), STACK[:, :, 0].flatten()[3:11])
    assert torch.equal(stack_rows(flat, 5).read(), STACK[:, :, 0])


def test_what_is_undone_costs_nothing() -> None:
    stack = TensorWeight(STACK)
    assert transpose_each(transpose_each(stack)) is stack
    assert stack_rows(flatten_stack(stack), 5) is stack
    flat = TensorWeight(STACK.flatten(0, 1))
    assert flatten_stack(stack_rows(flat, 5)) is flat


def test_a_stacked_weight_reads_the_rows_of_its_matrices() -> None:
    asked: list[tuple[int, int]] = []
    flat = STACK.flatten(0, 1)

    def compute(start: int, stop: int) -> torch.Tensor:
        asked.append((start, stop))
        return flat[start:stop]

    stacked = stack_rows(ComputedWeight((30, 4), flat.dtype, compute, ""), 5)
    assert torch.equal(stacked.rows(2, 3), STACK[2:3])
    assert asked == [(12, 18)]


def test_a_stack_in_a_file_is_read_by_rows(tmp_path: Path) -> None:
    save_file({"stack": STACK}, tmp_path / "a.safetensors")
    flat = flatten_stack(open_safetensors(tmp_path / "a.safetensors")["stack"])
    assert type(flat).__name__ == "FileWeight"
    assert flat.label == "stack in a.safetensors"
    assert torch.equal(flat.rows(7, 13), STACK.flatten(0, 1)[7:13])
