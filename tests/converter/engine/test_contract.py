"""What a pass says of itself, and the names that a pass of another package imports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import converter.engine
from converter.engine.contract import Done, Pass, Run
from converter.engine.plan import make_plan
from converter.engine.registry import make_passes, pass_names
from converter.errors import ConvertError
from converter.graph.graph import Graph
from converter.model.decoder import Decoder
from converter.output.package import Package
from converter.recipe.schema import Recipe
from converter.storage.staging import Staging


class Same(Pass[Package, Package]):
    name = "same"

    def run(self, artifact: Package, run: Run) -> Done[Package]:
        raise AssertionError("a plan runs nothing")


class Other(Pass[Decoder, Graph]):
    name = "other"

    def run(self, artifact: Decoder, run: Run) -> Done[Graph]:
        raise AssertionError("a plan runs nothing")


class Anything(Pass[Any, list[int]]):
    name = "anything"

    def run(self, artifact: Any, run: Run) -> Done[list[int]]:
        return Done([])


class Derived(Same):
    name = "derived"


@pytest.mark.parametrize(
    ("kind", "takes", "gives"),
    [
        (Same, Package, Package),
        (Other, Decoder, Graph),
        (Derived, Package, Package),
        (Anything, object, list),
    ],
)
def test_types_come_from_the_generics_arguments(kind: Any, takes: type, gives: type) -> None:
    assert (kind.takes, kind.gives) == (takes, gives)


def test_a_preview_passes_on_what_it_has_of_the_right_type(tmp_path: Path) -> None:
    run = Run(Recipe(), Staging.nowhere())
    package = Package(tmp_path, None, 0)  # type: ignore[arg-type]
    assert Same().preview(package, run) is package


def test_a_pass_that_makes_something_else_has_to_say_what() -> None:
    run = Run(Recipe(), Staging.nowhere())
    with pytest.raises(ConvertError, match="The pass other does not say") as raised:
        Other().preview(None, run)  # type: ignore[arg-type]
    assert "a method preview that gives a Graph" in str(raised.value)
    assert "implement preview in Other" in str(raised.value)


def test_a_plan_runs_no_pass_of_a_team(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe()
    passes = [*make_passes(["load", "layout", "graph", "package"]), Same()]
    plan = make_plan(recipe, passes)
    assert plan.problems == () and plan.passes[-1] == "same"
    assert plan.unknown_memory == ("same",)
    with pytest.raises(ConvertError, match="The pass other does not say"):
        make_plan(recipe, [*make_passes(["load", "layout"]), Other()])


def test_passes_keep_nothing_between_their_methods(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(
        "quant=best", "verify=standard", "tune=standard", "evaluate=standard", "benchmark=standard"
    )
    passes = make_passes(pass_names())
    decoder = make_plan(recipe, make_passes(["load", "layout", "graph"])).decoder
    assert decoder is not None
    for item in passes:
        list(item.requires(recipe, decoder))
        list(item.disk(recipe, decoder))
        assert vars(item) == {}, item.name


def test_every_public_name_is_at_its_home() -> None:
    homes = converter.engine._HOMES
    assert sorted(name for names in homes.values() for name in names) == converter.engine.__all__
    for home, names in homes.items():
        for name in names:
            assert getattr(converter.engine, name).__module__ == home
    with pytest.raises(AttributeError, match="no attribute 'Pas'"):
        converter.engine.Pas  # noqa: B018


def test_listing_passes_does_not_wait_for_pytorch() -> None:
    script = (
        "import sys, converter.engine, converter.engine.registry as registry\n"
        "assert 'load' in registry.pass_names()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
