"""What a graph packs and where it rotates, as architecture and target allow it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from descriptions import architecture, described
from families import FAMILIES
from transformers import AutoConfig

from converter.cli.compose import compose_recipe
from converter.graph.form import GraphForm, context_length, graph_form, recipe_form
from converter.model.architecture import Architecture
from converter.recipe.schema import TargetConfig


def arch_of(name: str) -> Architecture:
    family = FAMILIES[name]
    config = AutoConfig.for_model(family.model_type, **family.settings).to_dict()
    return architecture(config, family.architecture)


@pytest.mark.parametrize(
    ("name", "inside", "packs"),
    [
        ("llama", True, True),
        ("llama_head_of_24", False, False),
        ("qwen3", True, False),
        ("phi4_mini", False, False),
        ("hunyuan", False, False),
        ("olmo2", True, False),
        ("mistral_window", True, True),
        ("smollm3", True, True),
        ("phi3_longrope", False, False),
        ("glm", True, True),
    ],
)
def test_what_follows_from_an_architecture(name: str, inside: bool, packs: bool) -> None:
    form = graph_form(arch_of(name), TargetConfig(), 128)
    assert form == GraphForm(inside, packs, False, not inside)


def test_longrope_rotates_inside_where_it_never_switches() -> None:
    arch = arch_of("phi3_longrope")
    assert graph_form(arch, TargetConfig(), 38).rotates_inside
    assert not graph_form(arch, TargetConfig(), 39).rotates_inside


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, GraphForm(True, True, False, False)),
        ({"packed_qkv": False}, GraphForm(True, False, False, False)),
        ({"packed_gate_up": True}, GraphForm(True, True, True, False)),
        ({"position_ids": True}, GraphForm(True, True, False, True)),
        (
            {"rotary_in_attention": False, "packed_qkv": False, "position_ids": True},
            GraphForm(False, False, False, True),
        ),
    ],
    ids=str,
)
def test_what_a_target_wishes(settings: dict[str, Any], expected: GraphForm) -> None:
    assert graph_form(arch_of("llama"), TargetConfig(**settings), 128) == expected


def test_a_recipe_s_context_decides() -> None:
    arch, recipe = arch_of("phi3_longrope"), described("phi3")
    assert context_length(arch, recipe) == 128 and not recipe_form(arch, recipe).rotates_inside
    short = replace(recipe, graph=replace(recipe.graph, context_length=32))
    assert context_length(arch, short) == 32 and recipe_form(arch, short).rotates_inside


def test_matrices_follow_the_form() -> None:
    import torch

    from converter.graph.matrices import graph_matrices
    from converter.model.decoder import Decoder, published_names
    from converter.model.tensor_kinds import canonical_shape, leaf
    from converter.weights.weight import TensorWeight

    for name, kinds in (
        ("qwen3", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("llama", "qkv_proj o_proj gate_proj up_proj down_proj"),
        ("arcee", "qkv_proj o_proj up_proj down_proj"),
    ):
        arch, family = arch_of(name), FAMILIES[name]
        recipe = compose_recipe(
            ["model=internlm2_7b", "export=cpu_int4", f"architecture={family.architecture}"]
        )
        weights = {
            canonical: TensorWeight(torch.zeros(canonical_shape(canonical, arch)))
            for canonical in published_names(recipe.layout, arch)
        }
        decoder = Decoder(arch, weights, None, (), recipe.layout)  # type: ignore[arg-type]
        found = [m.name for m in graph_matrices(recipe, decoder)]
        first = [leaf(matrix) for matrix in found if matrix.startswith("layers.0.")]
        assert first == kinds.split() and found[-1] == "lm_head"
