"""`convert reproduce FOLDER`: run a folder's locked recipe again and compare the hashes.

The exit code is 0 only if every file has the same hash.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from converter.cli.verbs import key_values
from converter.errors import Problem, raise_if
from converter.output.published import read_lock, read_recipe
from converter.output.writable import place_problems
from converter.storage.hashing import file_entries
from converter.storage.staging import RECIPE_FILE, scratch_folder
from converter.storage.user_path import user_path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words and options."""
    parser.add_argument("folder", type=Path, help="a folder that convert has written")
    key_values(parser, "source.path=FOLDER when the checkpoint has moved; threads=N")


def run(parsed: argparse.Namespace) -> int:
    """Run the verb."""
    lock, values = read_lock(parsed.folder), read_recipe(parsed.folder)
    raise_if([*_override(values, parsed.overrides), *_place_problems(parsed.folder)])
    values["threads"] = values.get("threads") or _threads(lock)
    made = _run_again(parsed.folder.resolve(), values, lock)
    lines = list(differences(lock, made))
    compared = len(set(lock["files"]) - {RECIPE_FILE})
    print("\n".join(lines) or f"The same: {compared} files, hash by hash.")
    return 1 if lines else 0


def _override(values: dict[str, Any], words: Sequence[str]) -> Iterator[Problem]:
    """Set in `values` what the words say; the problems of those that would change the recipe."""
    for word in words:
        key, _, value = word.partition("=")
        if key == "source.path":
            values["source"]["path"] = str(user_path(value))
        elif key == "threads" and value.isdecimal() and int(value) > 0:
            values["threads"] = int(value)
        else:
            yield Problem(
                f"{word!r} would change the recipe.",
                "source.path=FOLDER or threads=N",
                "convert recipe=… to run another recipe",
            )


def _place_problems(folder: Path) -> Iterator[Problem]:
    """The result is made beside the folder, where one of its size has room."""
    beside = folder.resolve().parent
    if any(place_problems(beside / "again")):
        yield Problem(
            f"{folder} cannot be made again beside it: {beside} is not writable.",
            "a folder that you may write to, on a disk that is not read-only",
            "copy the folder to such a place, then: convert reproduce COPY",
        )


def differences(lock: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two lock files, causes first: source, versions, then the result."""
    changed = {
        kind: list(_changed(old, new))
        for kind, old, new in (
            ("source", lock["source"].get("files", {}), made["source"].get("files", {})),
            ("version", lock.get("versions", {}), made.get("versions", {})),
            ("file", lock["files"], made["files"]),
        )
    }
    if not changed["file"]:
        return  # other versions that give the same bytes reproduce the folder
    for kind, names in changed.items():
        for name, old, new in names:
            yield f"{kind} {name}: {_short(old)} → {_short(new)}"


def _threads(lock: Mapping[str, Any]) -> int | None:
    """Threads on which a calibration ran: with others some codes would come out apart."""
    threads = _fact(lock, "quantize", "threads")
    return threads if isinstance(threads, int) else None


def _fact(lock: Mapping[str, Any], name: str, key: str) -> Any:
    """One of a pass's facts; None where the lock file has none."""
    facts = lock.get("facts", {}).get(name)
    return facts.get(key) if isinstance(facts, Mapping) else None


def _run_again(folder: Path, values: dict[str, Any], lock: Mapping[str, Any]) -> dict[str, Any]:
    """Run the recipe into a temporary folder, measure nothing twice, and give its lock.

    What was tuned is taken over: the formats are in the recipe, the settings in the lock file.
    """
    from converter.engine.execution import run_recipe
    from converter.engine.registry import make_passes
    from converter.progress import show_progress
    from converter.recipe.validation import parse_recipe
    from converter.speed.benchmarking import CONFIG
    from converter.speed.tuning import write_settings

    for slot in ("verify", "evaluate", "benchmark", "tune"):
        if isinstance(values.get(slot), dict):
            values[slot]["enabled"] = False
            values[slot].pop("max_kld", None)  # a limit for what is measured
    settings = _fact(lock, "tune", "settings")
    with scratch_folder(folder) as scratch:
        recipe = parse_recipe({**values, "output": str(scratch / "again")})
        with show_progress(sys.stderr) as progress:
            made = run_recipe(recipe, make_passes(recipe.passes), progress)
        found = read_lock(made)
        if isinstance(settings, Mapping):
            write_settings(made, settings)
            found["files"] |= file_entries([made / CONFIG])
        return found


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted({*old, *new} - {RECIPE_FILE}):
        if old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['size']} bytes, {value['blake3'][:12]}…"
    return "missing" if value is None else str(value)
