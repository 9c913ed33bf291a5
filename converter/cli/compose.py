"""From the words of a command line to a checked `Recipe`.

The recipe tree gives the values of the files that the words choose; Hydra composes them with what
the words set, and resolves references between keys. Hydra stops at the first unknown key and
accepts `+` before a misspelt one. So every override is checked against the schema and the recipe
tree before Hydra sees it, and the composed mapping again afterwards. What the checks refuse is left
out and the rest composed all the same, so that one error lists the mistakes of both.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from converter.errors import ConvertError, Problem, first_line, raise_if
from converter.recipe.architectures import AUTO, architecture_of, unknown_architecture
from converter.recipe.schema import Recipe
from converter.recipe.tree import (
    EXPORT,
    MODEL,
    OWN,
    RECIPE,
    SOURCE,
    Piece,
    Tree,
    built_in,
    chosen_folders,
    is_foreign,
    local_file,
    merge,
    unknown_choice,
)
from converter.recipe.trust import ARCHITECTURE, RENAMED
from converter.recipe.validation import (
    default_values,
    is_known_path,
    is_text,
    nearest_names,
    own_problems,
    parse_recipe,
    schema_paths,
)
from converter.recipe.validation import unknown_key_problem as unknown_key
from converter.sources.config import source_config

SOURCE_WORDS = ("source.path", "source.repo")
"""Words that make a recipe on their own: whatever checkpoint lies there."""
AUTO_EXPORT = "cpu_int4"
"""What `recipe=auto` is without an export."""
COMPOSED = "composed"
"""Name under which Hydra finds the files' values."""


@dataclass(frozen=True)
class Prepared:
    """A checked command line."""

    words: list[str]
    """As Hydra's grammar reads them."""
    tree: Tree

    def piece(self, words: Sequence[str]) -> Piece:
        """The values that the files chosen by `words` give, layer by layer."""
        items = [parse_word(word) for word in words]
        return self.tree.recipe(_with_architecture(items, self.tree))


def compose_recipe(words: Sequence[str]) -> Recipe:
    """Compose the recipe that `words` (such as recipe=demo quant.bits=8) ask for.

    Raises:
        ConvertError: lists every word that cannot be used, with the nearest one that can.
    """
    return parse_recipe(compose_values(words))


def as_word(name: str) -> str:
    """A recipe's name as a word of the command line; such a word stays as it is."""
    is_word = _key(name) in (RECIPE, MODEL, EXPORT)
    return name if is_word and "=" in name else f"{RECIPE}={name}"


def compose_values(words: Sequence[str]) -> dict[str, Any]:
    """The composed recipe as nested plain containers, not yet checked against the schema."""
    prepared = prepare(words)
    return compose_prepared(prepared.words, prepared)


def compose_prepared(words: Sequence[str], prepared: Prepared) -> dict[str, Any]:
    """Compose `words`, one combination of those that were prepared."""
    items = [parse_word(word) for word in words]
    picked = _with_architecture(items, prepared.tree)
    values = _values(picked, items, prepared.tree)
    if values.get("name") == default_values()["name"]:
        values["name"] = _name(prepared.tree.recipe_name(picked), values.get("source") or {})
    return values


def _name(recipe: str, source: Mapping[str, Any]) -> str:
    """The recipe's name; `auto` says nothing, so there the source's stands in its place."""
    start, mark, export = recipe.partition("_")
    if start != AUTO:
        return recipe
    given = source.get("path") or source.get("repo")
    found = re.sub(r"[^\w.-]+", "_", PurePath(str(given)).name).strip("._") if given else ""
    found = found.removesuffix(".gguf")
    return f"{found}_{export if mark else AUTO_EXPORT}" if found else recipe


def _values(picked: Mapping[str, str], items: Iterable[Any], tree: Tree) -> dict[str, Any]:
    """What the picked files and the words that set values compose to."""
    below = merge(default_values(), tree.recipe(picked).merged())
    return _compose(below, [f"++{item.input_line}" for item in items if not _chooses(item)])


