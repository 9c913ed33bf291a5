"""From the words of a command line to a checked `Recipe`, through Hydra's composition.

Hydra stops at the first unknown key and accepts `+` before a misspelt one. So every override is
checked against the schema and the recipe tree before Hydra sees it, and the composed mapping
again afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.cli.tree import (
    LOCAL,
    PRIMARY,
    RECIPE,
    Tree,
    built_in,
    is_foreign,
    local_file,
    recipes_folder,
    slots,
    unknown_choice,
)
from converter.errors import ConvertError, Problem, raise_if
from converter.recipe import Recipe
from converter.schema import default_values, is_known_path, nearest_names, parse_recipe
from converter.schema import unknown_key_problem as unknown_key


def group_choices(group: str) -> list[str]:
    """Names of a slot's built-in choices, such as the recipes or the targets."""
    return built_in(group)


def groups() -> list[str]:
    """Names of the slots."""
    return slots()


@dataclass(frozen=True)
class Prepared:
    """A checked command line, ready for Hydra."""

    words: list[str]
    """As Hydra takes them."""
    nodes: Mapping[tuple[str, str], Mapping[str, Any]]
    """(slot, option) to the flattened content of the files that are not built in."""
    tree: Tree


def compose_recipe(words: Sequence[str]) -> Recipe:
    """Compose the recipe that `words` (such as recipe=demo quant.bits=8) ask for.

    Raises:
        ConvertError: lists every word that cannot be used, with the nearest one that can.
    """
    return parse_recipe(compose_values(words))


def compose_values(words: Sequence[str]) -> dict[str, Any]:
    """The composed recipe as nested plain containers, not yet checked against the schema."""
    prepared = prepare(words)
    return compose_prepared(prepared.words, prepared)


def compose_prepared(words: Sequence[str], prepared: Prepared) -> dict[str, Any]:
    """Compose `words`, one combination of those that were prepared."""
    return named(_compose(words, prepared.nodes), words)


