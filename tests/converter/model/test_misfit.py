"""Checkpoints that do not fit: the cause first, one problem for each kind, never above a screen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from converter.errors import ConvertError, Problem
from converter.model.architecture import read_architecture
from converter.model.checkpoint import Checkpoint
from converter.model.decoder import build_decoder
from converter.model.misfit import SCREEN, WRAPPERS
from converter.sources.synthetic import open_synthetic
from converter.weights.weight import TensorWeight, Weight

LAYERS = 6
Tensors = dict[str, Weight]


class Parts:
    """A checkpoint of `LAYERS` layers in pieces, and what is wrong with it once they changed."""

    def __init__(self, recipe: Any) -> None:
        checkpoint = open_synthetic(recipe)
        self.config, self.tensors = dict(checkpoint.config), dict(checkpoint.tensors)
        self.recipe, self.layout = recipe, recipe.layout

    def decode(self) -> Any:
        checkpoint = Checkpoint(self.config, self.tensors, {})
        return build_decoder(checkpoint, self.layout, read_architecture(self.config, self.recipe))

    def problems(self) -> tuple[Problem, ...]:
        with pytest.raises(ConvertError) as caught:
            self.decode()
        return caught.value.problems

    def rename(self, change: Callable[[str], str]) -> None:
        self.tensors = {change(name): weight for name, weight in self.tensors.items()}

    def linears(self) -> list[str]:
        return [name for name in self.tensors if ".attention.w" in name or "feed_forward" in name]


@pytest.fixture
def parts(make_recipe: Callable[..., Any]) -> Parts:
    return Parts(make_recipe(num_hidden_layers=LAYERS))


def codes(*shape: int, dtype: torch.dtype = torch.int32) -> Weight:
    return TensorWeight(torch.zeros(shape, dtype=dtype))


def awq(tensors: Tensors, name: str) -> None:
    base = name.removesuffix("weight")
    del tensors[name]
    tensors |= {base + "qweight": codes(8, 8), base + "qzeros": codes(2, 8)}
    tensors[base + "scales"] = codes(2, 8, dtype=torch.float16)


def gptq(tensors: Tensors, name: str) -> None:
    awq(tensors, name)
    tensors[name.removesuffix("weight") + "g_idx"] = codes(8)


def bitsandbytes(tensors: Tensors, name: str) -> None:
    tensors[name] = codes(32, 1, dtype=torch.uint8)
    tensors[f"{name}.absmax"] = codes(4, dtype=torch.float32)
    tensors[f"{name}.quant_state.bitsandbytes__nf4"] = codes(9, dtype=torch.uint8)


def int8(tensors: Tensors, name: str) -> None:
    tensors[name] = codes(*tensors[name].shape, dtype=torch.int8)
    tensors[name.removesuffix("weight") + "SCB"] = codes(4, dtype=torch.float32)


def fp8(tensors: Tensors, name: str) -> None:
    tensors[name] = codes(*tensors[name].shape, dtype=torch.float8_e4m3fn)
    tensors[f"{name}_scale_inv"] = codes(1, 1, dtype=torch.float32)


def packed(tensors: Tensors, name: str) -> None:
    base = name.removesuffix("weight")
    del tensors[name]
    tensors |= {base + "weight_packed": codes(8, 8), base + "weight_shape": codes(2)}
    tensors[base + "weight_scale"] = codes(2, 8, dtype=torch.bfloat16)


def mlx(tensors: Tensors, name: str) -> None:
    base = name.removesuffix("weight")
    tensors[name] = codes(8, 8, dtype=torch.uint32)
    tensors |= {base + part: codes(8, 2, dtype=torch.float16) for part in ("scales", "biases")}


@pytest.mark.parametrize("quantize", [awq, gptq, bitsandbytes, int8, fp8, packed, mlx])
@pytest.mark.parametrize("stated", [True, False])
def test_a_quantized_checkpoint_is_one_problem_that_says_so(
    parts: Parts, quantize: Callable[[Tensors, str], None], stated: bool
) -> None:
    for name in parts.linears():
        quantize(parts.tensors, name)
    if stated:
        parts.config["quantization_config"] = {"quant_method": "quanto", "bits": 4}
    (problem,) = parts.problems()
    assert "already quantized" in problem.found and "unquantized" in problem.remedy
    if stated:
        assert "quant_method='quanto' bits=4" in problem.found


def test_a_quantization_that_only_the_config_knows_of_is_no_problem(parts: Parts) -> None:
    parts.config["quantization_config"] = {"quant_method": "awq"}
    assert parts.decode()


@pytest.mark.parametrize("prefix", [*WRAPPERS, "base_model.model.model.", "my.own."])
def test_a_wrappers_prefix_is_one_problem_whose_words_help(parts: Parts, prefix: str) -> None:
    parts.rename(lambda name: prefix + name)
    (problem,) = parts.problems()
    assert f"{len(parts.tensors)} tensors start with {prefix!r}" in problem.found
    assert all(text in problem.remedy for start, text in WRAPPERS.items() if start == prefix)
    parts.layout.layer_prefix = prefix + parts.layout.layer_prefix
    parts.layout.tensors = {key: prefix + name for key, name in parts.layout.tensors.items()}
    for name in (parts.layout.layer_prefix, *parts.layout.tensors.values()):
        assert name in problem.remedy
    assert parts.decode()


def test_a_model_saved_without_its_head_lacks_prefix_and_head(parts: Parts) -> None:
    del parts.tensors["output.weight"]
    parts.rename(lambda name: name.removeprefix("model."))
    prefix, head = parts.problems()
    assert "lack 'model.'" in prefix.found and "layers.{layer}." in prefix.remedy
    assert head.found == "The checkpoint lacks the tensor output.weight."


def test_one_wrapped_tensor_among_others_is_just_missing(parts: Parts) -> None:
    parts.tensors["ema.model.norm.weight"] = parts.tensors.pop("model.norm.weight")
    prefix = parts.problems()[0]
    assert "ema." in prefix.found


@pytest.mark.parametrize("stated", [2, 5, 7, 48])
def test_a_wrong_number_of_layers_is_said_once(parts: Parts, stated: int) -> None:
    parts.config["num_hidden_layers"] = stated
    (problem,) = parts.problems()
    assert f"num_hidden_layers={stated}, and the weights are those of {LAYERS}" in problem.found
    assert f"num_hidden_layers to {LAYERS}" in problem.remedy


def test_layers_that_are_missing_in_between_are_no_other_depth(parts: Parts) -> None:
    gone = [name for name in parts.tensors if ".layers.3." in name]
    for name in gone:
        del parts.tensors[name]
    found = parts.problems()
    assert len(found) == len(gone)
    assert all("lacks the tensor model.layers.3" in problem.found for problem in found)


def test_tensors_that_differ_in_numbers_only_are_counted(parts: Parts) -> None:
    for layer in range(LAYERS):
        del parts.tensors[f"model.layers.{layer}.attention.wo.weight"]
        parts.tensors[f"model.layers.{layer}.attention.q_norm.weight"] = codes(16)
        parts.tensors[f"model.layers.{layer}.ffn_norm.weight"] = TensorWeight(torch.ones(3))
    texts = [problem.found for problem in parts.problems()]
    assert len(texts) == 3 and all(f"{LAYERS - 1} more of its kind" in text for text in texts)


def test_never_more_than_a_screen(parts: Parts) -> None:
    for number in range(40):
        parts.tensors[f"{chr(97 + number % 26)}{'x' * number}.weight"] = codes(3)
    found = parts.problems()
    assert len(found) == SCREEN and "33 more kinds" in found[-1].found


def test_double_precision_is_not_quantized(parts: Parts) -> None:
    parts.tensors["model.norm.weight"] = codes(64, dtype=torch.float64)
    (problem,) = parts.problems()
    assert "dtype float64" in problem.found and "save the checkpoint" in problem.remedy


def test_a_buffer_of_any_type_may_be_ignored(parts: Parts) -> None:
    name = "model.layers.0.attention.rotary_emb.inv_freq"
    parts.tensors[name] = codes(8, dtype=torch.float8_e5m2)
    assert parts.decode().ignored == (name,)
