"""Slots that installed packages add; those of the optional passes of this one are among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from converter.errors import ConvertError
from converter.recipe import guest_slots
from converter.recipe.guest_slots import (
    SLOTS,
    broken_slot_problems,
    own_settings,
    own_slots,
    recipe_schema,
)
from converter.recipe.schema import Recipe
from passes.benchmark_settings import BenchmarkSettings
from passes.tune_settings import TuneSettings


@dataclasses.dataclass
class Card:
    title: str = "none"


@dataclasses.dataclass
class Untitled:
    title: str


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def install(*found: tuple[str, str]) -> None:
        entries = [EntryPoint(name, value, SLOTS) for name, value in found]
        monkeypatch.setattr(guest_slots, "entry_points", lambda group: entries)

    def forget() -> None:
        own_slots.cache_clear()
        recipe_schema.cache_clear()

    forget()
    yield install
    forget()


def test_the_slots_of_optional_passes_come_with_them() -> None:
    recipe = recipe_schema()()
    assert own_settings(recipe, TuneSettings) == TuneSettings()
    assert own_settings(recipe, BenchmarkSettings) == BenchmarkSettings()
    assert "tune" not in {item.name for item in dataclasses.fields(Recipe)}


def test_a_slot_of_another_package_is_a_field_of_the_recipe(installed: Any) -> None:
    installed(("card", f"{__name__}:Card"))
    recipe: Any = recipe_schema()(card=Card("mine"))  # type: ignore[call-arg]
    assert own_settings(recipe, Card).title == "mine" and recipe.card.title == "mine"
    assert own_slots().broken == {}


def test_a_missing_slot_says_what_brings_it() -> None:
    with pytest.raises(ConvertError, match="no slot of the type Card") as raised:
        own_settings(Recipe(), Card)
    assert SLOTS in str(raised.value)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([("quant", f"{__name__}:Card")], "the name of a built-in slot"),
        ([("card", "no_such_module:Card")], "cannot be imported"),
        ([("card", "pathlib:Path")], "is not a dataclass"),
        ([("card", f"{__name__}:Untitled")], "a field without a default"),
        ([("card", f"{__name__}:Card")] * 2, "two installed packages"),
    ],
    ids=["taken", "import", "no dataclass", "no default", "two"],
)
def test_a_broken_slot_is_a_problem_where_it_is_used(
    installed: Any, found: list[tuple[str, str]], reason: str
) -> None:
    installed(*found)
    name = found[0][0]
    assert recipe_schema() is Recipe
    (problem,) = broken_slot_problems(f"{name}.title")
    assert reason in problem.found and f"'{name}'" in problem.found
    assert list(broken_slot_problems("graph.context_length")) == []
