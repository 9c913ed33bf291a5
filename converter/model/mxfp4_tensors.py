"""The tensors of a checkpoint in MXFP4, as those of the same checkpoint in bfloat16.

gpt-oss is published so: for a stack of experts, `NAME_blocks` and `NAME_scales` hold what would be
`NAME`, transposed. transformers reads it so too (its `integrations/mxfp4.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from converter.errors import Problem, raise_if
from converter.model.checkpoint import Checkpoint
from converter.weights.mxfp4 import BLOCK_BYTES, Mxfp4Weight
from converter.weights.stack import flatten_stack, stack_rows, transpose_each
from converter.weights.weight import Weight

METHOD = "mxfp4"
BLOCKS, SCALES = "_blocks", "_scales"


def without_mxfp4(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with lazy bfloat16 stacks (experts, columns, rows) for its pairs of tensors.

    One that config.json does not say is in MXFP4 stays as it is.

    Raises:
        ConvertError: blocks without scales, or of other shapes than MXFP4's.
    """
    if not is_mxfp4(checkpoint.config):
        return checkpoint
    tensors = dict(checkpoint.tensors)
    raise_if(_problems(tensors))
    for name in [name for name in tensors if name.endswith(BLOCKS)]:
        stem = name.removesuffix(BLOCKS)
        blocks, scales = tensors.pop(name), tensors.pop(stem + SCALES)
        matrix = Mxfp4Weight(flatten_stack(blocks), flatten_stack(scales))
        tensors[stem] = transpose_each(stack_rows(matrix, blocks.shape[0]))
    return replace(checkpoint, tensors=tensors)


def is_mxfp4(config: Mapping[str, Any]) -> bool:
    """Whether config.json says that experts are stored in MXFP4."""
    section = config.get("quantization_config")
    return isinstance(section, Mapping) and section.get("quant_method") == METHOD


def _problems(tensors: Mapping[str, Weight]) -> Iterator[Problem]:
    for name, blocks in tensors.items():
        scales = tensors.get(name.removesuffix(BLOCKS) + SCALES)
        if not name.endswith(BLOCKS) or _fit(blocks, scales):
            continue
        found = "missing" if scales is None else f"of shape {scales.shape}"
        yield Problem(
            f"{name} has shape {blocks.shape}, and its scales are {found}.",
            f"uint8 blocks (experts, rows, blocks, {BLOCK_BYTES}), with a uint8 scale each",
            "fetch the checkpoint again",
        )
        return


def _fit(blocks: Weight, scales: Weight | None) -> bool:
    return (
        scales is not None
        and blocks.dtype == scales.dtype == torch.uint8
        and len(blocks.shape) == 4
        and blocks.shape == (*scales.shape, BLOCK_BYTES)
    )
