"""Caches of a graph as int8; tests/passes/test_kv_cache.py runs such graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from converter.graph.int8_cache import K_SCALE, quantize_caches
from converter.graph.names import is_cache, layer_weight
from converter.model.cache_ranges import CacheRanges

HEADS, HEAD_DIM = 2, 16


def ranges(layers: int) -> list[CacheRanges]:
    """Ranges that tell layers, keys, heads and channels apart; one channel is always zero."""
    found = []
    for layer in range(layers):
        key = torch.arange(HEADS * HEAD_DIM).reshape(HEADS, HEAD_DIM) + 100.0 * layer
        found.append(CacheRanges(key, key + 1000))
    return found


def test_every_layer_has_its_own_scales_where_attention_takes_them(
    build: Callable[..., Any],
) -> None:
    graph, given = build().model.graph, ranges(2)
    quantize_caches(build().model, given)  # another graph: nothing is shared
    assert not any("scale" in name for name in graph.initializers)
    model = build().model
    quantize_caches(model, given)
    nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    for layer, (node, item) in enumerate(zip(nodes, given, strict=True)):
        assert len(node.inputs) == K_SCALE + 2
        for place, (kind, largest) in enumerate((("k", item.key), ("v", item.value))):
            value = node.inputs[K_SCALE + place]
            assert value is model.graph.initializers[layer_weight(layer, f"attn.{kind}_scale")]
            scale = value.const_value.numpy()
            assert (scale.shape, scale.dtype) == ((1, HEADS, 1, HEAD_DIM), np.float32)
            expected = (largest / 127).numpy()[None, :, None]
            assert np.allclose(scale, np.maximum(expected, scale.min()), rtol=1e-6)
            assert scale.min() > 0
            assert node.attributes[f"{kind}_quant_type"].as_string() == "PER_CHANNEL"
        assert node.attributes["kv_cache_bit_width"].as_int() == 8


def test_only_the_caches_change_their_type(build: Callable[..., Any]) -> None:
    model = build().model
    graph = model.graph
    before = {value.name: value.dtype for value in (*graph.inputs, *graph.outputs)}
    quantize_caches(model, ranges(2))
    after = {value.name: value.dtype for value in (*graph.inputs, *graph.outputs)}
    assert {name for name in before if before[name] != after[name]} == set(filter(is_cache, before))
    assert {after[name] for name in after if is_cache(name)} == {ir.DataType.INT8}


@pytest.mark.parametrize("layers", [1, 3])
def test_ranges_of_other_layers_than_the_graphs_are_no_good(
    build: Callable[..., Any], layers: int
) -> None:
    with pytest.raises(ValueError):
        quantize_caches(build().model, ranges(layers))
