from __future__ import annotations

import dataclasses
import inspect
import runpy
import typing
from pathlib import Path
from typing import Any

from converter.engine.registry import load_pass
from converter.recipe.guest_slots import recipe_schema
from converter.recipe.schema import OliveConfig
from converter.recipe.tree import built_in_values

SCRIPT: dict[str, Any] = runpy.run_path(
    str(Path(__file__).resolve().parents[2] / "scripts" / "reference.py")
)


def test_the_document_is_what_the_code_says() -> None:
    written = SCRIPT["DOCUMENT"].read_text(encoding="utf-8")
    assert written == SCRIPT["document"](), "run `python scripts/reference.py`"


def test_every_pass_names_a_slot_of_the_recipe_and_guarantees_something() -> None:
    hints = typing.get_type_hints(recipe_schema())
    slots = {name for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    for name in built_in_values("convert.yaml")["passes"]:
        found = load_pass(name)
        assert found.slot in slots, name
        assert found.guarantees and inspect.getdoc(found), name


def test_the_text_below_a_field_is_its_description() -> None:
    docs = SCRIPT["field_docs"](OliveConfig)
    assert docs["timeout"] == "Seconds after which Olive is stopped."
