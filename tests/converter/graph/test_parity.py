"""Every family, as transformers saves it: found by itself, and each logit transformers' own.

The expected logits come from transformers' model with its own weights; nothing of ours has a part
in them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from descriptions import described
from families import FAMILIES, TOKENS, random_model, save, token_ids
from parity import all_logits, logit_error, relative, run, session_of

from converter.errors import ConvertError
from converter.graph.template import build_graph
from converter.model.architecture import read_architecture
from converter.model.decoder import build_decoder
from converter.model.reference import Reference
from converter.recipe.schema import Recipe
from converter.sources.local import open_local

TOLERANCE = 1e-4
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_transformers(name: str, tmp_path: Path) -> None:
    assert logit_error(name, tmp_path) < TOLERANCE


def test_the_readme_counts_the_families() -> None:
    text = (Path(__file__).resolve().parents[3] / "README.md").read_text(encoding="utf-8")
    architectures = {family.architecture for family in FAMILIES.values()}
    said = f"{len(FAMILIES)} variants of {len(architectures)} architectures"
    print(said)
    assert said in " ".join(text.split())


FELT = "felt"
PARENTS = {
    "qwen3": ("qwen2", "names no tensor for model.layers.0.self_attn.q_norm.weight"),
    "granite": ("llama", FELT),
    "glm": ("llama", "partial_rotary_factor=0.5"),
    "helium": ("llama", FELT),
    "gemma2": ("gemma", "pre_feedforward_layernorm.weight"),
    "gemma3": ("gemma2", "has full_attention="),
    "cohere2": ("cohere", FELT),
    "smollm3": ("llama", FELT),
    "olmo2": ("llama", "lacks the tensor model.layers.0.input_layernorm.weight"),
    "stablelm": ("llama", "partial_rotary_factor=0.25"),
    "nemotron": ("llama", "partial_rotary_factor=0.5"),
    "phi3_longrope": ("llama", "lacks the tensor model.layers.0.self_attn.q_proj.weight"),
    "mistral_window": ("llama", FELT),
    "qwen2_window": ("llama", FELT),
    "hunyuan": ("llama", "self_attn.key_layernorm.weight"),
    "exaone4": ("olmo2", "q_norm.weight has shape (32,)"),
    "jais2": ("arcee", "has model.norm.bias, and graph.norm.type is rms"),
    "gpt_neox": ("phi", "lacks the tensor model.embed_tokens.weight"),
    "hyperclovax": ("granite", "names no tensor for model.layers.0.post_norm1.weight"),
    "vaultgemma": ("gemma", "lacks the tensor model.layers.0.post_attention_layernorm.weight"),
    "ernie4_5": ("llama", FELT),
    "mixtral": ("llama", "lacks the tensor model.layers.0.mlp.gate_proj.weight"),
    "mixtral_window": ("granite_moe", "lacks the tensor model.layers.0.block_sparse_moe.input"),
    "qwen3_moe": ("olmoe", "q_norm.weight has shape (32,)"),
    "qwen3_moe_some_dense": ("qwen3", "lacks the tensor model.layers.3.mlp.gate_proj.weight"),
    "qwen2_moe": ("qwen2", "lacks the tensor model.layers.0.mlp.gate_proj.weight"),
    "olmoe": ("olmo2", "lacks the tensor model.layers.0.post_feedforward_layernorm.weight"),
    "granite_moe": ("mixtral", "lacks the tensor model.layers.0.block_sparse_moe.gate.weight"),
    "granite_moe_shared": ("granite_moe", "shared_mlp.input_linear.weight (144, 96)"),
    "gpt_oss": ("mixtral", "lacks the tensor model.layers.0.block_sparse_moe.gate.weight"),
}
"""Families, a description that almost fits, and why it is refused, or that only logits tell."""


def forced(name: str, wrong: Recipe) -> Recipe:
    """A description that is forced on a family: nothing but tensors and rope can refuse it."""
    right, named = described(FAMILIES[name].architecture), "q_norm" in wrong.layout.layer_tensors
    unseen = [] if named else ["*q_norm*", "*k_norm*", "*post_norm*"]
    types = right.layout.model_types
    layout = replace(wrong.layout, model_types=types, without_effect=["*"], ignored=unseen)
    return all_logits(replace(wrong, layout=layout))


def error_of(name: str, recipe: Recipe, folder: Path) -> float:
    """Largest relative error of a family's graph against the reference, as verify compares."""
    checkpoint = open_local(save(random_model(FAMILIES[name]), folder / "checkpoint"))
    arch, ids = read_architecture(checkpoint.config, recipe), token_ids()
    decoder = build_decoder(checkpoint, recipe.layout, arch)
    reference = Reference(decoder)
    found = run(session_of(build_graph(decoder, recipe), folder), ids, {}, TOKENS)[0]
    return relative(found, reference.logits(reference.hidden_states(ids))[0])


