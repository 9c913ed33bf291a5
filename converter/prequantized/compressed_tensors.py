"""Checkpoints of compressed-tensors, as llm-compressor writes them.

Layout (compressed-tensors' `compressors/pack_quantized`, `naive_quantized`), for a linear of `in`
columns and `out` rows:
    pack-quantized: weight_packed int32 (out, ceil(in · bits / 32)), codes + 2^(bits−1), the earlier
    column in the lower bits; weight_shape int64 (2,), (out, in); weight_zero_point int32, packed
    alike along the rows, (ceil(out · bits / 32), groups);
    int-quantized: weight int8 (out, in), weight_zero_point int8 (out, groups);
    float-quantized: weight float8_e4m3fn (out, in);
    all: weight_scale (out, groups), (out, 1) or one value; weight_g_idx int32 (in,) where the
    groups are those of act-order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from converter.errors import ConvertError, Problem
from converter.prequantized.floats import ACTIVATIONS, read_fp8, read_tile
from converter.prequantized.integers import (
    Integers,
    Reader,
    group_words,
    plain_groups,
    read_groups,
)
from converter.prequantized.module import (
    FETCH,
    HALF_OR_FLOAT,
    Module,
    Opened,
    UnfitError,
    group_modules,
    is_count,
    matches,
    open_modules,
    same_shape,
    section,
)
from converter.prequantized.rows import WORD, pick_codes, read_rows, read_scalar, words_as_codes
from converter.weights.weight import Weight

ENDS = (
    *("weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_g_idx"),
    *("weight", "input_scale", "input_zero_point", "output_scale", "output_zero_point"),
)
MARKS = ("weight_packed", "weight_scale")
PACKED, INTEGERS, FLOATS = "pack-quantized", "int-quantized", "float-quantized"
FORMATS = (PACKED, INTEGERS, FLOATS, "naive-quantized", "mixed-precision")
CACHE_SCALES = (".k_scale", ".v_scale", ".q_scale", ".k_zero_point", ".v_zero_point")
"""Ends of the names of what quantizes the key-value cache."""
STRATEGIES = ("group", "channel", "tensor", "block")


@dataclass(frozen=True)
class Scheme:
    """The section `weights` of one of quantization_config's config_groups."""

    bits: int
    symmetric: bool
    strategy: str
    group_size: int
    tile: tuple[int, int] | None
    integers: bool


def open_compressed(
    config: Mapping[str, Any],
    tensors: Mapping[str, Weight],
    shapes: Mapping[str, tuple[int, ...]],
) -> Opened:
    """The weights of a checkpoint of compressed-tensors; `config` is its section."""
    rest = {name: item for name, item in tensors.items() if not name.endswith(CACHE_SCALES)}
    modules = group_modules(rest, MARKS, ENDS)
    problems = _config_problems(config) if modules else []
    if problems:
        return Opened(dict(tensors), problems=problems)
    opened = open_modules(rest, modules, shapes, lambda item: _read(item, _scheme(config, item)))
    groups = section(config.get("config_groups")).values()
    if any(section(group).get("input_activations") for group in groups):
        opened.notes.append(ACTIVATIONS)
    if len(rest) < len(tensors) or config.get("kv_cache_scheme"):
        opened.notes.append("The checkpoint's scales of keys and values have no effect.")
    return opened


def _config_problems(config: Mapping[str, Any]) -> list[Problem]:
    found, form = list[Problem](), config.get("format", PACKED)
    if form not in FORMATS:
        found.append(
            Problem(
                f"quantization_config has format={form} for compressed-tensors.",
                f"one of {', '.join(FORMATS)}",
                "choose a checkpoint in one of them, or the unquantized one",
            )
        )
    sparse = section(config.get("sparsity_config")).get("format", "dense")
    if sparse != "dense":
        found.append(
            Problem(
                f"quantization_config has a sparsity_config with format={sparse}.",
                "weights that are stored in full",
                "choose a checkpoint without sparsity, or the unquantized one",
            )
        )
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        found.append(
            Problem(
                "quantization_config has no config_groups.",
                "a group with targets and weights, as compressed-tensors writes it",
                "fetch config.json again",
            )
        )
    return found


def _scheme(config: Mapping[str, Any], module: Module) -> Scheme:
    """The scheme whose targets fit a module: a class's name, a module's, or re:PATTERN."""
    groups = [section(group) for group in config["config_groups"].values()]
    fitting = [group for group in groups if _fits(group.get("targets"), module.name)]
    if not fitting:
        raise UnfitError(
            "no group of quantization_config whose targets fit",
            "targets such as Linear, or re: and a pattern",
            "correct config_groups in config.json",
        )
    weights = section(fitting[0].get("weights"))
    strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "tensor")
    if strategy not in STRATEGIES:
        raise UnfitError(
            f"the strategy {strategy}",
            f"one of {', '.join(STRATEGIES)}",
            "choose the unquantized checkpoint",
        )
    return Scheme(
        bits=weights.get("num_bits", 8),
        symmetric=weights.get("symmetric", True) is True,
        strategy=strategy,
        group_size=int(weights["group_size"]) if is_count(weights.get("group_size")) else -1,
        tile=read_tile(weights.get("block_structure")),
        integers=weights.get("type", "int") == "int",
    )


