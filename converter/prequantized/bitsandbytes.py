"""Checkpoints of bitsandbytes: nf4 and fp4 in blocks, and int8 by rows.

Layout (bitsandbytes' `functional.py`, `QuantState` and `int8_vectorwise_quant`), for a linear of
`in` columns and `out` rows:
    4 bits: weight uint8 (out · in / 2, 1), rows one after the other, the earlier value in the upper
    bits; weight.quant_map float32 (16,), the values that codes stand for; weight.absmax, a scale
    for each block of values: float32, or uint8 (double quantization), then
    weight.nested_quant_map[absmax] · weight.nested_absmax + nested_offset;
    weight.quant_state.bitsandbytes__nf4 or …fp4, uint8: JSON with shape, blocksize and the like;
    8 bits: weight int8 (out, in), SCB float32 (out,): value = code · SCB / 127.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from converter.errors import ConvertError
from converter.prequantized.integers import Integers, plain_groups
from converter.prequantized.module import (
    FETCH,
    Module,
    Opened,
    UnfitError,
    group_modules,
    is_count,
    open_modules,
    same_shape,
)
from converter.prequantized.rows import read_rows, read_scalar
from converter.quantization.coded_weight import StoredWeight
from converter.weights.weight import Weight

STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")
ENDS = (
    *("weight", "SCB", "weight_format", "weight.absmax", "weight.quant_map"),
    *("weight.nested_absmax", "weight.nested_quant_map", *STATES),
)
MARKS = ("SCB", "weight.absmax", "weight.quant_map", *STATES)
OBSTACLE = "MatMulNBits holds integers, not the values of nf4 and fp4"
LARGEST = 127
ROW_MAJOR = 0
"""weight_format of int8 weights that lie row by row."""


def open_bitsandbytes(
    config: Mapping[str, Any],
    tensors: Mapping[str, Weight],
    shapes: Mapping[str, tuple[int, ...]],
) -> Opened:
    """The weights of a checkpoint that bitsandbytes quantized; the tensors say in which way."""
    modules = group_modules(tensors, MARKS, ENDS)
    modules |= {
        name.removesuffix(".weight"): {"weight": weight}
        for name, weight in tensors.items()
        if name.endswith(".weight")
        and weight.dtype in (torch.uint8, torch.int8)
        and name.removesuffix(".weight") not in modules
    }
    return open_modules(tensors, modules, shapes, _read)


def _read(module: Module) -> Weight:
    if module.has("SCB") or module.need("weight", (torch.int8, torch.uint8)).dtype == torch.int8:
        return _read_int8(module)
    return _read_four_bits(module)


def _read_int8(module: Module) -> Weight:
    weight = module.need("weight", (torch.int8,))
    scale = module.need("SCB", (torch.float32, torch.float16), (1,))
    rows, columns = weight.shape
    same_shape("SCB", scale, (rows,), f"one for each of the {rows} rows")
    _check_row_major(module)
    return Integers(
        (rows, columns),
        8,
        plain_groups(columns, columns),
        torch.float32,
        lambda index: read_rows(weight, index).view(torch.uint8) ^ 0x80,
        lambda index: read_rows(scale, index).float().unsqueeze(1) / LARGEST,
        None,
        "bitsandbytes (int8, one scale a row)",
        weight.label,
    ).weight()


def _check_row_major(module: Module) -> None:
    if not module.has("weight_format"):
        return
    form = module.need("weight_format", (torch.uint8, torch.int64), (0, 1))
    try:
        value = int(read_scalar(form))
    except ConvertError:  # of a repository that is not fetched yet
        return
    if value != ROW_MAJOR:
        raise UnfitError(
            f"weight_format {value}", f"{ROW_MAJOR}, rows one after the other", "save it again"
        )


def _read_four_bits(module: Module) -> Weight:
    packed = module.need("weight", (torch.uint8,), (1, 2))
    table = module.need("weight.quant_map", (torch.float32,), (1,))
    same_shape("weight.quant_map", table, (16,), "a value for each code")
    end = next((state for state in STATES if module.has(state)), STATES[0])
    state = _state(module, end)
    (rows, columns), size = state["shape"], state["blocksize"]
    kind = end.rpartition("__")[2]
    if packed.numel != -(-rows * columns // 2):
        raise UnfitError(
            f"weight of {packed.numel} bytes for the shape ({rows}, {columns})",
            f"{-(-rows * columns // 2)} bytes, two values in each",
            FETCH,
        )
    scales = _scales(module, -(-rows * columns // size), state)

    def read(index: torch.Tensor) -> torch.Tensor:
        runs = _runs(index)
        return torch.cat([_values(start * columns, stop * columns) for start, stop in runs]).view(
            len(index), columns
        )

    def _values(start: int, stop: int) -> torch.Tensor:
        held = packed.rows(start // 2, -(-stop // 2)).flatten()
        codes = torch.stack((held >> 4, held & 15), dim=1).flatten()[start % 2 :][: stop - start]
        first = start // size
        blocks = torch.arange(start, stop) // size - first
        return table.read()[codes.int()] * scales(first, -(-stop // size))[blocks]

    nested = ", double quantization" if module.has("weight.nested_absmax") else ""
    stored = f"bitsandbytes ({kind}, blocks of {size}{nested})"
    return StoredWeight((rows, columns), read, stored, packed.label, OBSTACLE)


def _runs(index: torch.Tensor) -> list[tuple[int, int]]:
    """Ranges of an index in which it counts up by one."""
    breaks = (torch.nonzero(torch.diff(index) != 1).flatten() + 1).tolist()
    starts = [0, *breaks]
    stops = [*breaks, len(index)]
    return [
        (int(index[start]), int(index[stop - 1]) + 1)
        for start, stop in zip(starts, stops, strict=True)
    ]


def _state(module: Module, end: str) -> dict[str, Any]:
    """The JSON beside a weight; what config.json implies where it is not fetched yet."""
    content = module.need(end, (torch.uint8,), (1,))
    try:
        found = json.loads(bytes(content.read().tolist()))
        counts = (*found["shape"], found["blocksize"], found.get("nested_blocksize", 1))
        if len(counts) != 4 or not all(map(is_count, counts)):
            raise ValueError
    except ConvertError:
        return {"shape": module.shape or (0, 0), "blocksize": 64}
    except (ValueError, KeyError, TypeError):
        raise UnfitError(
            f"{end} that is not read", "JSON with shape and blocksize", FETCH
        ) from None
    return dict(found)


def _scales(
    module: Module, count: int, state: Mapping[str, Any]
) -> Callable[[int, int], torch.Tensor]:
    """What gives the scales of blocks [start, stop), float32."""
    absmax = module.need("weight.absmax", (torch.float32, torch.uint8), (1,))
    same_shape("weight.absmax", absmax, (count,), f"blocks of {state['blocksize']} values")
    if absmax.dtype == torch.float32:
        return absmax.rows
    nested = module.need("weight.nested_absmax", (torch.float32,), (1,))
    table = module.need("weight.nested_quant_map", (torch.float32,), (1,))
    size = int(state.get("nested_blocksize", 256))
    same_shape("weight.nested_quant_map", table, (256,), "a value for each byte")
    same_shape("weight.nested_absmax", nested, (-(-count // size),), f"blocks of {size} scales")
    offset = float(state.get("nested_offset", 0.0))

    def read(start: int, stop: int) -> torch.Tensor:
        codes = absmax.rows(start, stop).int()
        outer = nested.read()[torch.arange(start, stop) // size]
        return table.read()[codes] * outer + offset

    return read
