"""Rotary position embedding: inverse frequencies and cos/sin caches.

Sources: RoFormer (arXiv 2104.09864) for the frequencies; transformers'
`modeling_rope_utils.py` for linear and dynamic NTK scaling, which InternLM2's own code equals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from converter.errors import Problem
from converter.model.json_schema import shown

Scaling = Literal["none", "linear", "dynamic"]
SCALINGS: dict[str, Scaling] = {"default": "none", "linear": "linear", "dynamic": "dynamic"}
"""config.json's `rope_type` to the scaling that it means."""
STRETCHED = ("linear", "dynamic")
"""Types that need a factor."""
LARGEST = 1e30
"""A larger base or factor is no number that a model was trained with."""


@dataclass(frozen=True)
class Rope:
    """Rotary parameters as config.json states them."""

    theta: float = 10000.0
    scaling: Scaling = "none"
    factor: float = 1.0

    def base(self, head_dim: int, length: int, max_position_embeddings: int) -> float:
        """The base for sequences of `length` tokens.

        Dynamic NTK: theta up to `max_position_embeddings`; past it
        theta·(factor·length/max − (factor − 1))^(d/(d−2)).
        """
        if self.scaling != "dynamic" or length <= max_position_embeddings:
            return self.theta
        stretch = self.factor * length / max_position_embeddings - (self.factor - 1)
        return float(self.theta * stretch ** (head_dim / max(head_dim - 2, 1)))

    def inverse_frequencies(
        self, head_dim: int, length: int, max_position_embeddings: int
    ) -> torch.Tensor:
        """float32 (head_dim / 2,): base^(−2i/d), for sequences of `length` tokens."""
        base = self.base(head_dim, length, max_position_embeddings)
        steps = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        inverse: torch.Tensor = 1.0 / (base**steps)
        return inverse / self.factor if self.scaling == "linear" else inverse

    def caches(
        self, head_dim: int, length: int, max_position_embeddings: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of position × frequency: two float32 (length, head_dim / 2)."""
        inverse = self.inverse_frequencies(head_dim, length, max_position_embeddings)
        angles = torch.outer(torch.arange(length, dtype=torch.float32), inverse)
        return angles.cos(), angles.sin()


def read_rope(config: Mapping[str, Any]) -> tuple[Rope, list[Problem]]:
    """Rope of a config.json, with what is wrong with it.

    Reads `rope_theta` and `rope_scaling` (null, linear, dynamic; `type` or `rope_type`),
    transformers 5's `rope_parameters`, and the first release's `rotary: {base, type}`.
    """
    section = _section(config)
    theta = section.get("rope_theta", section.get("base", config.get("rope_theta")))
    theta = 10000.0 if theta is None else theta
    kind = section.get("rope_type") or section.get("type") or "default"
    factor = section.get("factor", section.get("scaling_factor"))
    if factor is None and (kind not in STRETCHED or section is config.get("rotary")):
        factor = 1.0  # the first release's dynamic scaling states none
    problems = list(_problems(kind, theta, factor))
    if problems:
        return Rope(), problems
    return Rope(float(theta), SCALINGS[kind], float(factor)), []


def _section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in ("rope_scaling", "rope_parameters", "rotary"):
        if isinstance(config.get(key), Mapping):
            section: Mapping[str, Any] = config[key]
            return section
    return {}


def _problems(kind: Any, theta: Any, factor: Any) -> Iterator[Problem]:
    if not isinstance(kind, str) or kind not in SCALINGS:
        yield Problem(
            f"config.json asks for rope scaling of type {shown(kind)}.",
            "null, 'default', 'linear' or 'dynamic'",
            "choose a checkpoint with one of these, or add the type to converter/model/rope.py",
        )
    if not _is_number(theta) or theta <= 0:
        yield Problem(
            f"config.json has rope_theta={shown(theta)}.",
            "a positive number",
            "correct config.json",
        )
    if not _is_number(factor) or factor < 1:
        yield Problem(
            f"config.json has the rope scaling factor {shown(factor)}.",
            "a number of at least 1",
            "correct config.json",
        )


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float32 holds; JSON knows NaN, Infinity and 400 digits."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and -LARGEST <= value <= LARGEST
