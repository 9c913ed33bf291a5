"""The estimate of calibration's memory follows what its steps keep alive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from converter.calibration.memory import calibration_steps
from converter.cli.compose import compose_recipe
from converter.engine.plan import make_plan
from converter.engine.registry import make_passes

MODEL = ["recipe=internlm2_7b_cpu_int4", "source=synthetic", "threads=2", "verify=none"]


def steps(*words: str) -> dict[str, float]:
    recipe = compose_recipe([*MODEL, "calibration.compute=fp32", *words])
    decoder = make_plan(recipe, make_passes(["load", "layout", "graph"])).decoder
    assert decoder is not None
    return calibration_steps(recipe, decoder)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["quant=search"], {"layer", "lm_head"}),
        (["quant=awq"], {"scales", "layer", "lm_head"}),
        (["quant=gptq", "quant.lm_head.bits=16"], {"layer"}),
        (["quant=best"], {"gradients, lm_head", "gradients, layer", "layer", "lm_head"}),
        (["quant=awq", "calibration.inputs=float"], {"statistics", "layer", "lm_head"}),
        (
            ["quant=gptq", "quant.bits_per_weight=4.5"],
            {"gradients, lm_head", "gradients, layer", "losses", "layer", "lm_head"},
        ),
    ],
)
def test_only_the_steps_of_the_scheme_count(words: list[str], expected: set[str]) -> None:
    assert set(steps(*words)) == expected


def test_a_layer_holds_its_weights_and_the_factor_of_its_widest_input() -> None:
    hidden, wide = 4096, 14336
    values = hidden * (hidden + 2 * 1024) + hidden * hidden + 3 * hidden * wide
    least = 4 * values + 20 * wide**2
    by_gptq, searched = (steps("quant=best", f"quant.bits={bits}")["layer"] for bits in (4, 8))
    assert least < by_gptq < 1.5 * least
    assert searched < by_gptq - 8 * wide**2  # eight bits need no factor


def test_depth_costs_no_memory_and_threads_do() -> None:
    one, many = (steps("quant=best", f"threads={count}") for count in (1, 4))
    assert many["lm_head"] > one["lm_head"]
    deep = steps("quant=best", "threads=1", "model.config.num_hidden_layers=64")
    assert deep == one


def test_the_plan_counts_every_pass_of_a_calibrated_and_evaluated_recipe(
    make_recipe: Callable[..., Any],
) -> None:
    words = ["quant=best", "calibration.tokens=256", "calibration.sequence_length=32"]
    recipe = make_recipe(*words, "evaluate=standard", "evaluate.n_ctx=64")
    assert make_plan(recipe, make_passes(recipe.passes)).unknown_memory == ()
