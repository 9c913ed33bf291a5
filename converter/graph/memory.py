"""How much memory the steps of a conversion take, estimated from shapes.

The factors count the temporaries that live at the same time; `benchmarks/plan_accuracy.py` compares
the estimates with measured conversions.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

from converter.model.decoder import Decoder
from converter.quantization.quantized_matrix import QuantizedMatrix
from converter.weights.weight import GroupPart, Weight

CODES_BYTES = 30
"""Bytes per value of a tile while it is quantized: source, float32 copies, codes, packed codes."""
FINITE_BYTES = 3
"""Bytes per value of the masks that the check for NaN makes, besides one copy of the tile."""
THREAD_BYTES = 15_000_000
"""A worker's own share: tiles of the source, the allocator's reserve."""
RUNTIME_BYTES = 400_000_000
"""onnxruntime and transformers with their libraries, buffers and logits."""
SESSION_COPIES = 1.05
"""Bytes in memory per byte of weights in a session: kernels keep them in a form of their own."""
DEQUANTIZE_BYTES = 16
"""Bytes per value of a whole matrix while the reference reads it: four float32 copies."""


def writing_memory(weights: Iterable[Weight], threads: int | None) -> int:
    """Bytes that writing these weights takes; every thread works on a tile of its own."""
    tile = max((_tile_memory(weight) for weight in weights), default=0)
    return (threads or os.cpu_count() or 1) * (tile + THREAD_BYTES)


def _tile_memory(weight: Weight) -> int:
    if isinstance(weight, GroupPart) and isinstance(weight.group, QuantizedMatrix):
        start, stop = next(weight.group.tiles())
        return (stop - start) * weight.group.source.shape[1] * CODES_BYTES
    start, stop = next(iter(weight.tiles()), (0, 0))
    values = (stop - start) * math.prod(weight.shape[1:])
    copies = weight.dtype.itemsize + FINITE_BYTES if weight.dtype.is_floating_point else 0
    return values * (weight.dtype.itemsize + copies)


def session_memory(nbytes: int) -> int:
    """Bytes that the runtime takes for a model whose weights have `nbytes`."""
    return RUNTIME_BYTES + round(SESSION_COPIES * nbytes)


def reference_memory(decoder: Decoder) -> int:
    """Bytes that the reference takes: a layer in float32, and its largest matrix being read."""
    weights = decoder.weights.items()
    layer = [weight.numel for name, weight in weights if name.startswith("layers.0.")]
    return sum(layer) * 4 + max(layer) * DEQUANTIZE_BYTES
