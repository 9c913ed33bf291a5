"""Which kind of model a config.json is of, and whether a layout reads that kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from converter.errors import Problem
from converter.model.config_file import CONFIG_FILE
from converter.model.json_schema import shown
from converter.recipe.schema import LayoutConfig
from converter.recipe.tree import built_in_files, built_in_values
from converter.recipe.trust import ARCHITECTURE


def kind_problems(config: Mapping[str, Any], layout: LayoutConfig) -> Iterator[Problem]:
    """Why a layout is not made for the model of a config.json, whatever its tensors are."""
    kind = config.get("model_type")
    expected = f"one of {', '.join(layout.model_types)}, which the recipe's layout is for"
    if kind is None:
        yield Problem(
            f"{CONFIG_FILE} has no model_type.",
            expected,
            f"take {CONFIG_FILE} from the model's publisher, or add model_type if you know it",
        )
    elif kind not in layout.model_types:
        yield Problem(
            f"The checkpoint's {CONFIG_FILE} has model_type {shown(kind)}.",
            expected,
            _other_layout(kind),
        )
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    if isinstance(name, str) and not name.endswith("ForCausalLM"):
        yield Problem(
            f"{CONFIG_FILE} has architectures={shown(classes)}, which is no text generator.",
            "a class that ends in ForCausalLM: a decoder with its language model head",
            "choose the checkpoint of the model that generates text",
        )


def _other_layout(kind: Any) -> str:
    name = architecture_of({"model_type": kind})
    if name is not None:
        return f"add {ARCHITECTURE}={name}, or choose a recipe for that model"
    return f"choose a recipe for that model, or {ARCHITECTURE}=… with its description"


@lru_cache(maxsize=1)
def _described() -> tuple[tuple[str, frozenset[str], frozenset[str]], ...]:
    """Name, classes and model types of each built-in architecture."""
    found = []
    for name in built_in_files(ARCHITECTURE):
        layout = built_in_values(f"{ARCHITECTURE}/{name}.yaml").get("layout", {})
        sets = (frozenset(layout.get(key, ())) for key in ("architectures", "model_types"))
        found.append((name, *sets))
    return tuple(found)  # type: ignore[arg-type]


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """The built-in architecture of a config.json: by its class, or else its model_type."""
    classes = config.get("architectures")
    first = str(classes[0]) if isinstance(classes, list) and classes else None
    kind = str(config.get("model_type"))
    for name, known, types in _described():
        if first in known and kind in types:
            return name
    by_type = [name for name, _, types in _described() if kind in types]
    by_class = [name for name, known, _ in _described() if first in known]
    return next(iter(by_type + by_class), None)
