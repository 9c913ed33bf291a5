"""Checks a composed recipe against the schema and reports everything wrong with it at once."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from converter.errors import Problem, raise_if
from converter.recipe.guest_slots import broken_slot_problems, recipe_schema
from converter.recipe.rules import impossible_values
from converter.recipe.schema import Recipe

PLACES = {
    "output": "a folder to write; null means ./NAME",
    "source.path": "the checkpoint's folder; null means the model's repository on the hub",
    "evaluate.text": "`builtin`, a file or a folder",
    "calibration.text": "`builtin`, a file or a folder",
    "olive.workflow": "a workflow file of Olive, or null",
}
"""Keys that name a file or a folder, and what they may name; an empty text names none."""


def parse_recipe(values: Mapping[str, Any]) -> Recipe:
    """Check a composed mapping against the schema and build the `Recipe`.

    Raises:
        ConvertError: lists every unknown key (with the nearest valid one), wrong type and
            impossible value.
    """
    known = _without_unknown(values, recipe_schema())
    problems, wrong = [*unknown_keys(values)], dict(_wrong_values(known))
    raise_if([*problems, *wrong.values(), *_impossible_beside(known, wrong)])
    recipe: Recipe = _adapter().validate_python(known)
    return recipe


def own_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with some of a recipe's values, whatever the others are.

    Unknown keys and wrong types; a value that interpolates another is not known yet.
    """
    yield from unknown_keys(values)
    known = _without_unknown(values, recipe_schema())
    for path, problem in _wrong_values(known):
        if "${" not in str(_at(known, path)):
            yield problem


def default_values() -> dict[str, Any]:
    """Every key of the schema with its default, as nested plain containers."""
    return dataclasses.asdict(recipe_schema()())


def unknown_keys(values: Mapping[str, Any]) -> Iterator[Problem]:
    """A problem for each key of `values` that the schema does not have."""
    for path, known in _unknown_paths(values, recipe_schema(), ""):
        yield unknown_key_problem(path, known)


def unknown_key_problem(path: str, known: Sequence[str] | None = None) -> Problem:
    """The problem of the unknown dotted key `path`, with the nearest keys that exist.

    `known` are the keys that could stand there; None means all of the recipe's.
    """
    for problem in broken_slot_problems(path):
        return problem
    nearest = nearest_names(path, schema_paths() if known is None else known)
    return Problem(
        f"Unknown key {path!r}.",
        f"one of the recipe's keys{'; the nearest: ' + ', '.join(nearest) if nearest else ''}",
        f"write {nearest[0]}=…" if nearest else "run `convert --help` for the slots and keys",
        key=(path,),
    )


def nearest_names(name: str, known: typing.Iterable[str], count: int = 3) -> list[str]:
    """The names of `known` that are most like `name`, best first; empty when none is."""
    known = list(known)
    tails: dict[str, str] = {}
    for path in known:
        tails.setdefault(path.rsplit(".", 1)[-1], path)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.6)
    by_tail = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.6)
    return list(dict.fromkeys([*close, *(tails[tail] for tail in by_tail)]))[:count]


def schema_paths(schema: type | None = None, prefix: str = "") -> list[str]:
    """Dotted names of all keys of a schema dataclass (the recipe's), inner ones included."""
    paths = []
    for name, inner in _fields(schema or recipe_schema()).items():
        paths.append(prefix + name)
        if dataclasses.is_dataclass(inner):
            paths += schema_paths(typing.cast(type, inner), f"{prefix}{name}.")
    return paths


def is_known_path(path: str) -> bool:
    """Whether the dotted `path` is a key of the schema, or lies inside a free-form mapping."""
    schema: Any = recipe_schema()
    for part in path.split("."):
        if not dataclasses.is_dataclass(schema):
            return typing.get_origin(schema) is dict
        if part not in _fields(typing.cast(type, schema)):
            return False
        schema = _fields(typing.cast(type, schema))[part]
    return True


def is_text(path: str) -> bool:
    """Whether the dotted `path` is a key whose value is a text, or a text or null."""
    kind: Any = recipe_schema()
    for part in path.split("."):
        kind = (
            _fields(typing.cast(type, kind)).get(part) if dataclasses.is_dataclass(kind) else None
        )
    return kind in (str, str | None)


def _impossible_beside(values: Mapping[str, Any], wrong: Iterable[str]) -> Iterator[Problem]:
    """Impossible values, with defaults for the keys in `wrong`; nothing that speaks of those."""
    from pydantic import ValidationError

    try:
        recipe: Recipe = _adapter().validate_python(_without(values, wrong))
    except ValidationError:  # a default of an installed slot may itself be of a wrong type
        return
    for problem in impossible_values(recipe):
        if not any(problem.concerns(key) for key in wrong):
            yield problem


