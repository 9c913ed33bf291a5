"""The slot `benchmark` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class BenchmarkSettings:
    """Measuring the finished folder's speed on this machine."""

    enabled: bool = False
    """Measure the folder before it is published."""
    prompt_lengths: list[int] = field(default_factory=lambda: [16, 128, 512])
    """Tokens of the prompts whose time to first token is measured."""
    new_tokens: int = 64
    """Tokens generated to measure decoding."""
    rounds: int = 3
    """Processes started, each measuring everything once; medians are reported."""
