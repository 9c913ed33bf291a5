"""What the steps of a conversion are said to take follows what they keep."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.calibration.fisher import LOGITS
from converter.cli.compose import compose_recipe
from converter.engine.estimates import (
    calibration_disk,
    calibration_memory,
    evaluation_memory,
    expert_bytes,
    reference_memory,
    session_memory,
)
from converter.engine.plan import make_plan
from converter.engine.registry import make_passes
from converter.model.decoder import Decoder
from converter.quantization.quantized_matrix import QuantizedMatrix
from converter.quantization.rtn import BlockFormat
from converter.recipe.schema import EvaluateConfig, Recipe
from converter.storage.cache import FOLDER_VARIABLE, Cache
from converter.weights.spill import Spill
from converter.weights.weight import TensorWeight

MODEL = ["recipe=internlm2_7b_cpu_int4", "source=synthetic", "threads=2", "verify=none"]
CALIBRATION = ["calibration.tokens=256", "calibration.sequence_length=32"]
HIDDEN, WIDE, VOCABULARY = 4096, 14336, 92544


def decoded(*words: str) -> tuple[Recipe, Decoder]:
    recipe = compose_recipe([*MODEL, "calibration.compute=fp32", *words])
    decoder = make_plan(recipe, make_passes(["load", "layout", "graph"])).decoder
    assert decoder is not None
    return recipe, decoder


def memory(*words: str) -> int:
    return calibration_memory(*decoded(*words))


def test_gptq_holds_a_layer_and_the_factor_of_its_widest_input() -> None:
    layer = HIDDEN * (HIDDEN + 2 * 1024) + HIDDEN * HIDDEN + 3 * HIDDEN * WIDE
    least = 4 * layer + (4 + 16) * WIDE**2
    by_gptq = memory("quant=gptq")
    assert least < by_gptq < 1.5 * least
    assert memory("quant=search") < by_gptq - 8 * WIDE**2


def test_gradients_hold_the_logits_of_some_tokens() -> None:
    """Those of the tokens that are computed together, not of a whole long sequence."""
    words = "model.config.intermediate_size=4096", "calibration.sequence_length=2048"
    logits = min(LOGITS, 2048 * VOCABULARY) * 4
    assert memory("quant=best", *words) - memory("quant=gptq", *words) > 3 * logits


@pytest.mark.slow
def test_a_budget_and_shared_statistics_hold_more() -> None:
    plain = memory("quant=gptq")
    assert memory("quant=gptq", "quant.bits_per_weight=4.5") > plain
    assert memory("quant=gptq", "calibration.inputs=float") > plain


@pytest.mark.slow
def test_depth_costs_no_memory_and_threads_do() -> None:
    one, many = (memory("quant=search", f"threads={count}") for count in (1, 4))
    assert one < many
    assert memory("quant=search", "threads=1", "model.config.num_hidden_layers=64") == one


def test_an_evaluation_holds_the_larger_model_and_its_logits() -> None:
    _, decoder = decoded()
    config = EvaluateConfig(n_ctx=512)
    logits = 512 * VOCABULARY * 4
    small, large = (evaluation_memory(config, decoder, nbytes) for nbytes in (10**6, 10**11))
    assert reference_memory(decoder) + 3 * logits < small < large
    assert large > session_memory(10**11) + 3 * logits


def test_the_plan_counts_every_pass_of_a_calibrated_and_evaluated_recipe(
    make_recipe: Callable[..., Any],
) -> None:
    recipe = make_recipe("quant=best", *CALIBRATION, "evaluate=standard", "evaluate.n_ctx=64")
    assert make_plan(recipe, make_passes(recipe.passes)).unknown_memory == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["quant=best"],
        ["quant=awq", "calibration.inputs=float"],
        ["quant=best", "quant.bits_per_weight=5.5"],
    ],
    ids=["best", "float", "mixed"],
)
def test_calibration_takes_the_disk_that_was_said(
    make_recipe: Callable[..., Recipe],
    build: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:
    """Against what lies in spills and entries whenever a spill is written."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    words = [*words, *CALIBRATION, "quant.block_size=16", "quant.embedding.block_size=16"]
    spills: weakref.WeakSet[Spill] = weakref.WeakSet()
    seen: list[int] = [0]
    write = Spill.__setitem__

    def counted(spill: Spill, index: int | slice, value: Any) -> None:
        write(spill, index, value)
        spills.add(spill)
        spilled = sum(item.count * item._nbytes for item in spills if not item._file.closed)
        seen.append(spilled + folder_bytes(tmp_path))

    monkeypatch.setattr(Spill, "__setitem__", counted)
    decoder = build(*words).decoder
    recipe = make_recipe(*words)
    planned = calibration_disk(recipe, decoder, Cache(tmp_path))
    build(*words, until="quantize")
    assert planned == pytest.approx(max(*seen, folder_bytes(tmp_path)), rel=0.25)
    # Another budget's layers are of no use, and its statistics are.
    if recipe.quant.mixed:
        build(*words, "quant.bits_per_weight=4.6", until="quantize")
    # All that it would make is there now.
    left = calibration_disk(recipe, decoder, Cache(tmp_path))
    assert left <= (0 if not recipe.quant.mixed else planned / 2)


def folder_bytes(folder: Path) -> int:
    return sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".json",)
    )


def of_experts(*words: str) -> Decoder:
    model = ["recipe=mixtral_8x7b_cpu_int4", "source=synthetic", "verify=none", *words]
    recipe = compose_recipe(model)
    decoder = make_plan(recipe, make_passes(["load", "layout", "graph"])).decoder
    assert decoder is not None
    return decoder


def test_the_reference_holds_one_expert() -> None:
    expert = 2 * 14336 * 4096
    few, many = (
        reference_memory(of_experts(f"model.config.num_local_experts={n}")) for n in (4, 32)
    )
    assert many - few < 0.01 * few  # the router alone grows
    assert 16 * expert < few < 25 * expert


def test_quantized_experts_lie_in_a_session_twice() -> None:
    matrix = QuantizedMatrix(
        TensorWeight(torch.zeros(64, 32)), BlockFormat(4, 32, True), torch.float32, flat=True
    )
    codes, scales = matrix.part("codes"), matrix.part("scales")
    place = "model.layers.0.moe.experts.gate_up_proj.weight"
    held = {f"{place}_codes": codes, f"{place}_scales": scales, "lm_head_codes": codes}
    assert expert_bytes(held) == codes.nbytes + scales.nbytes
    assert expert_bytes({place: TensorWeight(torch.zeros(64, 32))}) == 0
