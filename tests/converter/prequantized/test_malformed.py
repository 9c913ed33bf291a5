"""What is wrong with a quantized checkpoint is said once for each kind, with a count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, random_model, save
from parity import read
from prequantized import FORMATS, quantize_folder
from safetensors.torch import load_file, save_file

from converter.errors import ConvertError, Problem

Tensors = dict[str, torch.Tensor]
Damage = Callable[[Tensors, dict[str, Any]], None]
LAYERS = FAMILIES["llama"].settings["num_hidden_layers"]


def problems(folder: Path, form: str, damage: Damage) -> tuple[Problem, ...]:
    save(random_model(FAMILIES["llama"]), folder)
    quantize_folder(folder, FORMATS[form])
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    damage(tensors, config["quantization_config"])
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConvertError) as caught:
        read(folder, "llama")
    return tuple(caught.value.problems)


def without(end: str) -> Damage:
    def damage(tensors: Tensors, _: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.endswith(f"q_proj.{end}")]:
            del tensors[name]

    return damage


def changed(end: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    def damage(tensors: Tensors, _: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.endswith(f"q_proj.{end}")]:
            tensors[name] = change(tensors[name]).contiguous()

    return damage


def stating(**values: Any) -> Damage:
    return lambda _, section: section.update(values)


def shorter(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:-1]


@pytest.mark.parametrize(
    ("form", "damage", "words"),
    [
        ("gptq", without("scales"), "no scales"),
        ("gptq", without("qzeros"), "no qzeros"),
        ("gptq", changed("g_idx", shorter), "g_idx of shape (95,)"),
        ("gptq", changed("g_idx", lambda x: x + 7), "groups from 7 to 9"),
        ("gptq", changed("qweight", torch.Tensor.float), "qweight in float32"),
        ("gptq", changed("scales", torch.Tensor.int), "scales in int32"),
        ("gptq", changed("qzeros", shorter), "qzeros of shape (2, 12)"),
        ("awq", without("scales"), "no scales"),
        ("awq", changed("qweight", torch.Tensor.long), "qweight in int64"),
        ("compressed", without("weight_scale"), "no weight_scale"),
        ("compressed", without("weight_zero_point"), "no weight_zero_point"),
        ("compressed", changed("weight_packed", torch.Tensor.long), "weight_packed in int64"),
        ("compressed", changed("weight_shape", lambda x: x + 1), "weight_shape (97, 97)"),
        ("compressed_act_order", changed("weight_g_idx", shorter), "weight_g_idx of shape (95,)"),
        ("fp8_tiles", without("weight_scale_inv"), "no weight_scale_inv"),
        ("fp8_tiles", changed("weight_scale_inv", shorter), "weight_scale_inv of shape (2, 6)"),
        ("fp8_rows", changed("weight", torch.Tensor.char), "weight in int8"),
        ("nf4", without("weight.absmax"), "no weight.absmax"),
        ("nf4", changed("weight", shorter), "weight of 4607 bytes"),
        ("nf4", changed("weight.quant_map", shorter), "weight.quant_map of shape (15,)"),
        ("nf4", changed("weight.quant_state.bitsandbytes__nf4", shorter), "that is not read"),
        ("nf4_nested", without("weight.nested_absmax"), "no weight.nested_absmax"),
        ("int8", without("SCB"), "no SCB"),
        ("int8", changed("weight_format", lambda x: x + 2), "weight_format 2"),
    ],
)
def test_one_problem_counts_the_modules_of_a_kind(
    tmp_path: Path, form: str, damage: Damage, words: str
) -> None:
    (problem,) = problems(tmp_path, form, damage)
    assert words in problem.found
    assert "self_attn.q_proj" in problem.found and f"{LAYERS - 1} more of its kind" in problem.found
    assert problem.expected and problem.remedy


@pytest.mark.parametrize(
    ("form", "values", "words"),
    [
        ("gptq", {"group_size": 0}, "group_size=0"),
        ("gptq", {"group_size": "32"}, "group_size=32"),
        ("gptq", {"bits": 3}, "bits=3"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format=marlin"),
        ("awq", {"bits": 8}, "bits=8"),
        ("awq", {"version": "gemv"}, "version=gemv"),
        ("awq", {"group_size": None}, "group_size=None"),
        ("compressed", {"format": "marlin-24"}, "format=marlin-24"),
        ("compressed", {"config_groups": []}, "no config_groups"),
        ("compressed", {"sparsity_config": {"format": "sparse-24"}}, "format=sparse-24"),
        ("gptq", {"quant_method": "aqlm"}, "already quantized"),
        ("gptq", {"quant_method": None}, "already quantized"),
    ],
)
def test_what_config_json_states_wrongly_is_one_problem(
    tmp_path: Path, form: str, values: dict[str, Any], words: str
) -> None:
    (problem,) = problems(tmp_path, form, stating(**values))
    assert words in problem.found


@pytest.mark.parametrize("form", ["gptq", "awq", "gptq_8_bits"])
def test_a_group_size_that_the_scales_do_not_have_is_said_for_each_kind(
    tmp_path: Path, form: str
) -> None:
    found = problems(tmp_path, form, stating(group_size=8))
    assert 1 <= len(found) <= 8
    assert all("group_size=8" in problem.expected for problem in found)


@pytest.mark.parametrize(
    "groups",
    [
        {"a": None},
        {"a": {"targets": "Linear", "weights": {}}},
        {"a": {"targets": ["re:("], "weights": {}}},
        {"a": {"targets": ["Linear"], "weights": {"num_bits": 3}}},
        {"a": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "group"}}},
        {"a": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "tensor_group"}}},
        {"a": {"targets": ["Linear"], "weights": 4}},
    ],
)
def test_groups_of_compressed_tensors_that_say_nothing_are_problems(
    tmp_path: Path, groups: dict[str, Any]
) -> None:
    assert len(problems(tmp_path, "compressed", stating(config_groups=groups))) <= 8


def test_zero_points_that_symmetric_codes_do_not_have_are_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, "gptq", stating(sym=True))
    assert len(found) <= 8
    assert all("zero points other than 8" in item.found for item in found)
