"""Passes are found by their entry points, those of this package like any other."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from converter.engine import registry
from converter.engine.contract import Done, Pass, Run
from converter.engine.registry import load_pass, make_passes, pass_names
from converter.errors import ConvertError
from converter.recipe.tree import built_in_values

ROOT = Path(__file__).resolve().parents[3]


class Card(Pass[None, int]):
    name = "card"

    def run(self, artifact: None, run: Run) -> Done[int]:
        return Done(1)


def installed(monkeypatch: pytest.MonkeyPatch, *found: tuple[str, str]) -> None:
    entries = tuple(EntryPoint(name, value, registry.GROUP) for name, value in found)
    monkeypatch.setattr(registry, "pass_entries", lambda: entries)


def test_the_default_order_names_every_built_in_pass() -> None:
    named = built_in_values("convert.yaml")["passes"]
    assert set(named) <= set(pass_names())
    assert [item.name for item in make_passes(named)] == named


def test_a_pass_of_the_house_registers_as_a_guest_does() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    entries = settings["project"]["entry-points"][registry.GROUP]
    modules = {path.stem for path in (ROOT / "passes").glob("*.py")}
    passes = {f"passes.{name}" for name in modules if not name.endswith(("_settings", "__init__"))}
    assert {value.partition(":")[0] for value in entries.values()} == passes
    (independent,) = (
        set(contract["modules"])
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["type"] == "independence"
    )
    assert independent == passes


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ConvertError) as raised:
        make_passes(["load", "quantise", "xyzzy"])
    first, second = raised.value.problems
    assert "'quantise'" in first.found and first.remedy == "write quantize in the recipe's passes"
    assert "'xyzzy'" in second.found and second.remedy == "correct the recipe's passes"


def test_a_pass_of_another_package_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, ("card", f"{__name__}:Card"))
    assert load_pass("card").__name__ == "Card"


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([("card", "no_such_module:Card")], "No module named"),
        ([("card", "pathlib:Path")], "it is not a Pass with name = 'card'"),
        ([("other", "passes.load:Load")], "it is not a Pass with name = 'other'"),
        ([("card", "a:Card"), ("card", "b:Card")], "Several installed packages bring a pass"),
    ],
    ids=["import", "no pass", "another name", "two"],
)
def test_a_broken_one_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, found: list[Any], says: str
) -> None:
    installed(monkeypatch, *found)
    with pytest.raises(ConvertError) as raised:
        make_passes([found[0][0]])
    assert says in str(raised.value) and found[0][1] in str(raised.value)
