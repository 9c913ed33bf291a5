"""Values that are well typed and that nothing can be made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from converter.errors import Problem
from converter.recipe.rules import block_size_problems, impossible_values
from converter.recipe.schema import Recipe


def problems(values: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with a recipe of defaults in which the dotted keys have these values."""
    recipe: Any = Recipe()
    for path, value in values.items():
        *above, last = path.split(".")
        part = recipe
        for name in above:
            part = getattr(part, name)
        setattr(part, last, value)
    return list(impossible_values(recipe))


def test_the_defaults_go_together() -> None:
    assert problems({}) == []


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        ({"quant.block_size": 48}, "set quant.block_size=32"),
        ({"quant.block_size": 8}, "set quant.block_size=16"),
        ({"quant.lm_head.block_size": 33}, "set quant.lm_head.block_size=32"),
        ({"quant.embedding.block_size": 512}, "set quant.embedding.block_size=256"),
        ({"quant.smooth": "awq"}, "quant.round=gptq"),
        ({"quant.round": "rtn", "quant.refine": True}, "quant.refine=false"),
        ({"quant.round": "gptq", "quant.target_size": "90"}, "quant.target_size=89.9MB"),
        (
            {"quant.round": "rtn", "quant.target_size": "9MB", "quant.bits_per_weight": 4.5},
            "set quant.target_size=null, or quant.bits_per_weight=null",
        ),
        ({"calibration.tokens": 256}, "calibration.sequence_length=512"),
        ({"calibration.sequence_length": 0}, "calibration.sequence_length=512"),
        ({"target.float_type": "bf16"}, "target.float_type="),
        ({"graph.context_length": 0}, "graph.context_length=4096"),
        ({"source.kind": "demo", "source.path": "/models/mine"}, "source.path=null"),
        ({"evaluate.n_ctx": 3}, "evaluate.n_ctx=512"),
        ({"evaluate.max_chunks": 0}, "evaluate.max_chunks=24"),
        ({"evaluate.max_kld": 0.1}, "evaluate=standard"),
        ({"threads": 0}, "threads=2"),
        ({"target.threads": 9999}, "target.threads=null"),
        ({"target.threads": -1}, "target.threads=null"),
        ({"target.chunk_size": 0}, "target.chunk_size=512"),
    ],
)
def test_an_impossible_value_is_named_with_what_is_possible(
    values: dict[str, Any], remedy: str
) -> None:
    (problem,) = problems(values)
    assert remedy in problem.remedy
    changed = list(values)[-1]
    assert changed in problem.key and changed.rpartition(".")[2] in problem.found


def test_values_that_go_together_are_left_alone() -> None:
    assert problems({"quant.round": "gptq", "quant.refine": True, "quant.smooth": "awq"}) == []
    assert problems({"evaluate.enabled": True, "evaluate.max_kld": 0.1}) == []
    assert problems({"calibration.tokens": 512}) == []


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
def test_powers_of_two_are_block_sizes(size: int) -> None:
    assert list(block_size_problems("quant.block_size", size)) == []


def test_the_sizes_of_tune_are_written_in_a_list() -> None:
    (problem,) = block_size_problems("tune.block_sizes", 100)
    assert problem.remedy == "write 64 instead" and problem.key == ("tune.block_sizes",)
