"""AWQ checkpoints in AutoAWQ's layout `gemm`.

Layout (AutoAWQ's `awq/modules/linear/gemm.py`, transformers' AWQ integration), for a linear of `in`
columns and `out` rows, with eight 4-bit integers in an int32:
    qweight int32 (in, out / 8): packed along the rows of the weight;
    qzeros int32 (groups, out / 8): zero points, as they are;
    scales float16 (groups, out).
Of eight neighbours, those at 0, 2, 4, 6, 1, 3, 5, 7 follow each other from the lowest bits on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from converter.errors import Problem
from converter.prequantized.integers import Integers, group_words, plain_groups
from converter.prequantized.module import (
    HALF_OR_FLOAT,
    Module,
    Opened,
    group_modules,
    group_size_problems,
    open_modules,
    same_shape,
    stated,
)
from converter.prequantized.rows import columns_in_words, read_columns
from converter.quantization.rtn import pack
from converter.weights.weight import Weight

ENDS = ("qweight", "qzeros", "scales")
BITS, IN_A_WORD = 4, 8
PLACES = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
"""The place in a word of each of eight neighbours, counted from the lowest bits."""


def open_awq(
    config: Mapping[str, Any],
    tensors: Mapping[str, Weight],
    shapes: Mapping[str, tuple[int, ...]],
) -> Opened:
    """The weights of an AWQ checkpoint whose section `quantization_config` is `config`."""
    bits = stated(config, ("bits", "w_bit"))
    version = str(stated(config, ("version", "format", "checkpoint_format")) or "gemm").lower()
    group_size = stated(config, ("group_size", "q_group_size"))
    problems = list[Problem]()
    if bits not in (None, BITS):
        problems.append(
            Problem(
                f"quantization_config has bits={bits} for awq.",
                "4 bits",
                "choose a checkpoint with 4 bits, or the unquantized one",
            )
        )
    if version != "gemm":
        problems.append(
            Problem(
                f"quantization_config has version={version} for awq.",
                "gemm, the layout that is published most",
                "save the checkpoint in the version gemm",
            )
        )
    problems += group_size_problems(group_size)
    modules = group_modules(tensors, ("qweight",), ENDS)
    if problems and modules:
        return Opened(dict(tensors), problems=problems)
    return open_modules(tensors, modules, shapes, lambda module: _read(module, group_size))


def _read(module: Module, group_size: int) -> Weight:
    qweight = module.need("qweight", (torch.int32,))
    scales = module.need("scales", HALF_OR_FLOAT)
    qzeros = module.need("qzeros", (torch.int32,))
    columns, rows = qweight.shape[0], qweight.shape[1] * IN_A_WORD
    size = columns if group_size == -1 else group_size
    number = -(-columns // size)
    why = f"group_size={group_size} with qweight {tuple(qweight.shape)}"
    same_shape("scales", scales, (number, rows), why)
    same_shape("qzeros", qzeros, (number, qweight.shape[1]), why)
    return Integers(
        (rows, columns),
        BITS,
        plain_groups(columns, size),
        scales.dtype,
        lambda index: pack(columns_in_words(qweight, index, BITS, PLACES), BITS),
        lambda index: read_columns(scales, index),
        lambda index: columns_in_words(qzeros, index, BITS, PLACES),
        f"AWQ ({BITS} bits, {group_words(size, columns)})",
        qweight.label,
        columnar=True,
    ).weight()
