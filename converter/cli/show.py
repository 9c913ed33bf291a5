"""`convert show` and `convert diff`: composed recipes, value by value."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from converter.cli.compose import compose_prepared, options, parse_word, prepare
from converter.cli.tree import PRIMARY, RECIPE, Piece, Tree, built_in_values, slots
from converter.recipe.validation import parse_recipe

DEFAULT, COMMAND = "default", "command line"


def main(arguments: Sequence[str]) -> int:
    """`convert show NAME [key=value …]`"""
    parser = argparse.ArgumentParser(prog="convert show", description=__doc__)
    parser.add_argument("recipe", help="a recipe's name, or ./FILE.yaml")
    parser.add_argument("overrides", nargs="*", help="key=value, as for a run")
    parsed = parser.parse_args(arguments)
    values, origins = composed([as_word(parsed.recipe), *parsed.overrides])
    width = min(60, max(len(f"{path}: {shown(value)}") for path, value in leaves(values)) + 2)
    for path, value in leaves(values):
        print(f"{f'{path}: {shown(value)}':<{width}}  # {origins.get(path, DEFAULT)}")
    return 0


def diff(arguments: Sequence[str]) -> int:
    """`convert diff A B [key=value …]`"""
    parser = argparse.ArgumentParser(prog="convert diff", description=__doc__)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("overrides", nargs="*", help="key=value, for both")
    parsed = parser.parse_args(arguments)
    names = (parsed.first, parsed.second)
    sides = [dict(leaves(composed([as_word(n), *parsed.overrides])[0])) for n in names]
    different = [
        path
        for path in dict.fromkeys([*sides[0], *sides[1]])
        if sides[0].get(path) != sides[1].get(path) and path != "name"
    ]
    width = max(map(len, different), default=0)
    for path in different:
        print(f"{path:<{width}}  {shown(sides[0].get(path))}  →  {shown(sides[1].get(path))}")
    if not different:
        print("The two recipes are the same.")
    return 0


def as_word(name: str) -> str:
    """A recipe's name as a word of the command line; such a word stays as it is."""
    return name if name.startswith(f"{RECIPE}=") else f"{RECIPE}={name}"


def composed(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The checked composed recipe, and for each dotted key where its value comes from."""
    prepared = prepare(words)
    values = compose_prepared(prepared.words, prepared)
    parse_recipe(values)
    return values, origins(prepared.words, prepared.tree)


def origins(words: Sequence[str], tree: Tree) -> dict[str, str]:
    """Dotted key to the file (or the command line) that has the last word on it."""
    primary = dict(built_in_values(f"{PRIMARY}.yaml"))
    items = [parse_word(word) for word in words]
    picked = {item.key_or_group: str(options(item)[0]) for item in items}
    recipe = tree.piece(RECIPE, picked[RECIPE])
    found: dict[str, str] = {}
    for entry in primary.pop("defaults"):
        for slot, option in entry.items() if isinstance(entry, dict) else ():
            if slot != RECIPE:
                chosen, _ = recipe.choices.get(slot, (option, ""))
                _note(found, tree.piece(slot, picked.get(slot, chosen)), f"{slot}.")
    found |= {key: f"recipes/{PRIMARY}.yaml" for key, _ in leaves(primary)}
    _note(found, recipe, "")
    for item in items:
        if item.key_or_group not in slots():
            written = {item.key_or_group: options(item)[0]}
            found |= {key: COMMAND for key, _ in leaves(written)}
    return found


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, lists whole; an empty mapping is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shown(value: Any) -> str:
    """A value as YAML spells it on one line."""
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").strip()


def _note(found: dict[str, str], piece: Piece, prefix: str) -> None:
    for layer in piece.layers:
        found |= {f"{prefix}{key}": layer.label for key, _ in leaves(layer.values)}
