"""The descriptions of the tree (recipes/architecture/), by the models that they are for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from converter.errors import ConvertError, Problem
from converter.recipe.tree import Tree, choices, is_foreign
from converter.recipe.trust import ARCHITECTURE
from converter.recipe.validation import nearest_names

AUTO = "auto"
"""The choice that stands for what config.json names."""


@dataclass(frozen=True)
class Described:
    """A description, and which values of config.json it is for."""

    name: str
    classes: frozenset[str]
    model_types: frozenset[str]


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """The architecture of a config.json: by its class and model_type, or else by one of them.

    Of several for a model_type, the one of that name is meant.

    Raises:
        ConvertError: two descriptions are for it.
    """
    classes, kind = config.get("architectures"), str(config.get("model_type"))
    first = str(classes[0]) if isinstance(classes, list) and classes else None
    known = descriptions()
    by_type = [item for item in known if kind in item.model_types]
    both = [item for item in by_type if first in item.classes]
    by_class = [item for item in known if first in item.classes]
    found = next((group for group in (both, by_type, by_class) if group), [])
    own = [item for item in found if is_foreign(item.name)] or found
    own = [item for item in own if item.name == kind] or own
    if len(own) > 1:
        raise ConvertError(_ambiguous(kind, own))
    return own[0].name if own else None


@lru_cache(maxsize=8)
def _built_in(names: tuple[str, ...]) -> tuple[Described, ...]:
    return tuple(_described(names))


def descriptions() -> tuple[Described, ...]:
    """All descriptions that name a class or a model_type; a team's come last."""
    return _built_in(tuple(choices(ARCHITECTURE)))


def _described(names: tuple[str, ...]) -> Iterator[Described]:
    tree = Tree()
    for name in names:
        layout = tree.piece(ARCHITECTURE, name).merged().get("layout", {})
        sets = (frozenset(layout.get(key, ())) for key in ("architectures", "model_types"))
        if name != AUTO:
            yield Described(name, *sets)


def unknown_architecture(config: Mapping[str, Any], place: str) -> Problem:
    """The problem of a config.json that no description is for."""
    kind, classes = config.get("model_type"), config.get("architectures")
    near = nearest_names(str(kind), [item.name for item in descriptions()])
    shown = f"; the nearest: {', '.join(near)}" if near else ""
    return Problem(
        f"config.json of {place} has model_type {str(kind)[:60]!r} and architectures "
        f"{str(classes)[:80]}, which no architecture is described for.",
        f"one of the {len(descriptions())} of `convert list architecture`{shown}",
        "describe it in a file of your own (docs/guide/own_model.md), or add architecture=NAME",
    )


def _ambiguous(kind: str, found: list[Described]) -> Problem:
    names = [item.name for item in found]
    return Problem(
        f"The descriptions {' and '.join(names)} are both for model_type {kind!r}.",
        "one description for a model",
        f"add architecture={names[0]}",
    )
