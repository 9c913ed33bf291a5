"""Writes docs/reference/passes.md from the code: `python scripts/reference.py`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from converter.engine.contract import Pass
from converter.engine.registry import load_pass
from converter.recipe.guest_slots import recipe_schema
from converter.recipe.tree import PRIMARY, built_in_values

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reference" / "passes.md"
HEAD = """# Passes

Generated from the code by `python scripts/reference.py`; a test compares. Each pass takes one
artifact and gives the next. A recipe's key `passes` says which passes run, and in which order. See
also [a pass of your own](../guide/own_pass.md).
"""


def main() -> None:
    """Write the document."""
    DOCUMENT.write_text(document(), encoding="utf-8")


def document() -> str:
    """The whole text of docs/reference/passes.md."""
    passes = [load_pass(name) for name in built_in_values(f"{PRIMARY}.yaml")["passes"]]
    first = {item.slot: item.name for item in reversed(passes)}
    sections = (line for item in passes for line in _section(item, first[item.slot]))
    return "\n".join([HEAD, *_table(passes), *sections])


def _table(passes: list[type[Pass[Any, Any]]]) -> Iterator[str]:
    yield "| pass | takes | gives | slot |"
    yield "|---|---|---|---|"
    for item in passes:
        link = f"[{item.name}](#{item.name})"
        taken = "the recipe" if item.takes is type(None) else item.takes.__name__
        yield f"| {link} | {taken} | {item.gives.__name__} | {item.slot} |"
    yield ""


def _section(item: type[Pass[Any, Any]], described: str) -> Iterator[str]:
    """`described` is the pass in whose section the keys of its slot stand."""
    yield f"## {item.name}"
    yield ""
    yield f"{inspect.getdoc(item)} (`{item.__module__.replace('.', '/')}.py`)"
    yield ""
    if item.guarantees:
        yield "Guarantees, when it has not raised:"
        yield ""
        yield from (f"- {text}" for text in item.guarantees)
        yield ""
    if item.name != described:
        yield f"Slot `{item.slot}`: see [{described}](#{described})."
        yield ""
    else:
        schema = typing.get_type_hints(recipe_schema())[item.slot]
        yield f"Slot `{item.slot}`:"
        yield ""
        yield "| key | default | |"
        yield "|---|---|---|"
        yield from _keys(schema, f"{item.slot}.")
        yield ""


def _keys(schema: type, prefix: str) -> Iterator[str]:
    documented = field_docs(schema)
    for field in dataclasses.fields(schema):
        kind = typing.get_type_hints(schema)[field.name]
        if dataclasses.is_dataclass(kind):
            yield from _keys(typing.cast(type, kind), f"{prefix}{field.name}.")
            continue
        text = " ".join(documented.get(field.name, "").split())
        choices = [str(value) for value in _choices(kind)]
        offered = f"{'one of' if choices else ''} {', '.join(choices)}".strip()
        said = " ".join(filter(None, [text, f"({offered})" if offered else ""]))
        yield f"| `{prefix}{field.name}` | {_default(field)} | {said.replace('|', chr(92) + '|')} |"


def field_docs(schema: type) -> dict[str, str]:
    """The strings that stand below the fields of a dataclass, by field."""
    (node,) = ast.parse(inspect.getsource(schema)).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for item, following in itertools.pairwise(node.body):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            value = following.value if isinstance(following, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[item.target.id] = value.value
    return found


def _choices(kind: Any) -> Iterator[Any]:
    if typing.get_origin(kind) is typing.Literal:
        yield from typing.get_args(kind)
        return
    for inner in typing.get_args(kind):
        yield from _choices(inner)


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    shown = value if isinstance(value, str) and value else json.dumps(value)
    return f"`{shown}`"


if __name__ == "__main__":
    main()
