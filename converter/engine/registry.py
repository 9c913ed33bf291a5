"""Finds a pass by its name: a table for the built-in ones, entry points for a team's own.

An installed package offers a pass as an entry point of the group `convert.passes`. It is installed
code and so as trusted as this package; a recipe can only name it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.errors import ConvertError, Problem, raise_if
from converter.recipe.validation import nearest_names

if TYPE_CHECKING:
    from converter.engine.engine import Pass

BUILT_IN = {
    "load": "passes.load:Load",
    "layout": "passes.layout:Layout",
    "graph": "passes.graph:BuildGraph",
    "formats": "passes.formats:ChooseFormats",
    "quantize": "passes.quantize:Quantize",
    "kv_cache": "passes.kv_cache:QuantizeCache",
    "package": "passes.package:MakePackage",
    "tune": "passes.tune:Tune",
    "verify": "passes.verify:Verify",
    "olive": "passes.olive:Olive",
    "evaluate": "passes.evaluate:Evaluate",
    "benchmark": "passes.benchmark:Benchmark",
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
    from converter.engine.engine import Pass  # PyTorch: not needed to list passes

    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        found: type[Pass[Any, Any]] = getattr(import_module(module), attribute)
        return found
    entries = [item for item in entry_points(group=ENTRY_POINTS) if item.name == name]
    raise_if(_entry_problems(name, entries))
    try:
        loaded = entries[0].load()
    except Exception as error:  # an installed module raises anything
        raise ConvertError(_broken(entries[0], str(error))) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Pass) and loaded.name == name):
        raise ConvertError(
            _broken(entries[0], f"it is not a Pass with name = {name!r}, as the entry point says")
        )
    return loaded


def _entry_problems(name: str, entries: Sequence[EntryPoint]) -> Iterator[Problem]:
    if len(entries) > 1:
        yield Problem(
            f"Several installed packages bring a pass {name!r}: "
            f"{', '.join(entry.value for entry in entries)}.",
            "one",
            "uninstall the others",
        )


def _broken(entry: EntryPoint, reason: str) -> Problem:
    package = entry.dist.name if entry.dist else entry.module
    return Problem(
        f"The pass {entry.name!r} of the package {package} cannot be used: {reason}.",
        f"a subclass of converter.engine.engine.Pass behind {entry.value}",
        f"mend or uninstall {package}, or take {entry.name} out of the recipe's passes",
    )


# What can be said of a pass without importing it (PyTorch and all)


@dataclass(frozen=True)
class PassDescription:
    """A pass as its source states it; nothing is imported for this."""

    name: str
    package: str
    """Distribution that brings the pass."""
    module: str
    takes: str
    """Class name of the artifact that it takes; empty for the first pass."""
    gives: str
    slot: str
    purpose: str
    """The class's docstring."""
    guarantees: tuple[str, ...]


def describe_passes() -> list[PassDescription]:
    """All passes, built-in and installed, in the order of `pass_names`; broken ones left out."""
    own = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    found = []
    for name in pass_names():
        if name in BUILT_IN:
            described = _describe(name, "convert-genai", BUILT_IN[name])
        else:
            package = own[name].dist
            described = _describe(name, package.name if package else "", own[name].value)
        if described is not None:
            found.append(described)
    return found


def _describe(name: str, package: str, place: str) -> PassDescription | None:
    module, _, attribute = place.partition(":")
    try:
        spec = find_spec(module)
    except ImportError:
        return None
    if spec is None or spec.origin is None:
        return None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            stated = _class_values(node)
            return PassDescription(
                name,
                package,
                module,
                "" if "None" in stated.get("takes", "") else stated.get("takes", ""),
                stated.get("gives", ""),
                ast.literal_eval(stated.get("slot", "''")),
                ast.get_docstring(node) or "",
                ast.literal_eval(stated.get("guarantees", "()")),
            )
    return None


def _class_values(node: ast.ClassDef) -> dict[str, str]:
    """Source text of the values that the class body assigns to names."""
    values = {}
    for item in node.body:
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
            values[item.targets[0].id] = ast.unparse(item.value)
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value:
            values[item.target.id] = ast.unparse(item.value)
    return values
