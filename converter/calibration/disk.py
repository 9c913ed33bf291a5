"""The room that a calibration takes in the cache's folder, from shapes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

from converter.calibration.sizes import Sizes, calibration_sizes
from converter.graph.formats import candidate_formats
from converter.graph.matrices import Matrix, graph_matrices, matrix_format
from converter.model.decoder import Decoder
from converter.quantization.rtn import BlockFormat
from converter.recipe.schema import Recipe
from converter.storage.cache import Cache, Entry

FLOAT = 4
"""Bytes of a float32: hidden states, gradients, H and the scales of spilled layers."""


def calibration_disk(recipe: Recipe, decoder: Decoder, cache: Cache) -> int:
    """Bytes that the disk of the cache has to have free before the run, at least.

    The gradients are gone when the losses of the formats are measured, and these when the walk
    begins; statistics and finished layers stay. What an earlier run of the same checkpoint has left
    of those is there already.
    """
    sizes = calibration_sizes(recipe, decoder)
    entries = [item for item in cache.entries_of(decoder.checkpoint) if _serves(item, recipe)]
    made, layers = _made(entries), layers_disk(recipe, decoder)
    if recipe.calibration.inputs == "float":
        kept = statistics_disk(sizes) + layers
        most = max(kept, statistics_disk(sizes) + hidden_disk(sizes))
    else:
        kept, most = layers, layers + walk_disk(sizes)
    walk = most - made if kept > made else 0
    weighted = recipe.quant.token_weights != "none" or recipe.quant.mixed
    fresh = all(item.key.get("entry") != "fisher" for item in entries)
    gradients = gradients_disk(sizes) if weighted and fresh else 0
    return max(0, walk, gradients, hidden_disk(sizes) if recipe.quant.mixed and fresh else 0)


def _serves(entry: Entry, recipe: Recipe) -> bool:
    """Whether a run of the recipe may find this entry of its checkpoint; a lower bound needs no
    more, so tokens and layout are not compared."""
    quant, own = entry.key.get("quant"), asdict(recipe.quant.without_budget())
    return entry.key.get("pass") == "quantize" and quant in (None, own)


def _made(entries: Iterable[Entry]) -> int:
    """Bytes of the statistics, and of the layers of one budget: the formats that has most."""
    by_formats: dict[str, int] = {}
    for entry in entries:
        formats = json.dumps(entry.key.get("forms"), sort_keys=True)
        by_formats[formats] = by_formats.get(formats, 0) + entry.nbytes
    return by_formats.pop("null", 0) + max(by_formats.values(), default=0)


def hidden_disk(sizes: Sizes) -> int:
    """The hidden states of all tokens, float32 (tokens, hidden_size): all that is spilled while
    the losses of formats or the statistics of the float model are measured."""
    return sizes.tokens * sizes.arch.hidden_size * FLOAT


def gradients_disk(sizes: Sizes) -> int:
    """Hidden states before every layer and after the last, in the products' type, all at once;
    and float32 gradients of one layer."""
    layers = sizes.arch.num_hidden_layers + 1
    states = layers * sizes.tokens * sizes.arch.hidden_size * sizes.itemsize
    return states + hidden_disk(sizes)


def statistics_disk(sizes: Sizes) -> int:
    """What `calibration.inputs=float` keeps of every layer and of lm_head: each stage's H, float32
    (columns, columns), and the held-back inputs, float32 (held tokens, columns)."""
    layers = sizes.arch.num_hidden_layers
    columns = [*list(sizes.inputs.values()) * layers, sizes.arch.hidden_size]
    return sum(count * (count + sizes.held) for count in columns) * FLOAT


def walk_disk(sizes: Sizes) -> int:
    """What the walk spills besides finished layers: hidden states, once as it computes on and
    once as the entry from which a killed run goes on, which is written before the one of the layer
    before goes; and within a layer the inputs of o_proj and down_proj, in the products' type."""
    inner = sizes.inputs["output"] + sizes.inputs["down"]
    return 2 * hidden_disk(sizes) + max(hidden_disk(sizes), sizes.tokens * inner * sizes.itemsize)


def layers_disk(recipe: Recipe, decoder: Decoder) -> int:
    """The entries of all finished layers and lm_head: packed codes, float32 scales, zero points
    of a byte each; under a budget each matrix in the smallest of its formats."""
    return sum(
        min((_entry_bytes(matrix, form) for form in _formats(matrix, recipe)), default=0)
        for matrix in graph_matrices(recipe, decoder)
    )


def _formats(matrix: Matrix, recipe: Recipe) -> list[BlockFormat]:
    if recipe.quant.mixed:
        return candidate_formats(matrix, recipe.quant)
    form = matrix_format(matrix.name, recipe.quant)
    return [form] if form else []


def _entry_bytes(matrix: Matrix, form: BlockFormat) -> int:
    blocks = form.blocks(matrix.columns)
    per_block = FLOAT if form.symmetric else FLOAT + 1
    return matrix.rows * (form.row_bytes(matrix.columns) + blocks * per_block)
