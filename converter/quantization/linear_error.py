"""The record of what quantization cost one linear."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearError:
    """One quantized linear: its output error relative to the output, before and after calibration.

    `layer` is None for what stands outside the layers, such as lm_head.
    """

    layer: int | None
    linear: str
    before: float
    after: float