def _at(values: Mapping[str, Any], path: str) -> Any:
    """The value at the dotted `path`; None where there is none."""
    value: Any = values
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _without(values: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """A copy without the dotted `paths`."""
    kept = copy.deepcopy(dict(values))
    for path in paths:
        *above, last = path.split(".")
        inner: Any = kept
        for part in above:
            inner = inner.get(part) if isinstance(inner, Mapping) else None
        if isinstance(inner, dict):
            inner.pop(last, None)
    return kept


def _wrong_values(values: Mapping[str, Any]) -> Iterator[tuple[str, Problem]]:
    """Keys with values of a wrong type, and places that are empty; `values` has known keys only."""
    yield from _type_problems(values)
    for path, expected in PLACES.items():
        value = _at(values, path)
        if isinstance(value, str) and not value.strip():
            yield (
                path,
                Problem(
                    f"{path} is empty; perhaps a variable of the shell is not set.",
                    expected,
                    f"write {path}=… with its value, or leave {path} out",
                    key=(path,),
                ),
            )


def _type_problems(values: Mapping[str, Any]) -> Iterator[tuple[str, Problem]]:
    from pydantic import ValidationError

    try:
        _adapter().validate_python(values)
    except ValidationError as error:
        seen = set()
        for detail in error.errors():
            path = ".".join(str(part) for part in detail["loc"])
            while path and not is_known_path(path):  # a union's branch is not part of the key
                path = path.rpartition(".")[0]
            if path in seen:
                continue
            seen.add(path)
            yield (
                path,
                Problem(
                    f"{path}={_shown(detail['input'])}.",
                    _expected(path, detail["msg"]),
                    f"correct {path}; `null` stands for nothing, text with commas or brackets "
                    f"needs quotes inside quotes: \"{path}='…'\"",
                    key=(path,),
                ),
            )


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _expected(path: str, message: str) -> str:
    kind: Any = recipe_schema()
    for part in path.split("."):
        kind = _fields(kind).get(part, str) if isinstance(kind, type) and _is_schema(kind) else str
    options: list[Any] = [kind, *typing.get_args(kind)]
    for option in options:
        if typing.get_origin(option) is Literal:
            return "one of " + ", ".join(str(value) for value in typing.get_args(option))
    return message[:1].lower() + message[1:].replace("Input", "input")


def _unknown_paths(
    values: Mapping[str, Any], schema: type, prefix: str
) -> Iterator[tuple[str, list[str] | None]]:
    """Unknown keys; inside a list's item, with the keys that the item may have."""
    known = _fields(schema)
    for key, value in values.items():
        if key not in known:
            names = [f"{prefix}{name}" for name in known] if "]" in prefix else None
            yield f"{prefix}{key}", names
        elif dataclasses.is_dataclass(known[key]) and isinstance(value, Mapping):
            yield from _unknown_paths(value, typing.cast(type, known[key]), f"{prefix}{key}.")
        elif isinstance(value, list) and dataclasses.is_dataclass(_item(known[key])):
            for number, item in enumerate(value):
                if isinstance(item, Mapping):
                    inner = f"{prefix}{key}[{number}]."
                    yield from _unknown_paths(item, _item(known[key]), inner)


def _item(kind: Any) -> Any:
    """The X of `list[X]`, else None."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is list else None


def _without_unknown(values: Mapping[str, Any], schema: type) -> dict[str, Any]:
    known, kept = _fields(schema), {}
    for key, value in values.items():
        if key in known:
            inner = known[key]
            nested = dataclasses.is_dataclass(inner) and isinstance(value, Mapping)
            kept[key] = _without_unknown(value, typing.cast(type, inner)) if nested else value
    return kept


def _fields(schema: type) -> dict[str, Any]:
    """Field names and types; `X | None` counts as X where X is a dataclass."""
    hints = typing.get_type_hints(schema)
    found = {}
    for item in dataclasses.fields(schema):
        kind = hints[item.name]
        if isinstance(kind, types.UnionType):
            inner = [arg for arg in typing.get_args(kind) if dataclasses.is_dataclass(arg)]
            kind = inner[0] if inner else kind
        found[item.name] = kind
    return found


def _is_schema(kind: type) -> bool:
    return dataclasses.is_dataclass(kind)


def _adapter() -> Any:
    return _adapter_of(recipe_schema())  # type: ignore[arg-type]


@lru_cache(maxsize=8)
def _adapter_of(schema: Any) -> Any:
    """One for each schema: making it takes longer than a check."""
    from pydantic import TypeAdapter

    return TypeAdapter(schema)
