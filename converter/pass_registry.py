"""Finds a pass by its name: a table for the built-in ones, entry points for a team's own.

An installed package offers a pass as an entry point of the group `convert.passes`. It is installed
code and so as trusted as this package; a recipe can only name it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from converter.engine import Pass
from converter.errors import Problem, raise_if
from converter.schema import nearest_names

BUILT_IN = {
    "load": "passes.load:Load",
    "layout": "passes.layout:Layout",
    "graph": "passes.graph:BuildGraph",
    "quantize": "passes.quantize:Quantize",
    "package": "passes.package:MakePackage",
    "tune": "passes.tune:Tune",
    "verify": "passes.verify:Verify",
    "benchmark": "passes.benchmark:Benchmark",
    "evaluate": "passes.evaluate:Evaluate",
    "olive": "passes.olive:Olive",
}
ENTRY_POINTS = "convert.passes"


def pass_names() -> list[str]:
    """Names of all passes, built-in and installed."""
    return [*BUILT_IN, *sorted(entry.name for entry in entry_points(group=ENTRY_POINTS))]


def make_passes(names: Sequence[str]) -> list[Pass[Any, Any]]:
    """The passes of these names, in this order.

    Raises:
        ConvertError: lists every unknown name with the nearest known one.
    """
    known = pass_names()
    raise_if(_unknown(name, known) for name in names if name not in known)
    return [_load(name)() for name in names]


def _unknown(name: str, known: Sequence[str]) -> Problem:
    near = nearest_names(name, known, 1)
    return Problem(
        f"Unknown pass {name!r}.",
        f"one of {', '.join(known)}",
        f"write {near[0]} in the recipe's passes" if near else "correct the recipe's passes",
    )


def _load(name: str) -> type[Pass[Any, Any]]:
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        found: type[Pass[Any, Any]] = getattr(import_module(module), attribute)
        return found
    (entry,) = (item for item in entry_points(group=ENTRY_POINTS) if item.name == name)
    loaded: type[Pass[Any, Any]] = entry.load()
    return loaded
