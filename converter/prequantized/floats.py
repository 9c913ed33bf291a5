"""FP8 checkpoints: float8 values with a scale for the matrix, for each row, or for each tile.

Layout (transformers' `integrations/finegrained_fp8.py`, DeepSeek-V3's README; for rows FBGEMM's and
compressed-tensors' `float-quantized`), value = stored · scale:
    weight float8_e4m3fn (out, in);
    weight_scale_inv or weight_scale: one value, (out,) or (out, 1), or a value for each tile of
    weight_block_size, (ceil(out / tile rows), ceil(in / tile columns)).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from converter.prequantized.module import (
    HALF_OR_FLOAT,
    Module,
    Opened,
    UnfitError,
    group_modules,
    is_count,
    open_modules,
)
from converter.prequantized.rows import read_rows, read_scalar
from converter.quantization.coded_weight import StoredWeight
from converter.weights.weight import Weight

ENDS = ("weight", "weight_scale_inv", "weight_scale", "input_scale", "activation_scale")
SCALES = ENDS[1:3]
TILE = (128, 128)
"""Rows and columns that share a scale, where config.json does not say."""
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SCALE_TYPES = (
    *HALF_OR_FLOAT,
    *([torch.float8_e8m0fnu] if hasattr(torch, "float8_e8m0fnu") else []),
)
OBSTACLE = "MatMulNBits holds integers, not float8"


def open_fp8(
    config: Mapping[str, Any],
    tensors: Mapping[str, Weight],
    shapes: Mapping[str, tuple[int, ...]],
) -> Opened:
    """The weights of an FP8 checkpoint whose section `quantization_config` is `config`."""
    sides = read_tile(config.get("weight_block_size"))
    modules = group_modules(tensors, SCALES, ENDS)
    modules |= _without_scale(tensors, modules)
    opened = open_modules(tensors, modules, shapes, lambda item: read_fp8(item, sides, "FP8"))
    if any({"input_scale", "activation_scale"} & set(held) for held in modules.values()):
        opened.notes.append(ACTIVATIONS)
    return opened


ACTIVATIONS = "The checkpoint's scales of activations have no effect: only weights are read."


def read_tile(value: Any) -> tuple[int, int] | None:
    """Rows and columns that share a scale, as config.json states them; None where it does not."""
    if isinstance(value, list) and len(value) == 2 and all(map(is_count, value)):
        return value[0], value[1]
    return None


def _without_scale(
    tensors: Mapping[str, Weight], modules: Mapping[str, Any]
) -> dict[str, dict[str, Weight]]:
    """Modules whose float8 weight stands alone."""
    names = {
        name.removesuffix(".weight"): weight
        for name, weight in tensors.items()
        if name.endswith(".weight") and weight.dtype in FLOAT8
    }
    return {name: {"weight": weight} for name, weight in names.items() if name not in modules}


def read_fp8(module: Module, tile: tuple[int, int] | None, name: str) -> Weight:
    """A float8 matrix with its scales; `tile` is the rows and columns of one, None: not stated."""
    weight = module.need("weight", FLOAT8)
    end = next((end for end in SCALES if module.has(end)), SCALES[0])
    scale = module.need(end, SCALE_TYPES, (0, 1, 2))
    rows, columns = weight.shape
    expand, words = _expansion(scale, (rows, columns), tile, end)

    def read(index: torch.Tensor) -> torch.Tensor:
        return read_rows(weight, index).float() * expand(index)

    kind = str(weight.dtype).removeprefix("torch.")
    return StoredWeight((rows, columns), read, f"{name} ({kind}, {words})", weight.label, OBSTACLE)


def _expansion(
    scale: Weight, shape: tuple[int, int], tile: tuple[int, int] | None, end: str
) -> tuple[Callable[[torch.Tensor], torch.Tensor], str]:
    """What gives the scales of rows by their index, float32, to multiply with; and in words."""
    rows, columns = shape
    if scale.numel == 1:
        return lambda _: read_scalar(scale).float(), "one scale"
    if scale.shape in ((rows,), (rows, 1)) and (tile is None or tile[1] >= columns):
        return lambda index: read_rows(scale, index).float().reshape(-1, 1), "one scale a row"
    tall, wide = tile or TILE
    expected = (-(-rows // tall), -(-columns // wide))
    if scale.shape != expected:
        raise UnfitError(
            f"{end} of shape {tuple(scale.shape)} for a weight of {shape}",
            f"one value, ({rows}, 1), or {expected} for tiles of {tall} × {wide}",
            "correct weight_block_size in config.json, or fetch the weights that belong to it",
        )
    place = torch.arange(columns) // wide

    def by_tiles(index: torch.Tensor) -> torch.Tensor:
        held, position = torch.unique(index // tall, return_inverse=True)
        return read_rows(scale, held).float()[position][:, place]

    return by_tiles, f"tiles of {tall} × {wide}"
