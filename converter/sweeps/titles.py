"""What columns are called, and in which unit, where people read them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from converter.sweeps.sweep import QUALITY, SIZE, Row

_TITLES = [
    (re.escape(SIZE), "size, MB", 1e-6),
    (re.escape(QUALITY), "mean KL divergence, nats per token", 1.0),
    (r"benchmark\.decode_tokens_per_second(\.median)?", "decoding, tokens per second", 1.0),
    (r"evaluate\.top1_agreement", "same top token, %", 100.0),
    (r"evaluate\.perplexity", "perplexity", 1.0),
    (r"benchmark\.first_token_seconds\.(\d+)\.median", r"first token after \1, ms", 1e3),
    (r"benchmark\.peak_bytes", "peak memory, MB", 1e-6),
    (r"seconds", "conversion, s", 1.0),
]
"""Column, title with its unit, and how many of these units the column's own is; what one chooses
by comes first."""


def title_of(name: str) -> str:
    """A column's title; one that nobody described is called as it is."""
    for pattern, title, _ in _TITLES:
        if match := re.fullmatch(pattern, name):
            return match.expand(title)
    return name


def scaled(name: str, value: float) -> float:
    """A column's value in the unit of its title."""
    for pattern, _, factor in _TITLES:
        if re.fullmatch(pattern, name):
            return value * factor
    return value


def by_weight(names: Iterable[str]) -> list[str]:
    """The columns in the order of their titles here; those without one follow as they came."""
    return sorted(names, key=_rank)


def number_of(row: Row) -> str:
    """The job's number, for places where its whole label would cover others."""
    return str(row["job"]).partition("-")[0]


def _rank(name: str) -> int:
    fits = (index for index, item in enumerate(_TITLES) if re.fullmatch(item[0], name))
    return next(fits, len(_TITLES))
