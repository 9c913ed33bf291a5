"""Where a result goes, and what keeps it from going there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from converter.errors import Problem
from converter.output.writable import place_problems
from converter.recipe.schema import Recipe
from converter.storage.cache import cache_folder
from converter.storage.staging import LOCK
from converter.storage.user_path import user_path

ELSEWHERE = "set output=FOLDER, a new one"


def output_folder(recipe: Recipe) -> Path:
    """The recipe's output, or a folder of its name beside the user."""
    return user_path(recipe.output or recipe.name)


def output_problems(recipe: Recipe, output: Path) -> Iterator[Problem]:
    """Why the result cannot become `output`; nothing of the user's may go for it.

    `overwrite` replaces what a conversion has written, and nothing else.
    """
    if output.exists() and not recipe.overwrite:
        yield Problem(
            f"The output folder {output} exists already.",
            "a new folder, so that no result is lost",
            "add overwrite=true to replace it, or output=FOLDER to write elsewhere",
        )
    elif output.exists():
        yield from _irreplaceable(recipe, output)
    for problem in place_problems(output):
        yield replace(problem, remedy=ELSEWHERE)


def _irreplaceable(recipe: Recipe, output: Path) -> Iterator[Problem]:
    kept = [name for name, place in _places(recipe) if place.is_relative_to(output)]
    if kept:
        yield Problem(
            f"overwrite=true would remove {output}, which is or holds {' and '.join(kept)}.",
            "the folder of an earlier conversion",
            ELSEWHERE,
        )
    elif not output.is_dir():
        yield Problem(
            f"overwrite=true would remove {output}, which is no folder.",
            "the folder of an earlier conversion",
            ELSEWHERE,
        )
    elif not (output / LOCK).is_file() and (found := sorted(os.listdir(output))):
        yield Problem(
            f"overwrite=true would remove {output}, which holds {found[0]}"
            f"{f' and {len(found) - 1} more' if found[1:] else ''}, but no {LOCK}.",
            "the folder of an earlier conversion, or an empty one",
            ELSEWHERE,
        )


def _places(recipe: Recipe) -> Iterator[tuple[str, Path]]:
    """What a result must not take the place of."""
    named = {
        "source.path": recipe.source.path,
        "calibration.text": recipe.calibration.text,
        "evaluate.text": recipe.evaluate.text,
        "olive.workflow": recipe.olive.workflow,
    }
    for key, value in named.items():
        if value is not None and user_path(value).exists():
            yield key, user_path(value)
    yield "the folder you work in", Path.cwd()
    with contextlib.suppress(RuntimeError):  # a user without one, as in some containers
        yield "your home folder", Path.home().resolve()
    yield "the cache", cache_folder()
