"""The rotation of a GGUF file as config.json states it.

llama.cpp stores the factors that Llama 3 and LongRoPE divide frequencies by as tensors. LongRoPE's
are config.json's own; of Llama 3's the numbers are found again from which they were made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from converter.errors import ConvertError, Problem
from converter.gguf.architectures import ROPE_FACTORS, ROPE_LONG, ROPE_SHORT
from converter.gguf.metadata import Metadata
from converter.weights.weight import Weight

THETA = 10000.0
"""llama.cpp's base where the file states none."""
LOCAL_THETA = 10000.0
"""Its base of layers with a window, in architectures where they have their own."""
RATIO = 4.0
"""Llama 3's high_freq_factor by its low_freq_factor, which is 1."""
ORIGINAL = 8192
"""Its original_max_position_embeddings."""
TOLERANCE = 1e-4
"""Relative difference of factors up to which numbers count as those that made them."""
YARN = {
    "yarn_attn_factor": "attention_factor",
    "attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


def rope_theta(metadata: Metadata) -> float:
    """The base of the rotation."""
    return float(metadata.number("rope.freq_base", THETA) or THETA)


def rope_scaling(
    metadata: Metadata, tensors: Mapping[str, Weight], columns: int
) -> dict[str, Any] | None:
    """The section `rope_scaling` of config.json; None where nothing is scaled.

    Args:
        metadata: of the architecture.
        tensors: the file's, by GGUF's names.
        columns: of a head that are rotated.

    Raises:
        ConvertError: the file states a scaling that config.json cannot.
    """
    kind = metadata.get("rope.scaling.type")
    original = metadata.get("rope.scaling.original_context_length")
    if ROPE_LONG in tensors or ROPE_SHORT in tensors:
        return _longrope(metadata, tensors, original)
    if ROPE_FACTORS in tensors:
        factors = tensors[ROPE_FACTORS].read().double()
        return _llama3(metadata, factors, columns)
    factor = metadata.number("rope.scaling.factor", metadata.number("rope.scale_linear"))
    if kind in (None, "none") and factor in (None, 0, 1):
        return None
    if kind in (None, "linear"):
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        found = {"rope_type": "yarn", "factor": factor}
        if original is not None:
            found["original_max_position_embeddings"] = original
        return found | _stated(metadata, YARN)
    raise metadata.refused("rope.scaling.type", kind, "none, linear or yarn")


def _stated(metadata: Metadata, keys: Mapping[str, str]) -> dict[str, Any]:
    read = {name: metadata.number(f"rope.scaling.{key}") for key, name in keys.items()}
    return {name: value for name, value in read.items() if value is not None}


def _longrope(metadata: Metadata, tensors: Mapping[str, Weight], original: Any) -> dict[str, Any]:
    absent = [name for name in (ROPE_LONG, ROPE_SHORT) if name not in tensors]
    if absent:
        raise ConvertError(
            Problem(
                f"{metadata.path} lacks the tensor {absent[0]}.",
                f"both {ROPE_LONG} and {ROPE_SHORT}",
                "fetch the file again",
            )
        )
    found: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": _numbers(tensors[ROPE_LONG]),
        "short_factor": _numbers(tensors[ROPE_SHORT]),
    }
    length, stated = metadata.get("context_length"), metadata.number("rope.scaling.attn_factor")
    if isinstance(original, int) and isinstance(length, int) and stated is not None:
        scale = max(length / original, 1.0)
        default = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        if not math.isclose(stated, default, rel_tol=1e-5):
            found["attention_factor"] = stated
    return found


def _numbers(weight: Weight) -> list[float]:
    """A tensor of float32 as the shortest numbers that round to it."""
    return [float(str(value)) for value in weight.read().float().numpy()]


def _llama3(metadata: Metadata, factors: torch.Tensor, columns: int) -> dict[str, Any] | None:
    """The numbers of Llama 3's scaling from the factors that they made, float64 (columns / 2,)."""
    factor = float(factors.max())
    if factor == 1:
        return None
    places = torch.arange(0, columns, 2, dtype=torch.float64) / columns
    frequencies = rope_theta(metadata) ** -places / (2 * math.pi)
    if len(factors) == len(frequencies):
        for guess in _guesses(factors, frequencies, factor):
            made = _factors(frequencies, factor, *guess)
            if torch.allclose(made, factors, rtol=TOLERANCE, atol=0):
                low, high, original = guess
                return {
                    "rope_type": "llama3",
                    "factor": float(f"{factor:.6g}"),
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                }
    raise ConvertError(
        Problem(
            f"{metadata.path} scales the rotation by factors ({ROPE_FACTORS}) that no numbers of "
            "Llama 3's formula make.",
            "factors as Llama 3.1 has them",
            "take the checkpoint that the file was made from, and give its folder",
        )
    )


def _factors(
    frequencies: torch.Tensor, factor: float, low: float, high: float, original: int
) -> torch.Tensor:
    """What Llama 3's formula divides frequencies (in turns a token) by."""
    smooth = ((original * frequencies - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def _guesses(
    factors: torch.Tensor, frequencies: torch.Tensor, factor: float
) -> list[tuple[float, float, int]]:
    """low_freq_factor, high_freq_factor and original length that may have made the factors.

    Between the two ends the smoothness is linear in the frequency, with the slope
    original / (high - low); only ratios of the three matter.
    """
    smooth = (1 / factors - 1 / factor) / (1 - 1 / factor)
    inside = (smooth > 1e-6) & (smooth < 1 - 1e-6)
    found = [(1.0, RATIO, ORIGINAL)]
    held, at = smooth[inside], frequencies[inside]
    if len(held):
        original = float((((RATIO - 1) * held + 1) / at).median())
        found.append((1.0, RATIO, round(original)))
    if len(held) > 1:
        slope = float((held[0] - held[-1]) / (at[0] - at[-1]))
        distance = ORIGINAL / slope
        low = float(ORIGINAL * at[0] - held[0] * distance)
        found.append((low, low + distance, ORIGINAL))
    return found
