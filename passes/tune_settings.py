"""The slot `tune` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class TuneSettings:
    """Measuring on this machine which formats and runtime settings are the fastest."""

    enabled: bool = False
    """Try threads, spinning and chunk size; keep the fastest."""
    block_sizes: list[int] = field(default_factory=list)
    """Values of quant.block_size to choose from, besides the recipe's own. Every variant takes the
    room of the result on the disk while it is measured."""
    head_bits: list[Literal[4, 8]] = field(default_factory=list)
    """Values of quant.lm_head.bits to choose from, besides the recipe's own."""
