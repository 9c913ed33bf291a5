"""The pass benchmark: what it asks of a recipe, and what the lock file gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime_genai")

from converter.engine.execution import run_recipe
from converter.engine.registry import make_passes
from passes.benchmark import Benchmark

PASSES = ["load", "layout", "graph", "quantize", "package", "benchmark"]


@pytest.mark.slow
def test_its_figures_are_in_the_lock_file(make_recipe: Callable[..., Any], tmp_path: Path) -> None:
    small = ["benchmark.rounds=1", "benchmark.new_tokens=2", "benchmark.prompt_lengths=[4]"]
    recipe = make_recipe("benchmark=standard", *small)
    recipe.output = str(tmp_path / "out")
    run_recipe(recipe, make_passes(PASSES))
    facts = json.loads((tmp_path / "out/convert.lock.json").read_text())["facts"]["benchmark"]
    assert facts["decode_tokens_per_second"]["median"] > 0
    assert facts["bandwidth"] > 1e8
    assert "folder" not in facts


def test_a_provider_that_is_not_there_is_not_measured(
    make_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = make_recipe("target=dml", "benchmark=standard")
    recipe.output = str(tmp_path / "out")
    run_recipe(recipe, make_passes(PASSES))
    assert "facts" not in json.loads((tmp_path / "out/convert.lock.json").read_text())


@pytest.mark.parametrize(
    "word",
    ["prompt_lengths=[]", "prompt_lengths=[16,0]", "new_tokens=1", "rounds=0"],
)
def test_nothing_to_measure_is_refused(make_recipe: Callable[..., Any], word: str) -> None:
    assert list(Benchmark().requires(make_recipe("benchmark=standard"), None)) == []
    recipe = make_recipe("benchmark=standard", f"benchmark.{word}")
    (problem,) = Benchmark().requires(recipe, None)
    assert "at least 2 new tokens and 1 round" in problem.expected


def test_it_runs_only_where_the_recipe_asks(make_recipe: Callable[..., Any]) -> None:
    assert Benchmark().enabled(make_recipe("benchmark=standard"))
    assert not Benchmark().enabled(make_recipe())
