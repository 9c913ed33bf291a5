"""Tensors of GGUF files as lazy weights: dequantized row by row, or with the codes that they have.

The library `gguf` does the arithmetic of its types on the rows of a tile. The blocks of Q4_0, Q5_0
and Q8_0 have one scale and no minimum, so MatMulNBits holds their codes as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from converter.errors import ConvertError, Problem
from converter.gguf.header import GgufHeader, TensorPlace, row_bytes
from converter.prequantized.rows import read_rows
from converter.quantization.coded_weight import CodedWeight, StoredWeight
from converter.quantization.rtn import BlockFormat, Packed, pack
from converter.weights.safetensors_file import FileWeight, OpenFile
from converter.weights.weight import Weight

PLAIN = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
"""Types that are no blocks; integers are no weights, and are refused where they stand for one."""
BLOCK = 32
"""Values that share a scale in the types whose codes are kept."""


@dataclass(frozen=True)
class Kept:
    """A type whose codes MatMulNBits holds: bits of a code there, and how blocks become codes.

    `codes` takes a block's bytes behind its float16 scale, uint8 (rows, blocks, n), and gives
    uint8 (rows, blocks, 32) around 2^(bits-1).
    """

    bits: int
    codes: Callable[[torch.Tensor], torch.Tensor]


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The first half of a block's values lies in the lower bits, the second in the upper."""
    return torch.cat([packed & 15, packed >> 4], dim=-1)


def _five_bits(content: torch.Tensor) -> torch.Tensor:
    """Q5_0: a bit for each value in 4 bytes, then the lower 4 bits; 16 stands for 0."""
    shifts = torch.arange(8, dtype=torch.uint8)
    high = ((content[..., :4, None] >> shifts) & 1).flatten(-2)
    return (_nibbles(content[..., 4:]) | high << 4) + (128 - 16)


KEPT = {
    "Q4_0": Kept(4, _nibbles),
    "Q5_0": Kept(8, _five_bits),
    "Q8_0": Kept(8, lambda content: content ^ 0x80),
}


def open_tensors(headers: Mapping[str, GgufHeader]) -> dict[str, Weight]:
    """All tensors of a model's files, none read yet.

    Raises:
        ConvertError: the library has no arithmetic for a type.
    """
    return {
        place.name: weight
        for header in headers.values()
        for place, weight in _open(header, OpenFile(header.path))
    }


def _open(header: GgufHeader, file: OpenFile) -> Iterator[tuple[TensorPlace, Weight]]:
    for place in header.tensors:
        if place.kind in PLAIN:
            shape = place.shape if len(place.shape) < 3 else _flat(place.shape)
            plain = FileWeight(file, place.name, place.offset, shape, PLAIN[place.kind])
            yield place, plain.cast(torch.float32) if place.kind == "F64" else plain
        else:
            yield place, _quantized(file, place)


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns; those of experts, the first dimension of three, follow each other."""
    return math.prod(shape[:-1]), shape[-1]


def _quantized(file: OpenFile, place: TensorPlace) -> Weight:
    rows, columns = _flat(place.shape)
    width = row_bytes(place.kind, columns)
    raw = FileWeight(file, place.name, place.offset, (rows, width), torch.uint8)
    shape, stored, label = (rows, columns), f"GGUF {place.kind}", raw.label
    kept = KEPT.get(place.kind)
    if kept is not None:
        form = BlockFormat(kept.bits, BLOCK, symmetric=True)
        return CodedWeight(shape, form, torch.float16, _packed(raw, place.kind), stored, label)
    function = dequantizer(place.kind)
    if function is None:
        raise ConvertError(_no_arithmetic(place, file))

    def read(index: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(function(read_rows(raw, index).numpy()))

    return StoredWeight(shape, read, stored, label, f"MatMulNBits cannot hold {place.kind}")


def _packed(raw: Weight, kind: str) -> Callable[[torch.Tensor], Packed]:
    kept, size = KEPT[kind], row_bytes(kind, BLOCK)

    def read(index: torch.Tensor) -> Packed:
        blocks = read_rows(raw, index).view(len(index), -1, size)
        scales = blocks[..., :2].contiguous().view(torch.float16).squeeze(-1)
        return Packed(pack(kept.codes(blocks[..., 2:]), kept.bits), scales, None)

    return read


def dequantizer(kind: str) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None:
    """What makes float32 (rows, columns) of the bytes (rows, n) of a type; None if nothing does."""
    from gguf import quants
    from gguf.constants import GGMLQuantizationType

    number = GGMLQuantizationType[kind]

    def function(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = quants.dequantize(rows, number)
        return found

    try:
        function(np.zeros((1, row_bytes(kind, 256)), np.uint8))
    except NotImplementedError:
        return None
    return function


def _no_arithmetic(place: TensorPlace, file: OpenFile) -> Problem:
    return Problem(
        f"{place.name} in {file.path} has ggml's type {place.kind}, which nothing dequantizes.",
        "a type in which models are stored, such as Q4_K or Q8_0",
        "take a file in another type",
    )
