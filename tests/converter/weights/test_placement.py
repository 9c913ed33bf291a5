"""Where tensors lie in the data file: aligned, apart, and tied ones once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from converter.quantization.quantized_matrix import QuantizedMatrix
from converter.quantization.rtn import BlockFormat
from converter.weights.placement import (
    LARGE_BYTES,
    PAGE_ALIGNMENT,
    SMALL_ALIGNMENT,
    Place,
    data_size,
    place_tensors,
    storage_key,
)
from converter.weights.weight import ComputedWeight, TensorWeight, Weight


def sized(nbytes: int) -> Weight:
    """A weight of so many bytes that has none of them in memory."""
    return ComputedWeight((nbytes,), torch.uint8, lambda a, b: torch.empty(b - a), "sized")


SIZES = st.lists(st.integers(1, 3 * LARGE_BYTES), min_size=1, max_size=12)


@given(SIZES)
def test_places_are_aligned_and_do_not_overlap(sizes: list[int]) -> None:
    weights = {str(number): sized(nbytes) for number, nbytes in enumerate(sizes)}
    places = place_tensors(weights)
    end = 0
    for (name, place), nbytes in zip(places.items(), sizes, strict=True):
        assert place.nbytes == nbytes == weights[name].nbytes
        assert place.offset >= end  # in their order, none inside another
        alignment = PAGE_ALIGNMENT if nbytes >= LARGE_BYTES else SMALL_ALIGNMENT
        assert place.offset % alignment == 0
        assert place.offset - end < alignment  # and no gap that alignment does not ask for
        end = place.offset + nbytes
    assert data_size(places) == end


@pytest.mark.parametrize("nbytes", [LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1])
def test_a_megabyte_and_more_begins_where_windows_can_map_it(nbytes: int) -> None:
    places = place_tensors({"first": sized(1), "second": sized(nbytes)})
    large = nbytes >= LARGE_BYTES
    assert places["second"] == Place(PAGE_ALIGNMENT if large else SMALL_ALIGNMENT, nbytes)


def test_a_tied_weight_lies_in_the_file_once() -> None:
    shared, other = TensorWeight(torch.zeros(8, 8)), TensorWeight(torch.zeros(8, 8))
    places = place_tensors({"embed": shared, "norm": other, "head": shared})
    assert places["head"] == places["embed"] != places["norm"]
    assert data_size(places) == 2 * shared.nbytes


def test_parts_of_a_group_are_the_same_bytes_whenever_they_are_asked_for() -> None:
    form = BlockFormat(4, 16, False)
    one = QuantizedMatrix(TensorWeight(torch.randn(4, 32)), form, torch.float32)
    two = QuantizedMatrix(TensorWeight(torch.randn(4, 32)), form, torch.float32)
    assert one.part("codes") is not one.part("codes")
    assert storage_key(one.part("codes")) == storage_key(one.part("codes"))
    keys = {storage_key(group.part(name)) for group in (one, two) for name in group.specs}
    assert len(keys) == 6
    codes = [one.part("codes") for _ in range(2)]
    places = place_tensors({"a": codes[0], "b": one.part("scales"), "c": codes[1]})
    assert places["a"] == places["c"] != places["b"]


def test_a_model_without_weights_needs_no_file() -> None:
    assert place_tensors({}) == {} and data_size({}) == 0