def _source_and_model(
    picked: Mapping[str, str], items: Iterable[Any], tree: Tree
) -> dict[str, Any]:
    """The sections `source` and `model`, without Hydra, which takes ten times as long."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    below = merge(default_values(), tree.recipe(picked).merged())
    values = merge(below, _written(items))
    try:
        whole = OmegaConf.create(values)
        return {part: OmegaConf.to_container(whole[part], resolve=True) for part in (SOURCE, MODEL)}
    except OmegaConfBaseException:  # said when the recipe is composed
        return {}


def _with_architecture(items: Sequence[Any], tree: Tree) -> dict[str, str]:
    """What the words pick, with the architecture that the source's config.json names.

    Raises:
        ConvertError: no description is for it, or two are.
    """
    picked = _picked(items)
    if tree.recipe(picked).choices[ARCHITECTURE] != AUTO:
        return picked
    found = source_config(_source_and_model(picked, items, tree))
    if found is None:
        return picked
    name = architecture_of(found.config)
    if name is None:
        raise ConvertError(unknown_architecture(found.config, found.place))
    return picked | {ARCHITECTURE: name}


def prepare(words: Sequence[str], sweep: bool = False) -> Prepared:
    """Check the words of a command line; `sweep` lets a word hold several values.

    Raises:
        ConvertError: lists every word that cannot be used, with the nearest one that can, what is
            wrong in the files that they name, and, but for a sweep, in what the others compose to.
    """
    words = _with_recipe(words)
    tree, read = _with_local(words)
    items = [parse_word(word, sweep) if isinstance(word, str) else word for word in read]
    refused = [[*_override_problems(item, tree, sweep)] for item in items]
    sound = [item for item, found in zip(items, refused, strict=True) if not found]
    problems = [*_recipe_problems(words), *(problem for found in refused for problem in found)]
    problems += _file_problems(items, tree)
    if problems:
        lost = [_key(word) for word, found in zip(words, refused, strict=True) if found]
        further = [] if sweep else _further_problems(sound, lost, tree)
        raise_if([*problems, *(item for item in further if not _is_listed(item, problems))])
    return _prepared(sound, tree)


def _with_recipe(words: Sequence[str]) -> list[str]:
    """The words, with recipe=auto in front where they name a source and no recipe."""
    given = {_key(word) for word in words}
    named = given & {RECIPE, MODEL} or any("=" not in word for word in words)
    return list(words) if named or not given & {*SOURCE_WORDS} else [f"{RECIPE}={AUTO}", *words]


def _prepared(overrides: Sequence[Any], tree: Tree) -> Prepared:
    return Prepared([item.input_line.lstrip("+") for item in overrides], tree)


def written(words: Iterable[str]) -> dict[str, Any]:
    """What the words set themselves, nested, without the files that they choose."""
    return _written(map(parse_word, words))


def _chooses(item: Any) -> bool:
    """Whether a parsed override chooses a file, and does not set values."""
    return item.key_or_group in chosen_folders() and not isinstance(item._value, (dict, list))


def _picked(items: Iterable[Any]) -> dict[str, str]:
    """Folder to the option that the parsed overrides of one job choose from it."""
    return {item.key_or_group: str(options(item)[0]) for item in items if _chooses(item)}


def options(item: Any) -> list[Any]:
    """The values of a parsed override: one, or those that a sweep goes through."""
    return list(item.sweep_iterator()) if item.is_sweep_override() else [item.value()]


def _with_local(words: Sequence[str]) -> tuple[Tree, list[str | Problem]]:
    """The tree in use, and the words with recipe=./FILE.yaml replaced by an option's name.

    The name is the same for all files: a path may hold what Hydra's grammar cannot read. A word
    whose file does not exist becomes the problem that it is.
    """
    tree = Tree()
    found: list[str | Problem] = []
    for word in words:
        key, _, value = word.partition("=")
        try:
            path = local_file(_unquoted(value)) if key == RECIPE else None
            tree = Tree(path) if path else tree
            plain = key in RENAMED and not value.startswith("{")
            word = f"{RENAMED[key]}={value}" if plain else word
            found.append(f"{RECIPE}={OWN}" if path else word)
        except ConvertError as error:
            found += error.problems
    return tree, found


def _unquoted(value: str) -> str:
    """The value without the quotes around it, if there are any."""
    quotes = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quotes else value


def _key(word: str) -> str:
    """The slot or the dotted key that a word sets."""
    return word.partition("=")[0].lstrip("+~")


def parse_word(word: str, sweep: bool = False) -> Any:
    """The word as Hydra's `Override`, or a `Problem` when it is none.

    A text that Hydra's grammar cannot read, such as a path with letters that are not ASCII, is
    quoted here; in a sweep its commas part values, so one that has them is not.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if "=" not in word and not word.startswith("~"):
        near = nearest_names(word, built_in(RECIPE), 1)
        return Problem(
            f"{word!r} is not a verb, nor of the form key=value.",
            "recipe=NAME [key=value …]",
            f"write recipe={near[0]}" if near else "run `convert --help`",
        )
    candidates = [word, _as_text(word)] if _may_be_quoted(word, sweep) else [word]
    for candidate in candidates:
        try:
            return OverridesParser.create().parse_override(candidate)
        except HydraException:
            continue
    return Problem(
        f"{word!r} cannot be read.",
        "key=value, with quotes inside quotes around values that have spaces, commas, "
        "brackets or an equals sign",
        f"write {_typed(_as_text(word))}",
    )


def _may_be_quoted(word: str, sweep: bool) -> bool:
    """Whether the word's value is a text or a name that its user has not quoted."""
    key, _, value = word.partition("=")
    known = key in chosen_folders() or is_text(key.lstrip("+"))
    return known and value[:1] not in ("'", '"') and not (sweep and "," in value)


def _as_text(word: str) -> str:
    """The word with its value in quotes, as Hydra's grammar escapes them."""
    from hydra.core.override_parser.types import Quote, QuotedString

    key, _, value = word.partition("=")
    return f"{key}={QuotedString(text=value, quote=Quote.single).with_quotes()}"


