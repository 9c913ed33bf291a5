"""AWQ's scales of a layer: which folds are searched, and that they help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from converter.calibration.folds import apply_folds
from converter.calibration.inputs import Inputs
from converter.calibration.layer import STAGES, LayerStages
from converter.calibration.rounding import Scheme
from converter.calibration.smooth import find_folds
from converter.model.decoder import Decoder
from converter.model.reference import Reference
from converter.quantization.rtn import BlockFormat, quantize_rtn
from converter.weights.weight import TensorWeight

FORM = BlockFormat(4, 16, True)
DENSE = {stage: parts for stage, parts in STAGES.items() if not stage.startswith("shared")}
"""Those of a layer without experts."""
PARTS = [part for parts in DENSE.values() for part in parts]


@pytest.fixture
def uneven(decoder: Decoder) -> Decoder:
    """The decoder with a few loud channels in front of every linear, as trained models have."""
    weights = dict(decoder.weights)
    for name in ("attn_norm", "ffn_norm"):
        norm = weights[f"layers.0.{name}"].read().clone()
        norm[::9] *= 12
        weights[f"layers.0.{name}"] = TensorWeight(norm)
    return replace(decoder, weights=weights)


def states_of(decoder: Decoder) -> dict[str, torch.Tensor]:
    """The inputs of each stage of layer 0, float32 (tokens, columns)."""
    reference = Reference(decoder)
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(1, 200, decoder.architecture.hidden_size, generator=generator)
    with reference.layer(0) as module, torch.no_grad():
        states, _ = LayerStages(reference, module, 0).run(hidden)
    return {stage: state[0] for stage, state in states.items()}


def gathered(states: dict[str, torch.Tensor]) -> dict[str, Inputs]:
    found = {}
    for stage, state in states.items():
        found[stage] = Inputs(state.shape[-1])
        found[stage].add(state)
    return found


def scheme(make_recipe: Callable[..., Any], *words: str) -> Scheme:
    return Scheme(make_recipe(*words).quant, torch.float32)


def output_error(decoder: Decoder, folds: dict[str, torch.Tensor], part: str) -> float:
    """‖(W - rounded W) x‖² of a linear of layer 0 when inputs and weights are folded."""
    weights = apply_folds(decoder.weights, "layers.0", folds, decoder)
    stage = next(stage for stage, parts in STAGES.items() if part in parts)
    x = states_of(replace(decoder, weights=weights))[stage]
    weight = weights[f"layers.0.{part}"].read().float()
    lost = weight - quantize_rtn(weight, FORM).dequantize(FORM)[:, : weight.shape[1]]
    return float((x @ lost.T).square().sum())


def test_folds_lower_the_output_errors(uneven: Decoder, make_recipe: Callable[..., Any]) -> None:
    forms = dict.fromkeys(PARTS, FORM)
    by = scheme(make_recipe, "quant=awq", "quant.round=rtn")
    arch = uneven.architecture
    folds = find_folds(uneven.weights, "layers.0", gathered(states_of(uneven)), forms, by, uneven)
    assert {"attention_norm", "ffn_norm"} <= set(folds)
    for name, parts in (("attention_norm", "qkv"), ("ffn_norm", ("gate", "up"))):
        assert folds[name].shape == (arch.hidden_size,) and folds[name].min() > 0
        before = sum(output_error(uneven, {}, f"{part}_proj") for part in parts)
        after = sum(output_error(uneven, {name: folds[name]}, f"{p}_proj") for p in parts)
        assert after < 0.9 * before, name


def test_a_fold_whose_consumers_stay_in_float_is_left_out(
    uneven: Decoder, make_recipe: Callable[..., Any]
) -> None:
    by = scheme(make_recipe, "quant=awq")
    known = gathered(states_of(uneven))
    forms = {"q_proj": FORM, "k_proj": FORM, "gate_proj": FORM, "up_proj": FORM}
    found = find_folds(uneven.weights, "layers.0", known, forms, by, uneven)
    assert "attention_norm" not in found  # v_proj is not rounded
    assert found.keys() <= {"ffn_norm"}
    assert find_folds(uneven.weights, "layers.0", known, {}, by, uneven) == {}


def test_weights_that_round_without_error_need_no_scales(
    decoder: Decoder, make_recipe: Callable[..., Any]
) -> None:
    weights, inputs = dict(decoder.weights), {}
    for stage, parts in DENSE.items():
        for part in parts:
            shape, generator = weights[f"layers.0.{part}"].shape, torch.Generator().manual_seed(0)
            values = torch.randint(-8, 8, shape, generator=generator) / 8
            values[:, :: FORM.block_size] = -1  # so that every value is a code times the scale
            weights[f"layers.0.{part}"] = TensorWeight(values)
        inputs[stage] = Inputs(shape[1])
        inputs[stage].add(torch.randn(300, shape[1]))
    by = scheme(make_recipe, "quant=awq", "quant.round=rtn")
    forms = dict.fromkeys(PARTS, FORM)
    assert find_folds(weights, "layers.0", inputs, forms, by, decoder) == {}
