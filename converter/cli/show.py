"""`convert show NAME [key=value …]`: a composed recipe, and where each of its values comes from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from converter.cli.compose import as_word, compose_prepared, prepare, written
from converter.cli.verbs import key_values
from converter.recipe.tree import leaves
from converter.recipe.validation import parse_recipe

DEFAULT, COMMAND_LINE = "default", "command line"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words and options."""
    parser.add_argument("recipe", help="a recipe's name, ./FILE.yaml, or model=NAME export=NAME")
    key_values(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the verb."""
    values, origins = composed([as_word(parsed.recipe), *parsed.overrides])
    width = min(60, max(len(f"{path}: {shown(value)}") for path, value in leaves(values)) + 2)
    for path, value in leaves(values):
        print(f"{f'{path}: {shown(value)}':<{width}}  # {origins.get(path, DEFAULT)}")
    return 0


def composed(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The checked composed recipe, and for each dotted key where its value comes from."""
    prepared = prepare(words)
    values = compose_prepared(prepared.words, prepared)
    parse_recipe(values)
    said = {key: COMMAND_LINE for key, _ in leaves(written(prepared.words))}
    return values, prepared.piece(prepared.words).origins() | said


def shown(value: Any) -> str:
    """A value as YAML spells it on one line."""
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").strip()
