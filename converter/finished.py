"""A finished folder: the recipe and the lock file that its conversion left in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem
from converter.staging import LOCK, RECIPE_FILE
from converter.teams.trust import parse_trusted


def read_lock(folder: Path) -> dict[str, Any]:
    """The lock file: at least `source` and `files`.

    Raises:
        ConvertError: there is none, or it is not one.
    """
    lock = _read(folder, LOCK, lambda name, content: json.loads(content))
    missing = {"files", "source"} - set(lock)
    if missing:
        raise ConvertError(_not_converted(folder, f"{LOCK} has no {' and no '.join(missing)}"))
    return lock


def read_recipe(folder: Path) -> dict[str, Any]:
    """The locked recipe, complete and without interpolations.

    Raises:
        ConvertError: there is none, or it is no recipe that could be trusted.
    """
    return _read(folder, RECIPE_FILE, parse_trusted)


def _read(folder: Path, name: str, parse: Callable[[str, bytes], Any]) -> dict[str, Any]:
    path = folder / name
    try:
        value = parse(str(path), path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConvertError(_not_converted(folder, f"{name}: {reason}")) from None
    except ConvertError as error:
        reason = "; ".join(problem.found for problem in error.problems)
        raise ConvertError(_not_converted(folder, reason)) from None
    if not isinstance(value, dict):
        raise ConvertError(_not_converted(folder, f"{name} holds a {type(value).__name__}"))
    return value


def _not_converted(folder: Path, reason: str) -> Problem:
    """The problem of a folder that lacks what every conversion writes."""
    return Problem(
        f"{folder} is not a folder that `convert` wrote ({reason}).",
        f"{RECIPE_FILE} and {LOCK}, which say what it was made from",
        "correct the path, or convert the model first",
    )
