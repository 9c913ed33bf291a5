"""`convert repo add|list|update|remove|init`: recipes that a team keeps in git."""

from __future__ import annotations

import argparse
from pathlib import Path

from converter.cli.check import check_recipes
from converter.errors import ConvertError, Problem, raise_if
from converter.output.writable import place_problems
from converter.recipe import tree
from converter.recipe.repositories import (
    LOCK_FILE,
    Repository,
    fetch,
    project_lock,
    read_files,
    read_pins,
    repositories,
    user_lock,
    write_pins,
)
from converter.storage.staging import open_folder

TEMPLATE = {
    "README.md": """# Recipes

Recipes for `convert`. Use them with

    convert repo add {name} URL
    convert recipe={name}/example_int8

Folders are those of convert's own recipes: recipe/ holds complete recipes, model/ and export/ what
recipes are composed of ({name}/MODEL_EXPORT, with convert's own models and exports too), quant/,
target/ and the others choices that a recipe may name. `convert check .` validates everything.
""",
    "recipe/example_int8.yaml": """# @package _global_
# convert recipe={name}/example_int8
# The demo model in eight bits, as this team wants them.
defaults:
  - demo
  - override /quant: eight_bits
""",
    "quant/eight_bits.yaml": """# int8, rounded to nearest, in blocks of 64.
defaults:
  - rtn
bits: 8
block_size: 64
""",
    "sweep/example_blocks.yaml": """# convert -m sweep={name}/example_blocks
recipe: example_int8
set:
  evaluate: standard
grid:
  quant.block_size: [32, 64]
""",
    ".github/workflows/check.yaml": """# Every recipe composes and fits the schema.
name: check
"on": [push, pull_request]
jobs:
  check:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.11"
      - run: pip install "convert-genai[cpu]"
      - run: convert check .
""",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words and options."""
    actions = parser.add_subparsers(dest="action", required=True)
    add = actions.add_parser("add", help="fetch a repository, check it and pin its commit")
    add.add_argument("name", help="what its recipes start with, as in NAME/RECIPE")
    add.add_argument("url", help="https, ssh, or an absolute path")
    add.add_argument("--rev", help="a branch or tag; the default branch if none")
    actions.add_parser("list", help="the repositories in use, and where each is pinned")
    update = actions.add_parser("update", help="pin the newest commit of --rev")
    update.add_argument("name", nargs="?", help="one repository; all if none")
    remove = actions.add_parser("remove", help="stop using a repository")
    remove.add_argument("name", help="a repository in use")
    init = actions.add_parser("init", help="write a repository to start from")
    init.add_argument("folder", type=Path, help="a new folder")
    for action in (add, update, remove):
        action.add_argument("--user", action="store_true", help="the user's lock file, not ./")


def run(parsed: argparse.Namespace) -> int:
    """Run the verb."""
    if parsed.action == "add":
        add_repository(parsed.name, parsed.url, parsed.rev, _lock(parsed.user))
    elif parsed.action == "update":
        update_repositories(parsed.name, _lock(parsed.user))
    elif parsed.action == "remove":
        remove_repository(parsed.name, _lock(parsed.user))
    elif parsed.action == "init":
        init_repository(parsed.folder)
    else:
        list_repositories()
    return 0


def add_repository(name: str, url: str, rev: str | None, lock: Path) -> None:
    """Fetch, check and pin; nothing is pinned when a check fails."""
    url = str(Path(url).resolve()) if Path(url).is_dir() else url
    entries = read_pins(lock)
    if name in entries and entries[name].url != url:
        raise ConvertError(
            Problem(
                f"{lock} has another repository {name!r}: {entries[name].url}.",
                "a new name",
                f"convert repo remove {name}, or choose another name",
            )
        )
    _pin(fetch(name, url, rev), lock)


def list_repositories() -> None:
    """Print each repository with its commit and number of recipes."""
    found = repositories()
    for item in found.values():
        files = tree.repository_tree(item.name)
        count = len(tree.own_names(files, tree.RECIPE)) + len(tree.own_products(files))
        followed = item.rev or "default branch"
        print(f"{item.name:<20}{item.commit[:12]}  {followed:<16}{count:>4} recipes  {item.url}")
    if not found:
        print(f"No repositories in {LOCK_FILE} or {user_lock()}: convert repo add NAME URL")


def update_repositories(name: str | None, lock: Path) -> None:
    """Pin the newest commit of what each repository (or the named one) follows."""
    entries = read_pins(lock)
    if name is not None and name not in entries:
        raise ConvertError(_unknown(name, entries, lock))
    for item in entries.values() if name is None else [entries[name]]:
        _pin(fetch(item.name, item.url, item.rev), lock)


def remove_repository(name: str, lock: Path) -> None:
    """Take a repository out of the lock file; what was fetched stays in the cache."""
    entries = read_pins(lock)
    if name not in entries:
        raise ConvertError(_unknown(name, entries, lock))
    write_pins(lock, {key: item for key, item in entries.items() if key != name})
    print(f"{name} removed from {lock}")


def init_repository(folder: Path) -> None:
    """Write the template of a recipe repository."""
    output = folder.resolve()
    if output.exists():
        raise ConvertError(
            Problem(f"{output} exists already.", "a new folder", "choose another FOLDER")
        )
    raise_if(place_problems(output))
    with open_folder(output) as made:
        for path, text in TEMPLATE.items():
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            (made / path).write_text(text.replace("{name}", output.name), encoding="utf-8")
    print(f"{output}: next, `convert check {folder}`, git init, commit, push")


def _pin(repository: Repository, lock: Path) -> None:
    """Check every file and compose every recipe, then write the lock file."""
    before = read_pins(lock)
    name = repository.name
    found = read_files(repository, tree.folders())
    tree.check_files(name, found)
    recipes = [*tree.own_names(found, tree.RECIPE), *tree.own_products(found)]
    with tree.trial(name, found):
        check_recipes([f"{name}/{recipe}" for recipe in recipes])
    write_pins(lock, {**before, name: repository})
    print(f"{name}: {len(recipes)} recipes at {repository.commit[:12]}, pinned in {lock}")


def _lock(user: bool) -> Path:
    return user_lock() if user else project_lock() or Path.cwd() / LOCK_FILE


def _unknown(name: str, entries: dict[str, Repository], lock: Path) -> Problem:
    known = ", ".join(entries) or "none"
    return Problem(f"{lock} has no repository {name!r}.", f"one of: {known}", "convert repo list")
