"""The formats that tuning may choose from, as folders that can be measured.

A kernel's speed depends on the shape of the codes, not on their values, so each variant is rounded
to nearest, whatever the recipe's scheme.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from converter.graph.formats import quantized_bytes
from converter.graph.graph import Graph
from converter.graph.quantized_operators import quantized_graph
from converter.graph.template import build_graph
from converter.model.decoder import Decoder
from converter.output.genai_config import TokenIds, genai_config
from converter.output.model_writer import write_model
from converter.recipe.schema import QuantConfig, Recipe
from converter.speed.benchmarking import CONFIG

BLOCK_SIZE = "quant.block_size"
HEAD_BITS = "quant.lm_head.bits"
ANY_TOKENS = TokenIds(bos=1, eos=(2,), pad=2)
"""A trial generates a fixed number of tokens, whatever they are."""


def unchanged(folder: Path) -> AbstractContextManager[Path]:
    """The folder as it is, for `race`."""
    return nullcontext(folder)


def choices(
    quant: QuantConfig, block_sizes: Sequence[int], head_bits: Sequence[int]
) -> dict[str, list[int]]:
    """Values to try for each setting that is opened, the recipe's own first."""
    own = formats(quant)
    opened: dict[str, Sequence[int]] = {
        BLOCK_SIZE: block_sizes,
        HEAD_BITS: head_bits,
    }
    tried = {name: dict.fromkeys((own[name], *values)) for name, values in opened.items() if values}
    return {name: list(values) for name, values in tried.items()}


def formats(quant: QuantConfig) -> dict[str, int]:
    """The settings that are tried, as `quant` has them."""
    return {BLOCK_SIZE: quant.block_size, HEAD_BITS: quant.lm_head.bits or quant.bits}


def changed(quant: QuantConfig, setting: str, value: int) -> QuantConfig:
    """`quant` with another block size or another precision of the head."""
    if setting == BLOCK_SIZE:
        return replace(quant, block_size=value)
    head = replace(quant.lm_head, bits=cast(Literal[4, 8, 16], value))
    return replace(quant, lm_head=head)


def variant_bytes(recipe: Recipe, decoder: Decoder, opened: Mapping[str, Sequence[int]]) -> int:
    """Bytes of the variants that lie on the disk at a time, at least: those of one setting.

    Which value of a setting wins is not known yet; the next setting's variants are counted as if
    the smallest did.
    """
    largest, quant = 0, recipe.quant
    for setting, values in opened.items():
        variants = [changed(quant, setting, value) for value in values]
        sizes = [quantized_bytes(replace(recipe, quant=variant), decoder) for variant in variants]
        largest = max(largest, sum(sizes))
        quant = variants[sizes.index(min(sizes))]
    return largest


def write_variant(artifact: Graph, recipe: Recipe, folder: Path) -> None:
    """Write what the runtime needs to generate from token ids, rounded to nearest."""
    folder.mkdir()
    built = build_graph(artifact.decoder, recipe)
    write_model(quantized_graph(built, recipe).model, folder, recipe.threads)
    arch, length = artifact.decoder.architecture, artifact.context_length
    config = genai_config(arch, length, recipe.target, ANY_TOKENS, {})
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
