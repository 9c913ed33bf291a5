"""`convert pick SWEEP --max-size 1.2GB --max-kld 0.05 --by decode`: the best job within limits.

Every measured column has its --max-NAME and --min-NAME; a name may be a word of the column.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from converter.errors import ConvertError, Problem
from converter.sweeps import sweep

_UNITS = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_NUMBER = re.compile(r"([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)\s*([kmg]?b)?", re.IGNORECASE)
USAGE = "convert pick SWEEP [--max-size 1.2GB] [--max-kld 0.05] [--min-COLUMN N] [--by COLUMN]"


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{USAGE}\n\n{__doc__}")
        return 0
    folder, limits, by = parse(arguments)
    rows = sweep.read_rows(folder)
    known = [name for name in sweep.columns(rows) if name not in ("job", "status", "error")]
    named = [(sweep.find_column(name, known), sign, value) for name, sign, value in limits]
    by = sweep.find_column(by, known)
    best = sweep.pick(rows, named, by)
    for name in dict.fromkeys(["job", by, *(name for name, _, _ in named), *best]):
        print(f"{name:<38}{sweep.formatted(name, best.get(name))}")
    print(folder / best["job"])
    return 0


def parse(arguments: Sequence[str]) -> tuple[Path, list[tuple[str, str, float]], str]:
    """The folder, the limits (name, <= or >=, value) and the column to choose by."""
    words = [part for word in arguments for part in word.split("=", 1)]
    folder, limits, by = Path(words[0]).resolve(), [], "kld"
    if len(words) % 2 == 0:
        raise ConvertError(_problem(words[-1]))
    for option, value in zip(words[1::2], words[2::2], strict=True):
        if option == "--by":
            by = value
        elif option.startswith(("--max-", "--min-")):
            limits.append((option[6:], "<=" if option[2:5] == "max" else ">=", number(value)))
        else:
            raise ConvertError(_problem(option))
    return folder, limits, by


def number(text: str) -> float:
    """A number, perhaps with a unit of size: 1.2GB is 1.2e9."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ConvertError(Problem(f"{text!r} is no number.", "such as 0.05 or 1.2GB", USAGE))
    return float(match[1]) * _UNITS[(match[2] or "").lower()]


def _problem(word: str) -> Problem:
    return Problem(f"{word!r} cannot be used here.", "options with a value each", USAGE)
