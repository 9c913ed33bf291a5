"""Rotary position embedding: inverse frequencies and cos/sin caches.

Sources: RoFormer (arXiv 2104.09864) for the frequencies; dynamic NTK scaling as InternLM2's own
code has it; YaRN (arXiv 2309.00071); LongRoPE (arXiv 2402.13753) as Phi-3 ships it; Llama 3.1's
scaling from Meta's reference code. The tests compare all with transformers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from converter.errors import Problem
from converter.model.json_schema import shown

Scaling = Literal["none", "linear", "dynamic", "llama3", "yarn", "longrope"]
SCALINGS: dict[str, Scaling] = {
    "default": "none",
    "linear": "linear",
    "dynamic": "dynamic",
    "llama3": "llama3",
    "yarn": "yarn",
    "longrope": "longrope",
    "su": "longrope",
}
"""config.json's `rope_type` to the scaling that it means; `su` is longrope's first name."""
STRETCHED = ("linear", "dynamic", "llama3", "yarn")
"""Types that need a factor."""
LARGEST = 1e30
"""A larger base or factor is no number that a model was trained with."""
COMMON_KEYS = frozenset(
    {"rope_type", "type", "rope_theta", "base", "factor", "scaling_factor"}
    | {"partial_rotary_factor", "original_max_position_embeddings"}
)
NUMBERS: dict[Scaling, tuple[str, ...]] = {
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"),
    "longrope": ("attention_factor",),
}
"""Further numbers of a kind's section."""
ELSEWHERE = frozenset({"llama_4_scaling_beta", "max_position_embeddings"})
"""Keys that lie in rope sections and say nothing of the rotation; descriptions read them."""
LISTS = ("short_factor", "long_factor")
"""longrope's factors, one a pair of columns."""


