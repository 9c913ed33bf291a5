"""Writes the pages of docs/reference/ that the code decides: `python scripts/reference.py`."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import json
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from converter.cli.verbs import VERBS, module_of, parser_of
from converter.engine.contract import Pass
from converter.engine.registry import load_pass
from converter.recipe.guest_slots import recipe_schema
from converter.recipe.schema import Recipe
from converter.recipe.tree import (
    EXPORT,
    MODEL,
    PRIMARY,
    RECIPE,
    SWEEP,
    built_in_files,
    built_in_models,
    built_in_values,
    recipes_folder,
)
from converter.recipe.trust import ARCHITECTURE

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
DOCUMENT = re.compile(r"\bdocs/([\w/]+\.md)")
GENERATED = "Generated from the code by `python scripts/reference.py`; a test compares."
PASSES = f"""# Passes

{GENERATED}
Each pass takes one artifact and gives the next. A recipe's key `passes` says which passes run, and
in which order. See also [a pass of your own](../guide/own_pass.md).
"""
KEYS = f"""# Recipe keys

{GENERATED}
A recipe names a choice for every slot (`quant=awq`) and may set any key (`quant.bits=8`).
[Recipes](../guide/recipes.md) explains how files and the command line combine.
`convert show RECIPE` prints every value of a recipe and where it comes from.
"""
VERB_PAGE = f"""# Verbs

{GENERATED}
A command without a verb converts: `convert recipe=NAME key=value …`. With `-m` it runs a
[sweep](../guide/sweeps.md): `convert -m recipe=NAME key=a,b …`. `convert VERB --help` prints what
stands here. The exit code is 0 only if the verb did what you asked.
"""


def main() -> None:
    """Write the pages."""
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """The text of every generated page, by its file's name."""
    written = {"passes.md": (PASSES, _passes()), "keys.md": (KEYS, _keys())}
    written["verbs.md"] = (VERB_PAGE, _verbs())
    return {name: "\n".join([head, *lines]) + "\n" for name, (head, lines) in written.items()}


def _passes() -> Iterator[str]:
    passes = [load_pass(name) for name in built_in_values(f"{PRIMARY}.yaml")["passes"]]
    rows = (
        (f"[{item.name}](#{item.name})", _taken(item), item.gives.__name__, _slot_link(item.slot))
        for item in passes
    )
    yield from table(("pass", "takes", "gives", "slot"), rows)
    for item in passes:
        yield from _pass_section(item)


def _taken(item: type[Pass[Any, Any]]) -> str:
    return "the recipe" if item.takes is type(None) else item.takes.__name__


def _slot_link(slot: str) -> str:
    return f"[{slot}](keys.md#{slot})"


def _pass_section(item: type[Pass[Any, Any]]) -> Iterator[str]:
    path = f"{item.__module__.replace('.', '/')}.py"
    yield from ("", f"## {item.name}", "", f"{inspect.getdoc(item)}", "")
    yield from ("If it succeeds:", "", *(f"- {text}" for text in item.guarantees), "")
    yield f"Keys: {_slot_link(item.slot)}. Code: `{path}`."


def _keys() -> Iterator[str]:
    hints = typing.get_type_hints(recipe_schema())
    slots = {
        name: kind
        for name, kind in hints.items()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    }
    yield from ("## Outside of the slots", "")
    yield from table(("key", "default", "what it sets"), key_rows(Recipe, "", slots))
    yield from ("", "## export", "", "A target with a quantization: the second half of a name.", "")
    yield from _choices(EXPORT)
    said = "Descriptions of checkpoints, which fill the sections `layout` and `graph`."
    yield from ("", "## architecture", "", said, "")
    yield from _choices(ARCHITECTURE)
    for slot, kind in slots.items():
        said = DOCUMENT.sub(r"[\1](../\1)", inspect.getdoc(kind) or "")
        yield from ("", f"## {slot}", "", said, "")
        yield from _choices(slot)
        yield from ("", *table(("key", "default", "what it sets"), key_rows(kind, f"{slot}.")))
    yield from ("", "## sweep", "", "Sweeps that have a file: `convert -m sweep=NAME`.", "")
    yield from _choices(SWEEP)
    yield from ("", "## recipe", "", "Recipes that have a file; MODEL_EXPORT needs none.", "")
    yield from _choices(RECIPE)


def _choices(folder: str) -> list[str]:
    names = built_in_models() if folder == MODEL else built_in_files(folder)
    rows = [(f"`{name}`", meaning(folder, name)) for name in names if name != "schema"]
    return table((f"`{folder}=`", "what it is"), rows) if rows else []


def meaning(folder: str, name: str) -> str:
    """What a file of recipes/ says of itself: its first comment, but for how it is called."""
    lines = (recipes_folder() / folder / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    texts = (line[1:].strip() for line in comment)
    said = [text for text in texts if not text.startswith(("@package", "convert -m ", "convert r"))]
    return DOCUMENT.sub(r"[\1](../\1)", " ".join(said))


def key_rows(schema: type, prefix: str, without: Iterable[str] = ()) -> Iterator[Sequence[str]]:
    """Key, default and meaning of every field of a dataclass, nested ones included."""
    documented = field_docs(schema)
    for field in dataclasses.fields(schema):
        kind = typing.get_type_hints(schema)[field.name]
        if field.name in without:
            continue
        if dataclasses.is_dataclass(kind):
            yield from key_rows(typing.cast(type, kind), f"{prefix}{field.name}.")
            continue
        text = " ".join(documented.get(field.name, "").split())
        values = ", ".join(f"`{value}`" for value in _values(kind))
        said = f"{text} One of {values}." if values else text
        yield f"`{prefix}{field.name}`", _default(field), said


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


def _values(kind: Any) -> Iterator[Any]:
    if typing.get_origin(kind) is typing.Literal:
        yield from typing.get_args(kind)
        return
    for inner in typing.get_args(kind):
        yield from _values(inner)


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    shown = value if isinstance(value, str) and value else json.dumps(value)
    return f"`{shown}`"


def _verbs() -> Iterator[str]:
    rows = ((f"[{verb}](#{verb})", what) for verb, what in VERBS.items())
    yield from table(("verb", "for"), rows)
    for verb in VERBS:
        yield from ("", f"## {verb}", "", inspect.cleandoc(module_of(verb).__doc__ or ""))
        parser = parser_of(verb)
        if parser is not None:
            yield from _options(parser)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Words and options of a verb; those of its own verbs (`repo add`) come after."""
    actions, below = [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            below = [(name, helps[name], inner) for name, inner in action.choices.items()]
        elif not isinstance(action, argparse._HelpAction):
            actions.append(action)
    if actions:
        yield from ("", *table(("word or option", "default", "what it is"), map(option, actions)))
    for name, what, inner in below:
        yield from ("", f"`{inner.prog.split()[-2]} {name}`: {what}.")
        yield from _options(inner)


def option(action: argparse.Action) -> Sequence[str]:
    """Spelling, default and meaning of a word or an option."""
    name = str(action.metavar or "|".join(action.choices or [action.dest.upper()]))
    takes = "" if action.nargs == 0 else f" {name}"
    spelling = f"{action.option_strings[0]}{takes}" if action.option_strings else name
    more = " …" if action.nargs in ("*", "+") else ""
    value = action.default
    shown = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    default = "" if value is None or value is False or not shown else f"`{shown}`"
    return f"`{spelling}{more}`", default, (action.help or "") % {"default": value}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    cells = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells]


if __name__ == "__main__":
    main()
