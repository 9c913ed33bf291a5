"""Kinds of models that a layout reads, and what is said of the others."""

from __future__ import annotations

from typing import Any

import pytest

from converter.cli.compose import compose_recipe
from converter.model.kind import kind_problems

INTERNLM2 = compose_recipe(["recipe=demo"]).layout


@pytest.mark.parametrize("kind", ["internlm2", "internlm"])
@pytest.mark.parametrize("classes", [None, [], ["InternLM2ForCausalLM"], ["PeftForCausalLM"]])
def test_a_kind_of_the_layout_is_no_problem(kind: str, classes: Any) -> None:
    assert not list(kind_problems({"model_type": kind, "architectures": classes}, INTERNLM2))


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({}, ["no model_type", "internlm2"]),
        ({"model_type": None}, ["no model_type"]),
        ({"model_type": "llama"}, ["model_type 'llama'", "architecture=llama"]),
        ({"model_type": "mistral"}, ["model_type 'mistral'", "architecture=mistral"]),
        ({"model_type": "bert"}, ["model_type 'bert'", "architecture=…"]),
        ({"model_type": ["internlm2"]}, ["model_type ['internlm2']"]),
        (
            {"model_type": "internlm2", "architectures": ["InternLM2ForRewardModel"]},
            ["InternLM2ForRewardModel", "ForCausalLM"],
        ),
        ({"model_type": "internlm2", "architectures": ["InternLM2Model"]}, ["no text generator"]),
    ],
    ids=str,
)
def test_another_kind_is_named_with_what_reads_it(config: dict[str, Any], parts: list[str]) -> None:
    (problem,) = kind_problems(config, INTERNLM2)
    assert all(part in str(problem) for part in parts)
