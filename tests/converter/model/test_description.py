"""Values of a description: numbers and sizes, with one problem for each that is none."""

from __future__ import annotations

from typing import Any

import pytest

from converter.model.description import Values

CONFIG = {"size": 4, "half": 0.5, "name": "x", "zero": 0, "on": True}


@pytest.mark.parametrize(
    ("text", "found"), [("config.half", 0.5), ("config.size", 4.0), ("config.no", 9.0), (2, 2.0)]
)
def test_a_number_or_its_default(text: Any, found: float) -> None:
    values = Values(CONFIG)
    number = values.number("graph.norm.eps", text, 9.0)
    assert number == found and isinstance(number, float) and not values.problems


@pytest.mark.parametrize("text", ["config.name", "config.on"])
def test_what_is_no_number_is_named_by_its_key(text: str) -> None:
    values = Values(CONFIG)
    assert values.number("graph.norm.eps", text, 9.0) == 9.0
    (problem,) = values.problems
    assert problem.concerns("graph.norm.eps") and "graph.norm.eps is" in problem.found


@pytest.mark.parametrize("text", ["config.no", "config.zero", "config.half", "config.name", -3])
def test_what_is_no_size_is_named(text: Any) -> None:
    values = Values(CONFIG)
    assert values.size("graph.sizes.head_dim", text) == 1
    assert values.problems[0].expected == "a positive whole number"


def test_an_expression_that_cannot_be_read_is_a_problem_of_its_key() -> None:
    values = Values(CONFIG)
    assert values.value("graph.parallel", "1 +") is None
    assert values.problems[0].concerns("graph.parallel")
    assert "cannot be calculated" in values.problems[0].found


def test_problems_gather_and_paths_are_noted() -> None:
    values = Values(CONFIG)
    values.size("a", "config.no")
    values.number("b", "config.name | config.size", 0.0)
    assert len(values.problems) == 2 and values.read == {"no", "name", "size"}
