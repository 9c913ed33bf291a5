"""The graph against transformers' Llama, with the rows put in order by InternLM2's own rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import llama_of, run_graph


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_attention_heads": 6, "num_key_value_heads": 1, "hidden_size": 96},
        {"num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 64},
        {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 80 * 8},
        {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 9 * 16},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"num_hidden_layers": 1, "rope_theta": 5e7},
    ],
    ids=str,
)
def test_logits_equal_transformers(
    build: Callable[..., Any], tmp_path: Path, config: dict[str, Any]
) -> None:
    graph = build(**config)
    ids = torch.randint(0, 160, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = llama_of(graph.decoder.checkpoint)(ids).logits
    found = run_graph(graph.model, tmp_path, ids)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.usefixtures("synthetic_biases")
def test_biases_are_permuted_with_their_rows(build: Callable[..., Any], tmp_path: Path) -> None:
    graph = build(bias=True)
    ids = torch.arange(30)[None]
    with torch.no_grad():
        expected = llama_of(graph.decoder.checkpoint)(ids).logits
    assert torch.allclose(run_graph(graph.model, tmp_path, ids), expected, atol=1e-4)


@pytest.mark.parametrize(
    "words",
    [
        ["target.packed_qkv=false"],
        [
            "target.packed_qkv=false",
            "target.rotary_in_attention=false",
            "target.position_ids=true",
        ],
    ],
)
def test_every_form_of_attention_gives_the_same_logits(
    build: Callable[..., Any], tmp_path: Path, words: list[str]
) -> None:
    ids = torch.arange(5, 45)[None]
    expected = run_graph(build().model, tmp_path, ids)
    assert torch.allclose(run_graph(build(*words).model, tmp_path, ids), expected, atol=1e-5)


def test_caches_have_the_length_that_the_recipe_asks(build: Callable[..., Any]) -> None:
    graph = build("graph.context_length=77")
    assert graph.model.graph.initializers["cos_cache"].shape == (77, 8)
    assert build().model.graph.initializers["sin_cache"].shape == (128, 8)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_other_families_cost_yaml_only(
    make_recipe: Callable[..., Any], tmp_path: Path, family: str
) -> None:
    """A checkpoint saved by transformers, converted with layout=llama."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from converter.engine.contract import Run
    from converter.engine.registry import make_passes
    from converter.storage.staging import Staging

    config = AutoConfig.for_model(
        family,
        vocab_size=160,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        sliding_window=None,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / family)
    recipe = make_recipe("layout=llama", "source=checkpoint", f"source.path='{tmp_path / family}'")
    artifact: Any = None
    for item in make_passes(["load", "layout", "graph"]):
        artifact = item.run(artifact, Run(recipe, Staging.nowhere())).artifact
    ids = torch.arange(30)[None]
    with torch.no_grad():
        expected = model(ids).logits
    assert torch.allclose(run_graph(artifact.model, tmp_path, ids), expected, atol=1e-4)