@dataclass(frozen=True)
class Rope:
    """Rotary parameters as config.json states them."""

    theta: float = 10000.0
    scaling: Scaling = "none"
    factor: float | None = 1.0
    """None is the ratio of max_position_embeddings to `original`."""
    original: int | None = None
    """Positions before scaling; None means max_position_embeddings."""
    numbers: tuple[tuple[str, float], ...] = ()
    """Further numbers by their names in config.json."""
    truncate: bool = True
    """yarn: whether the corrected range is widened to whole columns."""
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()

    def base(self, columns: int, length: int, max_position_embeddings: int) -> float:
        """The base for sequences of `length` tokens.

        Dynamic NTK: theta up to `max_position_embeddings`; past it
        theta·(factor·length/max − (factor − 1))^(d/(d−2)).
        """
        if self.scaling != "dynamic" or length <= max_position_embeddings:
            return self.theta
        factor = self._factor(max_position_embeddings)
        stretch = factor * length / max_position_embeddings - (factor - 1)
        return float(self.theta * stretch ** (columns / max(columns - 2, 1)))

    def switch(self, length: int, max_position_embeddings: int) -> int | None:
        """The length past which longrope takes other frequencies, where `length` reaches it."""
        original = self._original(max_position_embeddings)
        return original if self.scaling == "longrope" and length > original else None

    def inverse_frequencies(
        self, columns: int, length: int, max_position_embeddings: int
    ) -> torch.Tensor:
        """float32 (columns / 2,): base^(−2i/d), scaled, for sequences of `length` tokens."""
        base = self.base(columns, length, max_position_embeddings)
        steps = torch.arange(0, columns, 2, dtype=torch.int64).float() / columns
        inverse: torch.Tensor = 1.0 / (base**steps)
        if self.scaling == "linear":
            return inverse / self._factor(max_position_embeddings)
        if self.scaling == "llama3":
            return self._llama3(inverse, max_position_embeddings)
        if self.scaling == "yarn":
            return self._yarn(inverse, columns, max_position_embeddings)
        if self.scaling == "longrope":
            past = length > self._original(max_position_embeddings)
            factors = torch.tensor(self.long if past else self.short, dtype=torch.float32)
            stretched: torch.Tensor = 1.0 / (factors * base**steps)
            return stretched
        return inverse

    def caches(
        self, columns: int, length: int, max_position_embeddings: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of position × frequency: two float32 (length, columns / 2).

        Where longrope switches (see `switch`), the rows of short sequences come first, and those
        of long ones behind them: two float32 (switch + length, columns / 2).
        """
        switch = self.switch(length, max_position_embeddings)
        rows = [self._angles(columns, length, length, max_position_embeddings)]
        if switch is not None:
            rows.insert(0, self._angles(columns, switch, switch, max_position_embeddings))
        angles, scale = torch.cat(rows), self._attention_factor(max_position_embeddings)
        return angles.cos() * scale, angles.sin() * scale

    def _angles(self, columns: int, rows: int, length: int, maximum: int) -> torch.Tensor:
        inverse = self.inverse_frequencies(columns, length, maximum)
        return torch.outer(torch.arange(rows, dtype=torch.float32), inverse)

    def _original(self, max_position_embeddings: int) -> int:
        return self.original or max_position_embeddings

    def _factor(self, max_position_embeddings: int) -> float:
        if self.factor is not None:
            return self.factor
        return max_position_embeddings / self._original(max_position_embeddings)

    def _number(self, name: str) -> float | None:
        return dict(self.numbers).get(name)

    def _llama3(self, inverse: torch.Tensor, maximum: int) -> torch.Tensor:
        """Long waves are stretched by the factor, short ones kept, those between blended."""
        low, high = self._number("low_freq_factor") or 1.0, self._number("high_freq_factor") or 4.0
        turns = self._original(maximum) * inverse / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return inverse * kept + inverse / self._factor(maximum) * (1 - kept)

    def _yarn(self, inverse: torch.Tensor, columns: int, maximum: int) -> torch.Tensor:
        """Blends interpolated and kept frequencies between two numbers of turns."""
        original, base = self._original(maximum), self.theta

        def column(turns: float) -> float:
            return columns * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

        low = column(self._number("beta_fast") or 32)
        high = column(self._number("beta_slow") or 1)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, columns - 1)
        places = torch.arange(columns // 2, dtype=torch.float32)
        ramp = ((places - low) / max(high - low, 0.001)).clamp(0, 1)
        return inverse / self._factor(maximum) * ramp + inverse * (1 - ramp)

    def _attention_factor(self, maximum: int) -> float:
        """What cosines and sines are multiplied with."""
        stated = self._number("attention_factor")
        if self.scaling not in ("yarn", "longrope") or stated is not None:
            return stated or 1.0
        factor = self._factor(maximum)
        if self.scaling == "longrope":
            logarithm = math.log(factor) / math.log(self._original(maximum)) if factor > 1 else 0.0
            return math.sqrt(1 + logarithm)
        scale, all_columns = self._number("mscale"), self._number("mscale_all_dim")
        if scale and all_columns:
            return _yarn_scale(factor, scale) / _yarn_scale(factor, all_columns)
        return _yarn_scale(factor, 1.0)


def _yarn_scale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def read_rope(section: Any, theta: Any, original: Any = None) -> tuple[Rope, list[Problem]]:
    """Rope of a config.json, with what is wrong with it.

    Args:
        section: how frequencies are scaled, such as config.json's `rope_scaling`; None or an
            object with `rope_type` (or `type`).
        theta: the base; None is 10000.
        original: positions before scaling, where the section does not say.
    """
    section = section if isinstance(section, Mapping) else {}
    theta = 10000.0 if theta is None else theta
    kind = section.get("rope_type") or section.get("type") or "default"
    factor = section.get("factor", section.get("scaling_factor"))
    if kind not in STRETCHED or "base" in section:  # the first release's rotary states none
        factor = None if kind == "longrope" and factor is None else factor or 1.0
    problems = list(_problems(kind, theta, factor, section))
    if problems:
        return Rope(), problems
    scaling = SCALINGS[kind]
    numbers = [(name, section[name]) for name in NUMBERS.get(scaling, ()) if _given(section, name)]
    own = section.get("original_max_position_embeddings", original)
    short, long = (tuple(section.get(name) or ()) for name in LISTS)
    return Rope(
        float(theta),
        scaling,
        None if factor is None else float(factor),
        own,
        tuple((name, float(value)) for name, value in numbers),
        section.get("truncate") is not False,
        *((short, long) if scaling == "longrope" else ()),
    ), []


def _given(section: Mapping[str, Any], name: str) -> bool:
    return section.get(name) is not None


def _problems(kind: Any, theta: Any, factor: Any, section: Mapping[str, Any]) -> Iterator[Problem]:
    if not isinstance(kind, str) or kind not in SCALINGS:
        yield Problem(
            f"config.json asks for rope scaling of type {shown(kind)}.",
            f"null, or one of {', '.join(repr(name) for name in SCALINGS)}",
            "choose a checkpoint with one of these, or add the type to converter/model/rope.py",
        )
        return
    if not _is_number(theta) or theta <= 0:
        yield Problem(
            f"config.json has rope_theta={shown(theta)}.",
            "a positive number",
            "correct config.json",
        )
    if (factor is not None or kind in STRETCHED) and (not _is_number(factor) or factor < 1):
        yield Problem(
            f"config.json has the rope scaling factor {shown(factor)}.",
            "a number of at least 1",
            "correct config.json",
        )
    yield from _section_problems(kind, section)


def _section_problems(kind: str, section: Mapping[str, Any]) -> Iterator[Problem]:
    numbers = NUMBERS.get(SCALINGS[kind], ())
    for name in numbers:
        if _given(section, name) and not _is_number(section[name]):
            yield _of_section(name, section[name], "a number")
    lists = LISTS if SCALINGS[kind] == "longrope" else ()
    for name in lists:
        value = section.get(name)
        if not isinstance(value, (list, tuple)) or not all(map(_is_number, value)):
            yield _of_section(name, value, "a list of numbers, one a pair of rotated columns")
    original = section.get("original_max_position_embeddings")
    if original is not None and (not _is_number(original) or original < 1):
        yield _of_section("original_max_position_embeddings", original, "a number of positions")
    known = {*COMMON_KEYS, *ELSEWHERE, *numbers, *lists, *(("truncate",) if kind == "yarn" else ())}
    for name, value in section.items():
        if name not in known and value is not None:
            yield _of_section(name, value, f"only keys that rope scaling of type {kind!r} reads")


def _of_section(name: str, value: Any, expected: str) -> Problem:
    found = f"config.json has {name}={shown(value)} in its rope section."
    return Problem(found, expected, f"correct {name} in config.json, or leave it out")


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float32 holds; JSON knows NaN, Infinity and 400 digits."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and -LARGEST <= value <= LARGEST
