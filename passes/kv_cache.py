"""kv_cache: keys and values as int8, with a scale for each channel of each layer.

GroupQueryAttention (onnxruntime's contrib operator, attributes `k_quant_type`, `v_quant_type` and
`kv_cache_bit_width`) rounds what it appends and reads int8 back. It takes the scales as constants,
so they come from the ranges on the calibration text, of the weights that the folder holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import onnx_ir as ir
import torch

from converter.calibration.tokens import calibration_tokens
from converter.engine.artifacts import Graph
from converter.engine.engine import Pass, Run
from converter.engine.memory import RUNTIME_BYTES, reference_memory
from converter.errors import ConvertError, Problem
from converter.model.cache_ranges import CacheRanges, cache_ranges
from converter.model.decoder import Decoder
from converter.model.reference import Reference
from converter.recipe.schema import Recipe
from converter.text.texts import load_text

K_SCALE = 12
"""Place of `k_scale` among GroupQueryAttention's inputs; `v_scale` follows."""
LEVELS = 127
TOKENS = 4096
"""Calibration tokens read at most; a range settles sooner than H does."""
SMALLEST_RANGE = 1e-6
"""Keeps the scale of a channel that is always zero from being zero."""


class QuantizeCache(Pass[Graph, Graph]):
    """Keys and values of the cache become int8, a quarter of fp32's memory and half of fp16's."""

    name = "kv_cache"
    takes = Graph
    gives = Graph
    slot = "target"
    guarantees = (
        "every layer's keys and values are int8, with a scale per channel",
        "the scale of a key's channel holds at every position: rotation cannot leave its range",
    )

    def enabled(self, recipe: Recipe) -> bool:
        return recipe.target.kv_cache == "int8"

    def requires(self, recipe: Recipe, decoder: Decoder | None) -> Iterable[Problem]:
        try:
            load_text(recipe.calibration.text, half="calibration")
        except ConvertError as error:
            yield from error.problems

    def run(self, artifact: Graph, run: Run) -> Graph:
        tokens = calibration_tokens(artifact.decoder, run.recipe.calibration)
        some = tokens.ids[:: math.ceil(tokens.ids.numel() / TOKENS)]
        reference = Reference(artifact.decoder.architecture, artifact.shipped)
        ranges = cache_ranges(reference, some, run.progress.advance)
        quantize_caches(artifact.model, ranges)
        run.facts[self.name] = {
            "tokens": int(some.numel()),
            "largest_key": max(float(item.key.max()) for item in ranges),
            "largest_value": max(float(item.value.max()) for item in ranges),
        }
        return artifact

    def preview(self, artifact: Graph, run: Run) -> Graph:
        """The same types and shapes, with scales of one."""
        arch = artifact.decoder.architecture
        ones = torch.ones(arch.num_key_value_heads, arch.head_dim)
        quantize_caches(artifact.model, [CacheRanges(ones, ones)] * arch.num_hidden_layers)
        return artifact

    def peak_memory(self, graph: Graph, recipe: Recipe) -> int | None:
        return RUNTIME_BYTES + reference_memory(graph.decoder)


def quantize_caches(model: ir.Model, ranges: Sequence[CacheRanges]) -> None:
    """Make the caches of the graph int8; `ranges` by layer."""
    graph = model.graph
    nodes = [node for node in graph if node.op_type == "GroupQueryAttention"]
    for layer, (node, found) in enumerate(zip(nodes, ranges, strict=True)):
        node.resize_inputs(K_SCALE + 2)
        for place, (kind, largest) in enumerate((("k", found.key), ("v", found.value))):
            scale = (largest.clamp(min=SMALLEST_RANGE) / LEVELS)[None, :, None, :]
            name = f"model.layers.{layer}.attn.{kind}_scale"
            tensor = ir.tensor(scale.numpy(), name=name)
            value = ir.Value(
                name=name,
                shape=ir.Shape(scale.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            graph.register_initializer(value)
            node.replace_input_with(K_SCALE + place, value)
            node.attributes.add(ir.AttrString(f"{kind}_quant_type", "PER_CHANNEL"))
        node.attributes.add(ir.AttrInt64("kv_cache_bit_width", 8))
    for value in (*graph.inputs, *graph.outputs):
        if str(value.name).startswith(("past_key_values.", "present.")):
            value.type = ir.TensorType(ir.DataType.INT8)
