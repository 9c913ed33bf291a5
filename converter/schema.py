"""Checks a composed recipe against the schema and reports everything wrong with it at once."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from converter.errors import Problem, raise_if
from converter.own_slots import broken_slot_problems, recipe_schema
from converter.recipe import Recipe, impossible_values


def parse_recipe(values: Mapping[str, Any]) -> Recipe:
    """Check a composed mapping against the schema and build the `Recipe`.

    Raises:
        ConvertError: lists every unknown key (with the nearest valid one), wrong type and
            impossible value.
    """
    problems, wrong = [*unknown_keys(values)], [*_wrong_values(values)]
    if wrong:
        raise_if(problems + wrong)
    recipe: Recipe = _adapter().validate_python(_without_unknown(values, recipe_schema()))
    raise_if([*problems, *impossible_values(recipe)])
    return recipe


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


def _wrong_values(values: Mapping[str, Any]) -> Iterator[Problem]:
    from pydantic import ValidationError

    try:
        _adapter().validate_python(_without_unknown(values, recipe_schema()))
    except ValidationError as error:
        seen = set()
        for detail in error.errors():
            path = ".".join(str(part) for part in detail["loc"])
            while path and not is_known_path(path):  # a union's branch is not part of the key
                path = path.rpartition(".")[0]
            if path in seen:
                continue
            seen.add(path)
            yield Problem(
                f"{path}={_shown(detail['input'])}.",
                _expected(path, detail["msg"]),
                f"correct {path}; `null` stands for nothing, text with commas or brackets needs "
                f"quotes inside quotes: \"{path}='…'\"",
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
    from pydantic import TypeAdapter

    return TypeAdapter(recipe_schema())
