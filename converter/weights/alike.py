"""Names of tensors that differ in the number of their layer only, told together."""

from __future__ import annotations

import re
from collections.abc import Sequence


def kinds(names: Sequence[str]) -> list[list[str]]:
    """Names that differ in the numbers between dots only, together, in the order of the first."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "N", name), []).append(name)
    return list(found.values())


def alike(names: Sequence[str]) -> str:
    """How many more there are than the first, as the end of a sentence."""
    return f", and {len(names) - 1} more of its kind" if len(names) > 1 else ""