def named(values: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """The values, with the recipe's own name where they state none."""
    if values.get("name") == default_values()["name"]:
        recipe = next(word for word in words if word.startswith(f"{RECIPE}="))
        name = recipe.partition("=")[2].strip("\"'")
        values["name"] = name.removeprefix(f"{LOCAL}/").replace("/", "_")
    return values


def prepare(words: Sequence[str], sweep: bool = False) -> Prepared:
    """Check the words of a command line; `sweep` lets a word hold several values.

    Raises:
        ConvertError: lists every word that cannot be used, with the nearest one that can.
    """
    tree, words = _with_local(words)
    overrides = [parse_word(word) for word in words]
    raise_if(problem for item in overrides for problem in _override_problems(item, tree, sweep))
    raise_if(_recipe_problems(overrides))
    return Prepared(
        [_hydra_word(item) for item in overrides], _foreign_nodes(overrides, tree), tree
    )


def options(item: Any) -> list[Any]:
    """The values of a parsed override: one, or those that a sweep goes through."""
    return list(item.sweep_iterator()) if item.is_sweep_override() else [item.value()]


def _with_local(words: Sequence[str]) -> tuple[Tree, list[str]]:
    """The tree in use, and the words with recipe=./FILE.yaml replaced by recipe=local/FILE."""
    local, found = None, []
    for word in words:
        key, _, value = word.partition("=")
        path = local_file(value.strip("\"'")) if key == RECIPE else None
        local = path or local
        found.append(f"{RECIPE}={LOCAL}/{path.stem}" if path else word)
    return Tree(local), found


def _foreign_nodes(
    overrides: Iterable[Any], tree: Tree
) -> dict[tuple[str, str], Mapping[str, Any]]:
    """What Hydra needs of the files that are not built in, those that they choose included."""
    wanted = [
        (item.key_or_group, str(option))
        for item in overrides
        if item.key_or_group in slots()
        for option in options(item)
    ]
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    while wanted:
        slot, choice = wanted.pop()
        if not is_foreign(choice) or (slot, choice) in found:
            continue
        piece = tree.piece(slot, choice)
        chosen = [{f"override /{name}": option} for name, (option, _) in piece.choices.items()]
        found[slot, choice] = {**({"defaults": chosen} if chosen else {}), **piece.merged()}
        wanted += [(name, option) for name, (option, _) in piece.choices.items()]
    return found


def parse_word(word: str) -> Any:
    """The word as Hydra's `Override`, or a `Problem` when it is none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if "=" not in word and not word.startswith("~"):
        near = nearest_names(word, group_choices("recipe"), 1)
        return Problem(
            f"{word!r} is not a verb, nor of the form key=value.",
            "convert recipe=NAME [key=value …]",
            f"convert recipe={near[0]}" if near else "run `convert --help`",
        )
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        key, _, value = word.partition("=")
        return Problem(
            f"{word!r} cannot be read.",
            "key=value, with quotes inside quotes around values that have spaces, commas, "
            "brackets or an equals sign",
            f"write \"{key}='{value}'\"",
        )


def _override_problems(item: Any, tree: Tree, sweep: bool) -> Iterator[Problem]:
    from hydra.core.override_parser.types import Glob

    if isinstance(item, Problem):
        yield item
        return
    key = item.key_or_group
    if isinstance(item._value, Glob):
        yield Problem(f"{item.input_line!r} is a pattern.", "names", f"write {key}=a,b,c")
    elif item.is_delete():
        yield Problem(
            f"{item.input_line!r} removes a key.",
            "every key of a recipe present",
            f"set {key}=null or choose another option of its slot",
        )
    elif item.is_sweep_override() and not sweep:
        yield Problem(
            f"{item.input_line!r} holds several values.",
            "one value, unless the command sweeps",
            f"convert -m … to sweep, or \"{key}='…'\" for a text with commas",
        )
    elif key in slots() and not isinstance(item._value, (dict, list)):
        for option in options(item):
            yield from _choice_problems(key, str(option), tree)
    elif key.startswith("hydra") or (key not in slots() and not is_known_path(key)):
        yield unknown_key(key)
    elif key == "source.revision" and not isinstance(item.value(), (str, type(None))):
        written = item.input_line.partition("=")[2]
        yield Problem(
            f"source.revision={written} was read as the number {item.value()}.",
            "a branch, a tag or a 40-digit commit",
            f"write \"source.revision='{written}'\"",
        )


def _choice_problems(slot: str, choice: str, tree: Tree) -> Iterator[Problem]:
    if is_foreign(choice):
        try:
            tree.piece(slot, choice)
        except ConvertError as error:
            yield from error.problems
    elif choice not in built_in(slot):
        yield unknown_choice(slot, choice)


def _recipe_problems(overrides: Iterable[Any]) -> Iterator[Problem]:
    if not any(item.key_or_group == "recipe" for item in overrides):
        yield Problem("No recipe is given.", "recipe=NAME", "convert recipe=demo")


def _hydra_word(item: Any) -> str:
    """The override as Hydra takes it: `++` lets a key stand whether or not a file names it."""
    word: str = item.input_line.lstrip("+")
    return word if item.key_or_group in groups() else f"++{word}"


def register(nodes: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
    """Tell Hydra the schema and the content of the files that are not built in."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="schema", node=default_values())
    for (slot, choice), node in nodes.items():
        home, _, name = choice.rpartition("/")
        package = "_global_" if slot == RECIPE else slot
        store.store(group=f"{slot}/{home}", name=name, node=dict(node), package=package)


def _compose(
    words: Sequence[str], nodes: Mapping[tuple[str, str], Mapping[str, Any]]
) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register(nodes)
    try:
        with initialize_config_dir(str(recipes_folder()), version_base="1.3"):
            config = compose(PRIMARY, list(words))
            values: Any = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConvertError(
            Problem(
                f"The recipe cannot be composed: {_first_line(error)}",
                "values that fit together",
                "run `convert --help` for the form of the command",
            )
        ) from error
    return dict(values)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
