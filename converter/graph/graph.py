"""The graph that passes hand on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from converter.model.decoder import Decoder
from converter.weights.weight import Weight


@dataclass(frozen=True)
class Graph:
    """An ONNX model whose initializers are lazy, with the decoder that it computes."""

    decoder: Decoder
    model: ir.Model
    context_length: int
    """Positions that the graph's cos/sin caches hold."""
    shipped: Mapping[str, Weight]
    """The decoder's canonical weights with the values that the graph holds, dequantized."""
