"""`convert diff A B [key=value …]`: what two recipes do differently, value by value."""

from __future__ import annotations

import argparse

from converter.cli.compose import as_word
from converter.cli.show import composed, shown
from converter.cli.verbs import key_values
from converter.recipe.tree import leaves


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words and options."""
    parser.add_argument("first", help="a recipe's name, or ./FILE.yaml")
    parser.add_argument("second", help="the one to compare with")
    key_values(parser, "for both")


def run(parsed: argparse.Namespace) -> int:
    """Run the verb."""
    names = (parsed.first, parsed.second)
    sides = [dict(leaves(composed([as_word(name), *parsed.overrides])[0])) for name in names]
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
