"""kv_cache: keys and values as int8, with a scale for each channel of each layer.

The scales are constants of the graph. They come from the ranges on the calibration text, of the
weights that the folder holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from converter.calibration.tokens import calibration_tokens
from converter.engine.contract import Done, Pass, Run
from converter.engine.estimates import RUNTIME_BYTES, reference_memory
from converter.errors import ConvertError, Problem
from converter.graph.graph import Graph
from converter.graph.int8_cache import quantize_caches
from converter.model.cache_ranges import CacheRanges, cache_ranges
from converter.model.decoder import Decoder
from converter.model.reference import Reference, reference_problems
from converter.recipe.schema import Recipe
from converter.text.texts import load_text

TOKENS = 4096
"""Calibration tokens read at most; a range settles sooner than H does."""


class QuantizeCache(Pass[Graph, Graph]):
    """Keys and values of the cache become int8, a quarter of fp32's memory and half of fp16's."""

    name = "kv_cache"
    slot = "target"
    changes_input = True
    guarantees = (
        "every layer's keys and values are int8, with a scale per channel",
        "the scale of a key's channel holds at every position: rotation cannot leave its range",
    )

    def enabled(self, recipe: Recipe) -> bool:
        return recipe.target.kv_cache == "int8"

    def requires(self, recipe: Recipe, decoder: Decoder | None) -> Iterable[Problem]:
        if decoder is not None:
            yield from reference_problems(decoder)
        try:
            load_text(recipe.calibration.text, half="calibration")
        except ConvertError as error:
            yield from error.problems

    def run(self, artifact: Graph, run: Run) -> Done[Graph]:
        tokens = calibration_tokens(artifact.decoder, run.recipe.calibration)
        some = tokens.ids[:: math.ceil(tokens.ids.numel() / TOKENS)]
        reference = Reference(artifact.decoder, artifact.shipped)
        ranges = cache_ranges(reference, some, run.progress.advance)
        quantize_caches(artifact.model, ranges)
        facts = {
            "tokens": int(some.numel()),
            "largest_key": max(float(item.key.max()) for item in ranges),
            "largest_value": max(float(item.value.max()) for item in ranges),
        }
        return Done(artifact, facts)

    def preview(self, artifact: Graph, run: Run) -> Graph:
        """The same types and shapes, with scales of one."""
        arch = artifact.decoder.architecture
        ones = torch.ones(arch.num_key_value_heads, arch.head_dim)
        quantize_caches(artifact.model, [CacheRanges(ones, ones)] * arch.num_hidden_layers)
        return artifact

    def peak_memory(self, graph: Graph, recipe: Recipe) -> int | None:
        return RUNTIME_BYTES + reference_memory(graph.decoder)
