"""`convert pick SWEEP --max-size 1.2GB --max-kld 0.05 --by decode`: the best job within limits.

Every measured column has its --max-NAME and --min-NAME; a name may be a word of the column. `--by`
names the column to choose by (default: kld).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from converter.errors import ConvertError, Problem, raise_if
from converter.storage.user_path import user_path
from converter.sweeps import sweep

_UNITS = {"": 1.0, "%": 0.01, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_NUMBER = re.compile(
    r"([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?)\s*([kmg]?b|%)?", re.IGNORECASE
)
USAGE = "convert pick SWEEP [--max-size 1.2GB] [--max-kld 0.05] [--min-COLUMN N] [--by COLUMN]"
Limit = tuple[str, str, str]
"""The name as it was typed, <= or >=, and the value as it was typed."""


def run_words(words: Sequence[str]) -> int:
    """Run the verb; its options are named after the sweep's columns."""
    folder, limits, by = parse(words)
    rows = sweep.read_rows(folder)
    raise_if(_nothing_done(folder, rows))
    known = [name for name in sweep.columns(rows) if name not in ("job", "status", "error")]
    named = [_named(limit, known) for limit in limits]
    by = sweep.find_column(by, known)
    best = sweep.pick(rows, named, by)
    names = list(dict.fromkeys(["job", by, *(name for name, _, _ in named), *best]))
    width = max(map(len, names)) + 2
    for name in names:
        print(f"{name:<{width}}{sweep.formatted(name, best.get(name))}")
    print(folder / best["job"])
    return 0


def parse(arguments: Sequence[str]) -> tuple[Path, list[Limit], str]:
    """The folder, the limits and the column to choose by."""
    folders: list[str] = []
    limits: list[Limit] = []
    by, words = "kld", iter(arguments)
    for word in words:
        if not word.startswith("--"):
            folders.append(word)
            continue
        option, equal, value = word.partition("=")
        value = value if equal else next(words, "")
        if not value or not re.fullmatch(r"--by|--(?:max|min)-.+", option):
            raise ConvertError(_problem(option))
        if option == "--by":
            by = value
        else:
            limits.append((option[6:], "<=" if option[2:5] == "max" else ">=", value))
    if len(folders) != 1:
        found = ", ".join(folders) or "no folder"
        raise ConvertError(Problem(f"The command names {found}.", "the folder of one sweep", USAGE))
    return user_path(folders[0]), limits, by


def number(text: str, size: bool = True) -> float:
    """A number, perhaps with a unit: 60% is 0.6; where it is a size, 1.2GB is 1.2e9."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ConvertError(Problem(f"{text!r} is no number.", "such as 0.05, 60% or 1.2GB", USAGE))
    unit = (match[2] or "").lower()
    if unit.endswith("b") and not size:
        raise ConvertError(Problem(f"{text!r} is a size.", "a plain number for this column", USAGE))
    return float(match[1]) * _UNITS[unit]


def _named(limit: Limit, known: Sequence[str]) -> tuple[str, str, float]:
    name, sign, value = limit
    column = sweep.find_column(name, known)
    return column, sign, number(value, size="bytes" in column)


def _nothing_done(folder: Path, rows: Sequence[sweep.Row]) -> Iterator[Problem]:
    if not any(row["status"] == sweep.DONE for row in rows):
        errors = [f"{row['job']}: {row['error']}" for row in rows if row.get("error")]
        yield Problem(
            f"No job of {folder} is done. {'; '.join(errors[:1])}".rstrip(),
            "at least one finished job",
            f"run the sweep's command again; see {folder / sweep.SUMMARY}.html",
        )


def _problem(word: str) -> Problem:
    return Problem(f"{word!r} cannot be used here.", "options with a value each", USAGE)
