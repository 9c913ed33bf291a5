"""Keys and values as int8, with a scale for each channel of each layer.

GroupQueryAttention (onnxruntime's contrib operator, attributes `k_quant_type`, `v_quant_type` and
`kv_cache_bit_width`) rounds what it appends and reads int8 back. It takes the scales as constants.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from converter.graph.names import is_cache, layer_weight
from converter.graph.tensors import add_initializer
from converter.model.cache_ranges import CacheRanges

K_SCALE = 12
"""Place of `k_scale` among GroupQueryAttention's inputs; `v_scale` follows."""
LEVELS = 127
SMALLEST_RANGE = 1e-6
"""Keeps the scale of a channel that is always zero from being zero."""


def quantize_caches(model: ir.Model, ranges: Sequence[CacheRanges]) -> None:
    """Make the caches of the graph int8; `ranges` by layer."""
    graph = model.graph
    nodes = [node for node in graph if node.op_type == "GroupQueryAttention"]
    for layer, (node, found) in enumerate(zip(nodes, ranges, strict=True)):
        node.resize_inputs(K_SCALE + 2)
        for place, (kind, largest) in enumerate((("k", found.key), ("v", found.value))):
            scale = (largest.clamp(min=SMALLEST_RANGE) / LEVELS)[None, :, None, :]
            tensor = ir.tensor(scale.numpy(), name=layer_weight(layer, f"attn.{kind}_scale"))
            value = add_initializer(graph, tensor)
            node.replace_input_with(K_SCALE + place, value)
            node.attributes.add(ir.AttrString(f"{kind}_quant_type", "PER_CHANNEL"))
        node.attributes.add(ir.AttrInt64("kv_cache_bit_width", 8))
    for value in (*graph.inputs, *graph.outputs):
        if is_cache(value.name):
            value.type = ir.TensorType(ir.DataType.INT8)
