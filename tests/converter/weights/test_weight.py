from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.weights.weight import TensorWeight, concatenate_rows

SOURCE = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))


@settings(max_examples=100, deadline=None)
@given(st.permutations(range(24)), st.integers(0, 23), st.integers(1, 24))
def test_permuted_rows_equal_indexing(order: list[int], start: int, count: int) -> None:
    index = torch.tensor(order)
    weight = TensorWeight(SOURCE).permute_rows(index)
    stop = min(24, start + count)
    assert torch.equal(weight.rows(start, stop), SOURCE[index][start:stop])


def test_combinators_equal_the_same_operations_on_tensors() -> None:
    rows, columns = torch.rand(24) + 0.5, torch.rand(6) + 0.5
    weight = TensorWeight(SOURCE)
    assert torch.equal(weight.scale_rows(rows).rows(3, 9), (SOURCE * rows[:, None])[3:9])
    assert torch.equal(weight.scale_columns(columns).read(), SOURCE * columns)
    assert torch.equal(weight.cast(torch.bfloat16).read(), SOURCE.bfloat16())
    assert torch.equal(weight.transpose().rows(1, 4), SOURCE.T[1:4])
    assert weight.transpose().transpose() is weight


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 47), st.integers(1, 48))
def test_concatenation_reads_across_its_parts(start: int, count: int) -> None:
    parts = [TensorWeight(SOURCE[:5]), TensorWeight(SOURCE), TensorWeight(SOURCE[5:])]
    stop = min(48, start + count)
    joined = torch.cat([SOURCE[:5], SOURCE, SOURCE[5:]])
    assert torch.equal(concatenate_rows(parts).rows(start, stop), joined[start:stop])


def test_tiles_cover_every_row_once() -> None:
    weight = TensorWeight(SOURCE)
    tiles = list(weight.tiles(values=13))
    assert [start for start, _ in tiles] == [0, *(stop for _, stop in tiles[:-1])]
    assert tiles[-1][1] == 24
    assert torch.equal(torch.cat([weight.rows(*tile) for tile in tiles]), SOURCE)


def test_a_weight_does_not_give_away_its_memory() -> None:
    weight = TensorWeight(SOURCE.clone())
    weight.rows(0, 24).zero_()
    assert torch.equal(weight.read(), SOURCE)
