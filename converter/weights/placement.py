"""Where each tensor lies in the data file, from shapes alone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from converter.weights.weight import GroupPart, Weight

SMALL_ALIGNMENT = 64
PAGE_ALIGNMENT = 1 << 16
"""Windows maps files at multiples of 64 KiB; large tensors start there."""
LARGE_BYTES = 1 << 20
"""A tensor of this size and more is aligned for mapping, as by onnxruntime's own writer: aligning
small ones too would make the file of a small model a tenth larger."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the data file, in bytes."""

    offset: int
    nbytes: int


def place_tensors(tensors: Mapping[str, Weight]) -> dict[str, Place]:
    """Offsets of the tensors in the data file, in their order, aligned for memory mapping."""
    places: dict[str, Place] = {}
    stored: dict[Hashable, Place] = {}
    end = 0
    for name, weight in tensors.items():
        if storage_key(weight) in stored:  # tied weights lie in the file once
            places[name] = stored[storage_key(weight)]
            continue
        alignment = PAGE_ALIGNMENT if weight.nbytes >= LARGE_BYTES else SMALL_ALIGNMENT
        offset = -(-end // alignment) * alignment
        places[name] = stored[storage_key(weight)] = Place(offset, weight.nbytes)
        end = offset + weight.nbytes
    return places


def storage_key(weight: Weight) -> Hashable:
    """Equal for weights that are the same bytes of the data file."""
    if isinstance(weight, GroupPart):
        return (id(weight.group), weight.name)
    return id(weight)


def data_size(places: Mapping[str, Place]) -> int:
    """Bytes of the data file."""
    return max((place.offset + place.nbytes for place in places.values()), default=0)
