"""Slots that installed packages add to the recipe, for passes of their own.

A package names the slot and its schema as an entry point of the group `convert.slots`; the schema
is a dataclass whose fields all have defaults. It is loaded whenever a recipe is read, so its module
should import little: the pass itself is another entry point (`convert.passes`), loaded only to run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from converter.errors import ConvertError, Problem
from converter.recipe.schema import Recipe

SLOTS = "convert.slots"
Schema = TypeVar("Schema")


@dataclass(frozen=True)
class OwnSlots:
    """The schemas that could be loaded, and what is wrong with the others, by slot."""

    schemas: dict[str, type] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


@lru_cache(maxsize=1)
def own_slots() -> OwnSlots:
    """Slots of all installed packages; a broken one is reported when a recipe uses it."""
    found = OwnSlots()
    for entry in entry_points(group=SLOTS):
        schema, reason = _load(entry)
        if entry.name in found.schemas or entry.name in found.broken:
            reason = "two installed packages bring this slot"
            found.schemas.pop(entry.name, None)
        if reason:
            found.broken[entry.name] = reason
        elif schema is not None:
            found.schemas[entry.name] = schema
    return found


@lru_cache(maxsize=1)
def recipe_schema() -> type[Recipe]:
    """`Recipe`, with one more field for each installed slot."""
    slots: list[Any] = [
        (name, schema, field(default_factory=schema))
        for name, schema in own_slots().schemas.items()
    ]
    if not slots:
        return Recipe
    return dataclasses.make_dataclass("ExtendedRecipe", slots, bases=(Recipe,))


def own_settings(recipe: Recipe, schema: type[Schema]) -> Schema:
    """The settings of the slot that an installed package brings, in its own type.

    Raises:
        ConvertError: no slot of the recipe has this schema.
    """
    for item in dataclasses.fields(recipe):
        value = getattr(recipe, item.name)
        if isinstance(value, schema):
            return value
    raise ConvertError(
        Problem(
            f"The recipe has no slot of the type {schema.__name__}.",
            f"an entry point of the group {SLOTS} that names it",
            "add it to the package's pyproject.toml and install the package again",
        )
    )


def broken_slot_problems(path: str) -> Iterator[Problem]:
    """Why the dotted key `path` is unknown, if a package that cannot be loaded brings its slot."""
    slot = path.partition(".")[0]
    if slot in own_slots().broken:
        yield Problem(
            f"The slot {slot!r} cannot be used: {own_slots().broken[slot]}.",
            f"a dataclass with defaults behind the entry point {slot!r} of the group {SLOTS}",
            "mend or remove the package that brings it (`pip list`)",
            key=(path,),
        )


def _load(entry: EntryPoint) -> tuple[type | None, str]:
    """The schema, or else what is wrong with it."""
    if entry.name in {item.name for item in dataclasses.fields(Recipe)}:
        return None, "it has the name of a built-in slot or key"
    try:
        schema = entry.load()
    except Exception as error:  # whatever an installed module raises must not stop other recipes
        return None, f"{entry.value} cannot be imported ({error})"
    if not (isinstance(schema, type) and dataclasses.is_dataclass(schema)):
        return None, f"{entry.value} is not a dataclass"
    try:
        schema()
    except TypeError as error:
        return None, f"{entry.value} has a field without a default ({error})"
    return schema, ""