@pytest.mark.parametrize("name", PARENTS)
def test_a_wrong_description_is_refused_or_felt(name: str, tmp_path: Path) -> None:
    """The reference does not follow the description."""
    parent, outcome = PARENTS[name]
    recipe = forced(name, described(parent))
    if outcome == FELT:
        assert error_of(name, recipe, tmp_path) > 0.1
    else:
        with pytest.raises(ConvertError, match=re.escape(outcome)):
            error_of(name, recipe, tmp_path)


CHANGES: dict[str, tuple[str, dict[str, Any], str]] = {
    "Qwen3-MoE without normalization": ("qwen3_moe", {"normalize": False}, FELT),
    "OLMoE with normalization": ("olmoe", {"normalize": True}, FELT),
    "Mixtral with one expert": ("mixtral", {"per_token": 1}, FELT),
    "gpt-oss as the usual SwiGLU": ("gpt_oss", {"alpha": 1, "beta": 0}, FELT),
    "gpt-oss without a limit": ("gpt_oss", {"limit": None}, FELT),
    "Qwen3-MoE with experts everywhere": (
        "qwen3_moe_some_dense",
        {"step": 1, "dense_layers": None},
        "lacks the tensor model.layers.0.mlp.gate.weight",
    ),
}
"""Families, wrong numbers of their experts, and why they are refused, or that only logits tell."""


@pytest.mark.parametrize("change", CHANGES)
def test_wrong_numbers_of_experts_are_refused_or_felt(change: str, tmp_path: Path) -> None:
    family, values, outcome = CHANGES[change]
    recipe = all_logits(described(FAMILIES[family].architecture))
    graph = replace(recipe.graph, experts=replace(recipe.graph.experts, **values))
    wrong = replace(recipe, graph=graph, layout=replace(recipe.layout, without_effect=["*"]))
    if outcome == FELT:
        assert error_of(family, wrong, tmp_path) > 0.05
    else:
        with pytest.raises(ConvertError, match=re.escape(outcome)):
            error_of(family, wrong, tmp_path)


TENSORS: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt-oss without sinks": (
        "gpt_oss",
        {"layer_tensors": {"sinks": None}},
        "model.layers.0.self_attn.sinks (6,), and 2 more of its kind has no place",
    ),
    "gpt-oss with sinks ignored": (
        "gpt_oss",
        {"layer_tensors": {"sinks": None}, "ignored": ["*.sinks"]},
        "names no tensor for model.layers.0.self_attn.sinks in 3 layers",
    ),
    "gpt-oss without the experts' biases": (
        "gpt_oss",
        {"layer_tensors": {"expert_down_proj_bias": None}},
        "experts.down_proj_bias (6, 96), and 2 more of its kind has no place",
    ),
    "gpt-oss not transposed": ("gpt_oss", {"transposed": []}, "has shape (6, 96, 320)"),
    "gpt-oss in halves": ("gpt_oss", {"row_order": {}}, FELT),
    "Qwen2-MoE without the shared expert's gate": (
        "qwen2_moe",
        {"layer_tensors": {"shared_expert_gate": None}},
        "shared_expert_gate.weight (1, 96), and 2 more of its kind has no place",
    ),
    "Mixtral with gate and up exchanged": (
        "mixtral",
        {
            "layer_tensors": {
                "expert_gate_proj": "block_sparse_moe.experts.{expert}.w3",
                "expert_up_proj": "block_sparse_moe.experts.{expert}.w1",
            }
        },
        FELT,
    ),
}
"""The same of their tensors."""


@pytest.mark.parametrize("change", TENSORS)
def test_wrong_tensors_of_experts_are_refused_or_felt(change: str, tmp_path: Path) -> None:
    family, values, outcome = TENSORS[change]
    recipe = all_logits(described(FAMILIES[family].architecture))
    named = {**recipe.layout.layer_tensors, **values.get("layer_tensors", {})}
    wrong = replace(recipe, layout=replace(recipe.layout, **values | {"layer_tensors": named}))
    if outcome == FELT:
        assert error_of(family, wrong, tmp_path) > 0.05
    else:
        with pytest.raises(ConvertError, match=re.escape(outcome)):
            error_of(family, wrong, tmp_path)


def test_a_description_that_is_as_right_is_not_refused(tmp_path: Path) -> None:
    """Mistral without a window is Llama: what refuses the others is not the forcing."""
    recipe = forced("llama_gelu", described("mistral"))
    assert error_of("llama_gelu", recipe, tmp_path) < TOLERANCE
