"""Every target's graph on the CPU provider, against transformers on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from oracle import feeds, llama_of, run_graph
from targets import HALF, IDS, TARGETS, logits, relative_error, words_for

from converter.output.model_writer import write_model


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


@pytest.mark.parametrize("words", [
    *(words_for(target) for target in TARGETS),
    ["target=cuda", "target.float_type=bf16"],
    ["target=nvtensorrtrtx", "target.float_type=bf16"],
    ["target=webgpu", "target.float_type=fp32"],
    ["target=webgpu", "target.graph_capture=true", "graph.last_token_logits=true"],
    ["target=cpu", "target.float_type=fp16"],
    ["target=cpu", "target.packed_gate_up=true"],
    ["target=cpu", "target.fused_norm=false"],
], ids=" ".join)  # fmt: skip
def test_a_float_graph_computes_the_model(
    build: Callable[..., Any], make_recipe: Callable[..., Any], tmp_path: Path, words: list[str]
) -> None:
    graph = build(*words)
    with torch.no_grad():
        expected = llama_of(graph.decoder.checkpoint)(IDS).logits
    limit = HALF[make_recipe(*words).target.float_type]
    assert relative_error(logits(graph, tmp_path), expected) < limit


def test_only_a_graph_made_for_capture_computes_its_lengths_on_the_device(
    build: Callable[..., Any],
) -> None:
    def operators(*words: str) -> set[str]:
        return {node.op_type for node in build(*words, "target=webgpu").model.graph}

    assert "Shape" in operators()
    assert "Shape" not in operators("target.graph_capture=true")


@pytest.mark.parametrize("target", ["cpu", "cuda", "dml"])
def test_last_token_logits_are_each_prompts_own(
    build: Callable[..., Any], tmp_path: Path, target: str
) -> None:
    """A batch of 7 and 3 tokens, the shorter one padded on the right, then one more step."""
    ids = np.array([[5, 9, 33, 2, 150, 77, 8], [8, 120, 41, 0, 0, 0, 0]])
    mask = np.array([[1] * 7, [1, 1, 1, 0, 0, 0, 0]])
    found = _steps(build(f"target={target}", "graph.last_token_logits=true"), tmp_path, ids, mask)
    whole = _steps(build(f"target={target}"), tmp_path, ids, mask)
    assert found[0].shape == (2, 1, 160)
    expected = np.stack([whole[0][0, 6], whole[0][1, 2]])
    assert np.allclose(found[0][:, 0], expected, atol=1e-2 if target != "cpu" else 1e-5)
    assert np.allclose(found[1], whole[1], atol=1e-2 if target != "cpu" else 1e-5)


def _steps(graph: Any, folder: Path, ids: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Logits of the prompts and of one more token each, as onnxruntime-genai feeds them."""
    write_model(graph.model, folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    given = feeds(session, ids)
    for name in given:
        if name.startswith("past"):
            given[name] = np.zeros((2, *given[name].shape[1:]), given[name].dtype)
    given["attention_mask"] = mask
    if "position_ids" in given:
        given["position_ids"] = np.maximum(mask.cumsum(1) - 1, 0)
    first = session.run(None, given)
    names = [item.name for item in session.get_outputs()]
    later = dict(zip((n.replace("present", "past_key_values") for n in names), first, strict=True))
    del later["logits"]
    later["input_ids"] = np.array([[9], [33]])
    later["attention_mask"] = np.concatenate([mask, [[1], [1]]], axis=1)
    if "position_ids" in given:
        later["position_ids"] = mask.sum(1, keepdims=True)
    return [first[0].astype(np.float32), session.run(["logits"], later)[0].astype(np.float32)]
