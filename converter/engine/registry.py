"""Finds a pass by its name: an entry point of the group `convert.passes`.

The passes of this package are entry points like those of any other: see pyproject.toml. They are
installed code and so trusted; a recipe can only name them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from converter.errors import ConvertError, Problem, raise_if
from converter.recipe.validation import nearest_names

if TYPE_CHECKING:
    from converter.engine.contract import Pass

GROUP = "convert.passes"


@lru_cache(maxsize=1)
def pass_entries() -> tuple[EntryPoint, ...]:
    """The entry points of all installed passes, in the order of their names."""
    return tuple(sorted(entry_points(group=GROUP), key=lambda entry: entry.name))


def pass_names() -> list[str]:
    """Names of all installed passes."""
    return list(dict.fromkeys(entry.name for entry in pass_entries()))


def package_of(entry: EntryPoint) -> str:
    """The distribution that brings a pass."""
    return entry.dist.name if entry.dist else entry.module


def make_passes(names: Sequence[str]) -> list[Pass[Any, Any]]:
    """The passes of these names, in this order.

    Raises:
        ConvertError: lists every unknown name with the nearest known one.
    """
    known = pass_names()
    raise_if(_unknown(name, known) for name in names if name not in known)
    return [load_pass(name)() for name in names]


def load_pass(name: str) -> type[Pass[Any, Any]]:
    """The class of an installed pass.

    Raises:
        ConvertError: two packages bring it, or it cannot be imported, or is no pass.
    """
    from converter.engine.contract import Pass  # PyTorch: not needed to list passes

    entries = [entry for entry in pass_entries() if entry.name == name]
    raise_if(_double(name, entries))
    try:
        loaded = entries[0].load()
    except Exception as error:  # an installed module raises anything
        raise ConvertError(_broken(entries[0], str(error))) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Pass) and loaded.name == name):
        reason = f"it is not a Pass with name = {name!r}, as the entry point says"
        raise ConvertError(_broken(entries[0], reason))
    return loaded


def _unknown(name: str, known: Sequence[str]) -> Problem:
    near = nearest_names(name, known, 1)
    return Problem(
        f"Unknown pass {name!r}.",
        f"one of {', '.join(known)}",
        f"write {near[0]} in the recipe's passes" if near else "correct the recipe's passes",
    )


def _double(name: str, entries: Sequence[EntryPoint]) -> Iterator[Problem]:
    if len(entries) > 1:
        places = ", ".join(entry.value for entry in entries)
        yield Problem(
            f"Several installed packages bring a pass {name!r}: {places}.",
            "one",
            "uninstall the others",
        )


def _broken(entry: EntryPoint, reason: str) -> Problem:
    package = package_of(entry)
    return Problem(
        f"The pass {entry.name!r} of the package {package} cannot be used: {reason}.",
        f"a subclass of converter.engine.contract.Pass behind {entry.value}",
        f"mend or uninstall {package}, or take {entry.name} out of the recipe's passes",
    )