def _fits(targets: Any, name: str) -> bool:
    """Whether a module is among the targets; the name of their class stands for all linears."""
    held = [str(target) for target in targets] if isinstance(targets, list) else []
    return any(
        matches(target[3:], name) if target.startswith("re:") else target in (name, "Linear")
        for target in held
    )


def _read(module: Module, scheme: Scheme) -> Weight:
    if not scheme.integers:
        return read_fp8(module, scheme.tile, "compressed-tensors")
    if scheme.bits not in (4, 8):
        raise UnfitError(
            f"num_bits={scheme.bits} by config.json", "4 or 8 bits", "choose another checkpoint"
        )
    if module.has("weight_packed"):
        shape, codes = _packed(module, scheme)
    else:
        shape, codes = _plain(module)
    rows, columns = shape
    size = scheme.group_size if scheme.strategy == "group" else columns
    if scheme.strategy == "block" or size < 1:
        raise UnfitError(
            f"the strategy {scheme.strategy} with group_size={size} for integers",
            "group with a group size, channel or tensor",
            "choose the unquantized checkpoint",
        )
    number = -(-columns // size)
    scale = module.need("weight_scale", HALF_OR_FLOAT, (0, 1, 2))
    whole = scheme.strategy == "tensor" and scale.numel == 1
    if not whole:
        why = f"the strategy {scheme.strategy} with group_size={size}"
        same_shape("weight_scale", scale, (rows, number), why)

    def scales(index: torch.Tensor) -> torch.Tensor:
        if whole:
            return read_scalar(scale).expand(len(index), 1)
        return read_rows(scale, index)

    groups, points = _groups(module, columns, size, number), None
    if not scheme.symmetric:
        points = _zero_points(module, scheme.bits, rows, number)
    order = "" if torch.equal(groups, plain_groups(columns, size)) else ", act-order"
    words = "one scale" if whole else group_words(size, columns)
    return Integers(
        shape,
        scheme.bits,
        groups,
        scale.dtype,
        codes,
        scales,
        points,
        f"compressed-tensors ({scheme.bits} bits, {words}{order})",
        scale.label,
    ).weight()


def _packed(module: Module, scheme: Scheme) -> tuple[tuple[int, int], Reader]:
    packed = module.need("weight_packed", (torch.int32,))
    rows, columns = packed.shape[0], packed.shape[1] * WORD // scheme.bits
    if module.has("weight_shape"):
        stated = module.need("weight_shape", (torch.int64, torch.int32), (1,))
        same_shape("weight_shape", stated, (2,), "rows and columns")
        try:
            found = tuple(stated.read().tolist())
        except ConvertError:  # of a repository that is not fetched yet
            found = (rows, columns)
        if found != (rows, columns):
            raise UnfitError(
                f"weight_shape {found} with weight_packed {tuple(packed.shape)}",
                f"({rows}, {columns}), the columns a multiple of {WORD // scheme.bits}",
                FETCH,
            )
    return (rows, columns), lambda index: words_as_codes(read_rows(packed, index))


def _plain(module: Module) -> tuple[tuple[int, int], Reader]:
    """int8 in two's complement, whose highest bit flipped gives code + 128."""
    weight = module.need("weight", (torch.int8,))
    rows, columns = weight.shape
    return (rows, columns), lambda index: read_rows(weight, index).view(torch.uint8) ^ 0x80


def _zero_points(module: Module, bits: int, rows: int, number: int) -> Reader:
    """Zero points by rows, uint8 (n, groups); stored in two's complement or packed as the codes."""
    point = module.need("weight_zero_point", (torch.int32, torch.int8))
    why = f"{number} groups of {rows} rows"
    if point.dtype == torch.int8:
        same_shape("weight_zero_point", point, (rows, number), why)
        middle = 1 << (bits - 1)
        return lambda index: (read_rows(point, index).short() + middle).to(torch.uint8)
    count = WORD // bits
    same_shape("weight_zero_point", point, (-(-rows // count), number), why)

    def packed(index: torch.Tensor) -> torch.Tensor:
        held, position = torch.unique(index // count, return_inverse=True)
        shifts = (index % count * bits).to(torch.int32).unsqueeze(1)
        return pick_codes(read_rows(point, held)[position], shifts, bits)

    return packed


def _groups(module: Module, columns: int, size: int, number: int) -> torch.Tensor:
    if not module.has("weight_g_idx"):
        return plain_groups(columns, size)
    index = module.need("weight_g_idx", (torch.int32, torch.int64), (1,))
    return read_groups("weight_g_idx", index, columns, size, number, ordered=True)