def _typed(word: str) -> str:
    """The word as it is typed in a shell."""
    return shlex.quote(word) if any(char in word for char in '"$`!') else f'"{word}"'


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
    elif _chooses(item):
        for option in options(item):
            yield from _choice_problems(key, str(option), tree)
    elif key.startswith("hydra") or (key not in chosen_folders() and not is_known_path(key)):
        yield unknown_key(key)
    elif key == "source.revision" and not isinstance(item.value(), (str, type(None))):
        written = item.input_line.partition("=")[2]
        yield Problem(
            f"source.revision={written} was read as the number {item.value()}.",
            "a branch, a tag or a 40-digit commit",
            f"write \"source.revision='{written}'\"",
        )


def _choice_problems(slot: str, choice: str, tree: Tree) -> Iterator[Problem]:
    """Why an option cannot be composed; of one that is not built in, in all files it builds on."""
    if is_foreign(choice):
        yield from tree.survey(slot, choice).broken
    elif choice not in built_in(slot):
        yield unknown_choice(slot, choice)


def _file_problems(overrides: Iterable[Any], tree: Tree) -> Iterator[Problem]:
    """Unknown keys and wrong types in the chosen files that are not built in, each with its file.

    Composing such files is possible all the same.
    """
    for slot, choice in _chosen(overrides):
        for layer in tree.survey(slot, choice).layers if is_foreign(choice) else ():
            for problem in own_problems(layer.values):
                yield problem.at(layer.label)


def _chosen(overrides: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Slot and option of each word that chooses one."""
    from hydra.core.override_parser.types import Glob

    for item in overrides:
        if isinstance(item, Problem) or isinstance(item._value, (dict, list, Glob)):
            continue
        if item.key_or_group in chosen_folders() and not item.is_delete():
            for option in options(item):
                yield item.key_or_group, str(option)


def _recipe_problems(words: Sequence[str]) -> Iterator[Problem]:
    """No recipe, nor a word that was meant to be one."""
    given = {_key(word): word for word in words}
    if RECIPE in given or {MODEL, EXPORT} <= given.keys() or any("=" not in w for w in words):
        return
    remedy = "add recipe=NAME, such as recipe=demo, or source.path=FOLDER"
    if EXPORT in given:
        remedy = f"add {MODEL}=NAME, such as {MODEL}=internlm2_7b; `convert list` has them all"
    elif MODEL in given:
        remedy = f"add {EXPORT}=NAME, such as {EXPORT}=cpu_int4; `convert list` has them all"
    alone = given.get(EXPORT) or given.get(MODEL)
    found = f"{alone} alone is no recipe." if alone else "No recipe is given."
    yield Problem(found, "recipe=NAME, or model=NAME export=NAME", remedy)


def _further_problems(sound: Sequence[Any], lost: Sequence[str], tree: Tree) -> list[Problem]:
    """What is wrong with the words that can be used, composed without the `lost` keys.

    Nothing is said of what those decide: its value is not what the user wants.
    """
    values = _composed_anyway(sound, tree)
    if values is None:
        return list(own_problems(_written(sound)))
    given = {item.key_or_group for item in sound}
    unsure = {path for key in lost for path in _decided_by(key)} - given
    try:
        parse_recipe(values)
    except ConvertError as error:
        return [item for item in error.problems if not any(item.concerns(key) for key in unsure)]
    return []


def _decided_by(key: str) -> list[str]:
    """The dotted keys that a word for `key`, or for what a misspelt `key` was meant to be, sets."""
    known = key in chosen_folders() or is_known_path(key)
    name = key if known else next(iter(nearest_names(key, schema_paths(), 1)), key)
    return [path for path in schema_paths() if path.startswith(f"{name}.")] or [name]


def _composed_anyway(sound: Sequence[Any], tree: Tree) -> dict[str, Any] | None:
    """The composed recipe; None where the words left do not make one."""
    given = {item.key_or_group for item in sound}
    if RECIPE not in given and not {MODEL, EXPORT} <= given:
        return None
    try:
        prepared = _prepared(sound, tree)
        return compose_prepared(prepared.words, prepared)
    except ConvertError:
        return None


def _written(overrides: Iterable[Any]) -> dict[str, Any]:
    """The values that words give to keys, nested."""
    found: dict[str, Any] = {}
    for item in overrides:
        if item.key_or_group in chosen_folders() and not isinstance(item._value, dict):
            continue
        value: Any = item.value()
        for part in reversed(item.key_or_group.split(".")):
            value = {part: value}
        found = merge(found, value)
    return found


def _is_listed(problem: Problem, known: Iterable[Problem]) -> bool:
    """Whether a problem is known already, perhaps with the file that it is in."""
    return any(replace(item, where="") == replace(problem, where="") for item in known)


def _compose(values: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """What Hydra makes of the files' values and of `words`, such as ++quant.bits=8."""
    from hydra import compose, initialize
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name=COMPOSED, node=dict(values))
    try:
        with initialize(config_path=None, version_base="1.3"):
            config = compose(COMPOSED, list(words))
            found: Any = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConvertError(
            Problem(
                f"The recipe cannot be composed: {first_line(error)}.",
                "values that fit together",
                "run `convert --help` for the form of the command",
            )
        ) from error
    return dict(found)
