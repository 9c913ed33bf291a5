"""Which kind of model a config.json is of, and whether a layout reads that kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from converter.errors import Problem
from converter.model.config_file import CONFIG_FILE
from converter.model.json_schema import shown
from converter.recipe.architectures import architecture_of
from converter.recipe.schema import LayoutConfig
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
    known = isinstance(name, str) and (name.endswith("ForCausalLM") or name in layout.architectures)
    if isinstance(name, str) and not known:
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
