"""`convert list`: what its lines say, against what the recipes compose to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from published import published_config, published_names
from transformers import AutoModelForCausalLM

from converter.cli.compose import compose_recipe
from converter.cli.list import overview, parameters, recipe_line
from converter.model.architecture import read_architecture
from converter.model.config_view import transformers_config
from converter.model.decoder import published_shapes
from converter.recipe.tree import Tree, built_in_models


def counted(config: dict[str, Any]) -> int:
    """The number of weights, from the shapes of the checkpoint's tensors."""
    recipe = compose_recipe(["recipe=internlm2_7b_cpu_int4"])
    shapes = published_shapes(recipe.layout, read_architecture(config, recipe))
    return sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parametrize("name", published_names())
def test_a_models_size_is_that_of_its_tensors(name: str) -> None:
    config = published_config(name)
    assert parameters(config) == f"{counted(config) / 1e9:.1f} B"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "published"),
    [
        ("mixtral_8x7b", 46_702_792_704),
        ("mixtral_8x7b_instruct", 46_702_792_704),
        ("qwen3_30b_a3b", 30_532_122_624),
        ("olmoe_1b_7b", 6_919_161_856),
        ("granite3_1b_a400m", 1_334_628_352),
        ("granite3_3b_a800m", 3_298_793_472),
        ("gpt_oss_20b", 20_914_757_184),
        ("gpt_oss_120b", 116_829_156_672),
    ],
)
def test_a_model_with_experts_has_as_many_weights_as_was_published(
    model: str, published: int
) -> None:
    """The published number, what transformers' class has, and what our tensors add up to."""
    recipe = compose_recipe([f"recipe={model}_cpu_int4"])
    with torch.device("meta"):
        own = AutoModelForCausalLM.from_config(transformers_config(recipe.model.config))
    sizes = {name: item.numel() for name, item in own.named_parameters()}
    assert sum(sizes.values()) == published
    biases = sum(size for name, size in sizes.items() if name.endswith("bias"))
    shapes = published_shapes(recipe.layout, read_architecture(recipe.model.config, recipe))
    assert sum(math.prod(shape) for shape in shapes.values()) == published - biases
    assert parameters(recipe.model.config) == f"{published / 1e9:.1f} B"


@pytest.mark.parametrize("config", [{}, {"hidden_size": 64}, {"num_attention_heads": 0}, "x"])
def test_without_sizes_nothing_is_said(config: Any) -> None:
    assert parameters(config) == ""


def test_small_models_are_counted_in_millions() -> None:
    demo = compose_recipe(["recipe=demo", "source.kind=demo"])
    text = parameters(demo.model.config) or "0 M"
    assert text.endswith(" M")


@pytest.mark.parametrize(
    "name", ["internlm2_7b_chat_cuda_int4", "internlm2_20b_cpu_fp32", "internlm2_1_8b_dml_fp16"]
)
def test_a_line_says_what_the_recipe_composes_to(name: str) -> None:
    line, recipe = recipe_line(name, Tree()), compose_recipe([f"recipe={name}"])
    assert line.name == name and line.target == recipe.target.execution_provider
    assert line.source == recipe.source.repo
    if recipe.quant.round == "none":
        assert line.precision == recipe.target.float_type
    else:
        assert line.precision.startswith(f"int{recipe.quant.bits} ")
    assert line.size == parameters(recipe.model.config)


def test_the_overview_fits_a_terminal_and_names_every_model_once() -> None:
    lines = overview()
    assert max(map(len, lines)) <= 100
    first = [line.split()[0] for line in lines if line]
    for name in built_in_models():
        assert first.count(name) == 1
