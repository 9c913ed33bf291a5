"""A quantized checkpoint as a float one: which format config.json states, and its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from converter.prequantized.awq import open_awq
from converter.prequantized.bitsandbytes import open_bitsandbytes
from converter.prequantized.compressed_tensors import open_compressed
from converter.prequantized.floats import open_fp8
from converter.prequantized.gptq import open_gptq
from converter.prequantized.module import Opened
from converter.weights.weight import Weight

SECTIONS = ("quantization_config", "compression_config")
"""Keys of config.json under which a format says what it did."""
READERS: dict[
    str,
    Callable[[Mapping[str, Any], Mapping[str, Weight], Mapping[str, tuple[int, ...]]], Opened],
] = {
    "awq": open_awq,
    "gptq": open_gptq,
    "compressed-tensors": open_compressed,
    "fp8": open_fp8,
    "fbgemm_fp8": open_fp8,
    "bitsandbytes": open_bitsandbytes,
}
"""By the section's `quant_method`."""


def quantized_section(config: Mapping[str, Any]) -> str | None:
    """The key of config.json's section in a format that is read here; None for any other."""
    for key in SECTIONS:
        section = config.get(key)
        if isinstance(section, Mapping) and section.get("quant_method") in READERS:
            return key
    return None


def open_quantized(
    config: Mapping[str, Any],
    tensors: Mapping[str, Weight],
    shapes: Mapping[str, tuple[int, ...]],
) -> Opened:
    """A checkpoint's tensors with every quantized module as one weight, `MODULE.weight`.

    Args:
        config: config.json; one in no format that is read here changes nothing.
        tensors: by the checkpoint's names.
        shapes: of the tensors by name, as config.json implies them.
    """
    key = quantized_section(config)
    if key is None:
        return Opened(dict(tensors))
    section = config[key]
    return READERS[section["quant_method"]](section, tensors, shapes)
