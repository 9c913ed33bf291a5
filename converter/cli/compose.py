"""From the words of a command line to a checked `Recipe`, through Hydra's composition.

Hydra stops at the first unknown key and accepts `+` before a misspelt one. So every override is
checked against the schema and the recipe tree before Hydra sees it, and the composed mapping
again afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem, raise_if
from converter.recipe import Recipe
from converter.schema import (
    default_values,
    is_known_path,
    nearest_names,
    parse_recipe,
    unknown_key_problem,
)

PRIMARY = "convert"


def recipes_folder() -> Path:
    """Folder of the built-in recipe tree."""
    folder: Any = files("recipes")
    return Path(str(folder))


def group_choices(group: str) -> list[str]:
    """Names of a slot's choices, such as the recipes or the targets."""
    return sorted(path.stem for path in (recipes_folder() / group).glob("*.yaml"))


def groups() -> list[str]:
    """Names of the slots."""
    folder = recipes_folder()
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "_")


def compose_recipe(words: Sequence[str]) -> Recipe:
    """Compose the recipe that `words` (such as recipe=demo quant.bits=8) ask for.

    Raises:
        ConvertError: lists every word that cannot be used, with the nearest one that can.
    """
    return parse_recipe(compose_values(words))


def compose_values(words: Sequence[str]) -> dict[str, Any]:
    """The composed recipe as nested plain containers, not yet checked against the schema."""
    overrides = [_parse(word) for word in words]
    raise_if(problem for item in overrides for problem in _override_problems(item))
    raise_if(_recipe_problems(overrides))
    values = _compose([_hydra_word(item) for item in overrides if not isinstance(item, Problem)])
    if values.get("name") == default_values()["name"]:
        values["name"] = next(item.value() for item in overrides if item.key_or_group == "recipe")
    return values


def _parse(word: str) -> Any:
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


def _override_problems(item: Any) -> Iterator[Problem]:
    if isinstance(item, Problem):
        yield item
        return
    key = item.key_or_group
    if item.is_delete():
        yield Problem(
            f"{item.input_line!r} removes a key.",
            "every key of a recipe present",
            f"set {key}=null or choose another option of its slot",
        )
    elif item.is_sweep_override():
        yield Problem(
            f"{item.input_line!r} holds several values.",
            "one value, unless the command sweeps",
            f"convert -m … to sweep, or \"{key}='…'\" for a text with commas",
        )
    elif key in groups() and isinstance(item.value(), (str, int, float)):
        yield from _choice_problems(key, str(item.value()))
    elif key.startswith("hydra") or (key not in groups() and not is_known_path(key)):
        yield unknown_key_problem(key)
    elif key == "source.revision" and not isinstance(item.value(), (str, type(None))):
        written = item.input_line.partition("=")[2]
        yield Problem(
            f"source.revision={written} was read as the number {item.value()}.",
            "a branch, a tag or a 40-digit commit",
            f"write \"source.revision='{written}'\"",
        )


def _choice_problems(group: str, choice: str) -> Iterator[Problem]:
    choices = group_choices(group)
    if choice in choices:
        return
    near = nearest_names(choice, choices)
    shown = near or choices[:8]
    yield Problem(
        f"Unknown {group} {choice!r}.",
        f"one of the {len(choices)} built-in ones{'; the nearest: ' if near else ', such as '}"
        f"{', '.join(shown)}",
        f"write {group}={shown[0]}, or run `convert --help` for a list",
    )


def _recipe_problems(overrides: Iterable[Any]) -> Iterator[Problem]:
    if not any(item.key_or_group == "recipe" for item in overrides):
        yield Problem("No recipe is given.", "recipe=NAME", "convert recipe=demo")


def _hydra_word(item: Any) -> str:
    """The override as Hydra takes it: `++` lets a key stand whether or not a file names it."""
    word: str = item.input_line.lstrip("+")
    return word if item.key_or_group in groups() else f"++{word}"


def _compose(words: Sequence[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name="schema", node=default_values())
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
