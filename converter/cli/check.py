"""`convert check [NAME|FOLDER|FILE]`: compose and validate recipes without running them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from converter.cli.compose import as_word, compose_recipe
from converter.cli.verbs import key_values
from converter.errors import ConvertError, Problem, raise_if, together_with
from converter.recipe import tree
from converter.recipe.trust import NAME

TRIAL = "folder"
"""Name of the repository that a folder is checked as."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words and options."""
    parser.add_argument("what", nargs="?", help="a recipe, a file or a folder; all recipes if none")
    key_values(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the verb."""
    what = parsed.what
    if what is not None and not _is_recipe(what) and os.path.isdir(what):
        names = check_folder(Path(what), parsed.overrides)
    else:
        names = [what] if what else tree.choices(tree.RECIPE)
        check_recipes(names, parsed.overrides)
    print(f"{len(names)} recipe{'s' if len(names) != 1 else ''} checked, no problem")
    return 0


def check_recipes(names: Sequence[str], overrides: Sequence[str] = ()) -> None:
    """Compose each recipe and check its values and the order of its passes.

    Raises:
        ConvertError: lists the problems of all recipes, each with its recipe's name.
    """
    from converter.engine.execution import order_problems
    from converter.engine.registry import make_passes

    problems: list[Problem] = []
    for name in names:
        try:
            recipe = compose_recipe([as_word(name), *overrides])
            passes = [item for item in make_passes(recipe.passes) if item.enabled(recipe)]
            raise_if(order_problems(passes))
        except ConvertError as error:
            problems += [_of(name, problem) for problem in error.problems]
    raise_if(problems)


def check_folder(folder: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Check a repository's working tree as `repo add` will; give the names of its recipes.

    Raises:
        ConvertError: lists what a foreign repository may not have, and its recipes' problems.
    """
    root = folder.resolve()
    links = [path for path in root.rglob("*") if path.is_symlink() and ".git" not in path.parts]
    raise_if(
        Problem(f"{path} is a link.", "plain files only", "replace it by a copy of the file")
        for path in links
    )
    found = tree.local_tree(root)
    files = [str(root / path) for path in found if path.startswith(f"{tree.RECIPE}/")]
    products = tree.own_products(found)
    if not files and not products:
        raise ConvertError(
            Problem(
                f"{root} has no recipe/NAME.yaml, model/NAME.yaml or export/NAME.yaml.",
                "a folder with the folders of recipes/: recipe, model, export, quant, …",
                "convert repo init FOLDER, which writes one to start from",
            )
        )
    tree.check_files(root.name, found)
    with tree.trial(TRIAL, found):
        composed = [f"{TRIAL}/{name}" for name in products]
        with together_with(_problems_of(files, overrides)):
            check_recipes(composed, overrides)
    return [*files, *composed]


def _problems_of(names: Sequence[str], overrides: Sequence[str]) -> list[Problem]:
    try:
        check_recipes(names, overrides)
    except ConvertError as error:
        return list(error.problems)
    return []


def _is_recipe(word: str) -> bool:
    """Whether the word names a recipe, which a folder of the same name, its output, does not hide.

    `./NAME` is the folder.
    """
    if word in tree.built_in(tree.RECIPE):
        return True
    home = word.rpartition("/")[0]
    return bool(NAME.fullmatch(home)) and word in tree.choices(tree.RECIPE)


def _of(name: str, problem: Problem) -> Problem:
    """The problem with its recipe's name; one that names its file needs no other."""
    is_file = name.endswith((".yaml", ".yml"))
    named = is_file and problem.where.startswith(os.path.realpath(name))
    return problem if named else problem.at(name)
