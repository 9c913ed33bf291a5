"""GPTQ checkpoints, as AutoGPTQ and GPTQModel write them.

Layout (GPTQModel's `nn_modules/qlinear/__init__.py`, `PackableQuantLinear`), for a linear of
`in` columns and `out` rows, with n = 32 / bits integers in an int32, the earlier one in the lower
bits:
    qweight int32 (in / n, out): packed along the columns of the weight;
    qzeros int32 (groups, out / n): zero points, packed along the rows; stored minus one in the
    format `gptq` (v1), as they are in `gptq_v2`;
    scales float16 (groups, out);
    g_idx int32 (in,): the group of each column, which is not its place with act-order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from converter.errors import ConvertError, Problem
from converter.prequantized.integers import Integers, group_words, plain_groups, read_groups
from converter.prequantized.module import (
    HALF_OR_FLOAT,
    Module,
    Opened,
    UnfitError,
    group_modules,
    group_size_problems,
    matches,
    open_modules,
    same_shape,
    section,
    stated,
)
from converter.prequantized.rows import WORD, columns_in_words, read_columns, words_as_codes
from converter.weights.weight import ComputedWeight, Weight

ENDS = ("qweight", "qzeros", "scales", "g_idx")
V1, V2 = "gptq", "gptq_v2"
BITS = (4, 8)
ONES = {4: 0x11111111, 8: 0x01010101}
"""One in each integer of a word."""


@dataclass(frozen=True)
class GptqConfig:
    """What quantization_config says of a module."""

    bits: int
    group_size: int
    symmetric: bool
    minus_one: bool
    """Whether zero points are stored minus one."""
    ordered: bool
    """Whether columns were quantized in the order of their activations."""


def open_gptq(
    config: Mapping[str, Any],
    tensors: Mapping[str, Weight],
    shapes: Mapping[str, tuple[int, ...]],
) -> Opened:
    """The weights of a GPTQ checkpoint whose section `quantization_config` is `config`."""
    modules = group_modules(tensors, ("qweight",), ENDS)
    problems = _config_problems(config) if modules else []
    if problems:
        return Opened(dict(tensors), problems=problems)
    return open_modules(tensors, modules, shapes, lambda item: _read(item, _own(config, item.name)))


def _config_problems(config: Mapping[str, Any]) -> list[Problem]:
    found = list[Problem]()
    bits, form = config.get("bits"), _format(config)
    if bits not in BITS:
        found.append(
            Problem(
                f"quantization_config has bits={bits}.",
                "4 or 8 bits",
                "choose a checkpoint with 4 or 8 bits, or the unquantized one",
            )
        )
    found += group_size_problems(config.get("group_size"))
    if form not in (V1, V2):
        found.append(
            Problem(
                f"quantization_config has checkpoint_format={form}.",
                f"{V1} or {V2}",
                f"save the checkpoint in the format {V1}",
            )
        )
    return found


def _is_size(values: Mapping[str, Any]) -> bool:
    return not list(group_size_problems(values.get("group_size")))


def _format(config: Mapping[str, Any]) -> str:
    return str(stated(config, ("checkpoint_format", "format")) or V1)


def _own(config: Mapping[str, Any], module: str) -> GptqConfig:
    """The settings of a module: GPTQModel's `dynamic` has departures by regular expressions."""
    values = dict(config)
    for pattern, own in section(config.get("dynamic")).items():
        if not pattern.startswith("-:") and matches(pattern.removeprefix("+:"), module):
            values |= section(own)
            break
    for key, held in (("bits", values.get("bits") in BITS), ("group_size", _is_size(values))):
        if not held:
            raise UnfitError(
                f"{key}={values.get(key)} by quantization_config's dynamic",
                "4 or 8 bits, and a number of columns or -1",
                "choose a checkpoint with 4 or 8 bits, or the unquantized one",
            )
    return GptqConfig(
        values["bits"],
        values["group_size"],
        values.get("sym") is True,
        _format(values) == V1,
        values.get("desc_act") is True,
    )


def _read(module: Module, config: GptqConfig) -> Weight:
    qweight = module.need("qweight", (torch.int32,))
    scales = module.need("scales", HALF_OR_FLOAT)
    qzeros = module.need("qzeros", (torch.int32,))
    bits, count = config.bits, WORD // config.bits
    columns, rows = qweight.shape[0] * count, qweight.shape[1]
    size = columns if config.group_size == -1 else config.group_size
    number = -(-columns // size)
    why = f"{bits} bits and group_size={config.group_size} with qweight {tuple(qweight.shape)}"
    same_shape("scales", scales, (number, rows), why)
    same_shape("qzeros", qzeros, (number, -(-rows // count)), why)
    if config.symmetric:
        _check_symmetric(qzeros, rows // count, config)
    groups = _groups(module, columns, size, number, config)
    points = _plus_one(qzeros, bits) if config.minus_one else qzeros
    places = torch.arange(count)

    def zero_points(index: torch.Tensor) -> torch.Tensor:
        return columns_in_words(points, index, bits, places)

    order = "" if torch.equal(groups, plain_groups(columns, size)) else ", act-order"
    return Integers(
        (rows, columns),
        bits,
        groups,
        scales.dtype,
        lambda index: words_as_codes(read_columns(qweight, index)),
        lambda index: read_columns(scales, index),
        None if config.symmetric else zero_points,
        f"GPTQ ({bits} bits, {group_words(size, columns)}{order})",
        qweight.label,
        columnar=True,
    ).weight()


def _check_symmetric(qzeros: Weight, words: int, config: GptqConfig) -> None:
    """Refuse zero points other than 2^(bits−1), where config.json says that all are that.

    Those of a repository that is not fetched yet are taken for that. A row has `words` that are
    full; what pads another is not defined.
    """
    middle = 1 << (config.bits - 1)
    word = ONES[config.bits] * (middle - config.minus_one)
    with contextlib.suppress(ConvertError):
        if bool((qzeros.read()[:, :words].long() & 0xFFFFFFFF != word).any()):
            raise UnfitError(
                f"zero points other than {middle}, and config.json has sym=true",
                "zero points as quantization_config states them",
                "set sym to false in the quantization_config of config.json",
            )


def _groups(
    module: Module, columns: int, size: int, number: int, config: GptqConfig
) -> torch.Tensor:
    """int64 (columns,): the group of each column, from g_idx where the checkpoint has it."""
    if not module.has("g_idx"):
        return plain_groups(columns, size)
    index = module.need("g_idx", (torch.int32, torch.int64), (1,))
    return read_groups("g_idx", index, columns, size, number, config.ordered)


def _plus_one(qzeros: Weight, bits: int) -> Weight:
    """Words whose integers are one more, with the carry that GPTQModel's conversion has."""

    def compute(start: int, stop: int) -> torch.Tensor:
        return (qzeros.rows(start, stop).long() + ONES[bits]).to(torch.int32)

    return ComputedWeight(qzeros.shape, torch.int32, compute, qzeros.label)
