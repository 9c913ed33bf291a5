from __future__ import annotations

import dataclasses
import inspect
import re
import runpy
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from converter.engine.registry import load_pass
from converter.recipe.guest_slots import recipe_schema
from converter.recipe.schema import OliveConfig
from converter.recipe.tree import built_in_values

SCRIPT: dict[str, Any] = runpy.run_path(
    str(Path(__file__).resolve().parents[2] / "scripts" / "reference.py")
)


@pytest.mark.parametrize("name", ["passes.md", "keys.md", "verbs.md"])
def test_a_page_is_what_the_code_says(name: str) -> None:
    written = (SCRIPT["FOLDER"] / name).read_text(encoding="utf-8")
    assert written == SCRIPT["pages"]()[name], "run `python scripts/reference.py`"


def test_nothing_in_the_tables_lacks_its_text() -> None:
    for name, text in SCRIPT["pages"]().items():
        assert not re.findall(r"^\|.*\|  \|$", text, re.MULTILINE), name


def test_the_keys_are_those_of_the_schema() -> None:
    listed = set(re.findall(r"^\| `([a-z_.]+)`", SCRIPT["pages"]()["keys.md"], re.MULTILINE))
    assert set(all_keys(recipe_schema())) <= listed


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


def all_keys(schema: Any, prefix: str = "") -> Iterator[str]:
    for name, kind in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(kind):
            yield from all_keys(kind, f"{prefix}{name}.")
        elif not isinstance(getattr(schema, name, None), property):
            yield f"{prefix}{name}"
