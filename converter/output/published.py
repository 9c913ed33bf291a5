"""A finished folder: the recipe and the lock file that its conversion left in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem
from converter.recipe.trust import parse_trusted
from converter.storage.staging import LOCK, RECIPE_FILE


def read_lock(folder: Path) -> dict[str, Any]:
    """The lock file: at least `source` and `files`, which name sizes and hashes.

    Raises:
        ConvertError: there is none, or it is not one; says all that is wrong with it.
    """
    lock = _read(folder, LOCK, lambda name, content: json.loads(content))
    reasons = list(_lock_reasons(lock))
    if reasons:
        raise ConvertError(_not_converted(folder, f"in {LOCK} {'; '.join(reasons)}"))
    return lock


def read_recipe(folder: Path) -> dict[str, Any]:
    """The locked recipe, complete and without interpolations.

    Raises:
        ConvertError: there is none, or it is no recipe that could be trusted.
    """
    recipe = _read(folder, RECIPE_FILE, parse_trusted)
    wrong = [
        slot for slot in ("source", "quant", "target") if not isinstance(recipe.get(slot), dict)
    ]
    if wrong:
        reason = f"{RECIPE_FILE} has no keys in {', '.join(wrong)}"
        raise ConvertError(_not_converted(folder, reason))
    return recipe


def _read(folder: Path, name: str, parse: Callable[[str, bytes], Any]) -> dict[str, Any]:
    path = folder / name
    try:
        value = parse(str(path), path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConvertError(_not_converted(folder, f"{name}: {reason}")) from None
    except ConvertError as error:
        reason = "; ".join(problem.headline for problem in error.problems)
        raise ConvertError(_not_converted(folder, reason)) from None
    if not isinstance(value, dict):
        raise ConvertError(_not_converted(folder, f"{name} holds a {type(value).__name__}"))
    return value


def _lock_reasons(lock: Mapping[str, Any]) -> Iterator[str]:
    """What keeps a lock file from being read."""
    for name in ("files", "source"):
        if not isinstance(lock.get(name), dict):
            yield f"{name} is no mapping" if name in lock else f"{name} is missing"
    for name in ("seconds", "versions", "facts"):
        if not isinstance(lock.get(name, {}), dict):
            yield f"{name} is no mapping"
    source = lock.get("source")
    recorded = source.get("files", {}) if isinstance(source, dict) else {}
    for name, files in (("files", lock.get("files")), ("source.files", recorded)):
        yield from _entry_reasons(name, files if isinstance(files, dict) else {})
    if not isinstance(recorded, dict):
        yield "source.files is no mapping"


def _entry_reasons(name: str, files: Mapping[str, Any]) -> Iterator[str]:
    for file, entry in files.items():
        good = isinstance(entry, dict) and isinstance(entry.get("size"), int)
        if not (good and isinstance(entry.get("blake3"), str)):
            yield f"{name}.{file} has no size and blake3"


def _not_converted(folder: Path, reason: str) -> Problem:
    """The problem of a folder that lacks what every conversion writes."""
    return Problem(
        f"{folder} is not a folder that `convert` wrote ({reason}).",
        f"{RECIPE_FILE} and {LOCK}, which say what it was made from",
        "correct the path, or convert the model first",
    )
