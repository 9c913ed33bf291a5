"""`convert new NAME --from OTHER`: write a recipe file to start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from converter.errors import ConvertError, Problem, raise_if
from converter.recipe.tree import RECIPE, Tree, built_in
from converter.recipe.trust import name_problems
from converter.recipe.validation import nearest_names

TEMPLATE = """# @package _global_
# convert recipe=./{file}
#
# It builds on {base}. `convert show ./{file}` says what it composes to and where each value
# comes from; `convert check ./{file}` validates it.
defaults:
  - {base}
{choices}
# Single values stand below their slot, for instance:
# quant:
#   block_size: 128
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words and options."""
    parser.add_argument("name", help="the new recipe's name")
    parser.add_argument("--from", dest="base", required=True, help="a built-in recipe")


def run(parsed: argparse.Namespace) -> int:
    """Run the verb."""
    path = Path(f"{parsed.name}.yaml")
    raise_if([*_problems(parsed.name, parsed.base, path)])
    text = recipe_text(path.name, parsed.base)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        found = f"{path} cannot be written here: {error.strerror or error}."
        remedy = "change to another folder with cd, and run the command again"
        raise ConvertError(Problem(found, "a folder that can be written", remedy)) from error
    print(path)
    return 0


def recipe_text(file: str, base: str) -> str:
    """A recipe that builds on `base`, with base's choices as comments to change."""
    piece = Tree().piece(RECIPE, base)
    lines = [
        f"  # - override /{slot}: {option}    # or: {', '.join(_others(slot, option))}"
        for slot, option in piece.choices.items()
    ]
    return TEMPLATE.format(file=file, base=base, choices="\n".join(lines))


def _others(slot: str, option: str, count: int = 4) -> list[str]:
    return [name for name in built_in(slot) if name != option][:count]


def _problems(name: str, base: str, path: Path) -> list[Problem]:
    problems = [*name_problems("The new recipe", name)]
    if path.exists():
        problems.append(Problem(f"{path} exists already.", "a new name", "choose another NAME"))
    if base not in built_in(RECIPE):
        near = nearest_names(base, built_in(RECIPE)) or ["demo"]
        expected = f"a recipe of `convert list`, such as {', '.join(near)}"
        remedy = f"write --from {near[0]}"
        problems.append(Problem(f"{base!r} is not a built-in recipe.", expected, remedy))
    return problems
