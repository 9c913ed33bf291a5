"""Every target's graph on the CPU provider, against transformers on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from oracle import feeds, llama_of

from converter.graph.cpu_model import full_logits_session
from converter.graph.kernels import missing_kernels
from converter.graph.names import DATA_FILE
from converter.model.reference import Reference
from converter.output.model_writer import write_model
from converter.providers import PROVIDERS

TARGETS = ["cpu", "cuda", "dml", "webgpu", "nvtensorrtrtx"]
HALF = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2}
"""Relative error that rounding to the float type explains: its epsilon, a few layers deep."""
IDS = torch.tensor([[5, 9, 33, 2, 150, 77, 8, 120, 41, 3, 99]])
INT4 = ["quant=rtn", "quant.embedding.block_size=32"]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def logits(graph: Any, folder: Path) -> torch.Tensor:
    folder.mkdir(exist_ok=True)
    write_model(graph.model, folder)
    session = full_logits_session(folder, threads=1)
    (found,) = session.run(["logits"], feeds(session, IDS.numpy()))
    return torch.from_numpy(found).float()


def words_for(target: str, *quant: str) -> list[str]:
    embedding = ["quant.embedding.bits=16"] if quant and target in ("dml", "nvtensorrtrtx") else []
    return [f"target={target}", "graph.last_token_logits=true", *quant, *embedding]


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


@pytest.mark.parametrize("words", [
    *(words_for(target, *INT4, "quant.accuracy_level=1") for target in TARGETS),
    [*words_for("cuda", *INT4), "target.float_type=bf16"],
    [*words_for("cpu", *INT4), "target.packed_gate_up=true", "quant.accuracy_level=1"],
    [*words_for("nvtensorrtrtx", *INT4), "quant.lm_head.bits=8"],
    [*words_for("cpu", *INT4), "quant.symmetric=false", "quant.accuracy_level=1"],
], ids=" ".join)  # fmt: skip
def test_an_int4_graph_computes_with_its_dequantized_weights(
    build: Callable[..., Any], make_recipe: Callable[..., Any], tmp_path: Path, words: list[str]
) -> None:
    graph = build(*words, until="quantize")
    reference = Reference(graph.decoder.architecture, graph.shipped)
    expected = reference.logits(reference.hidden_states(IDS)[0])
    limit = HALF[make_recipe(*words).target.float_type]
    assert relative_error(logits(graph, tmp_path)[0], expected) < limit


@pytest.mark.parametrize("quant", [(), tuple(INT4)], ids=["float", "int4"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_graph_holds_only_operators_with_a_kernel_on_its_provider(
    build: Callable[..., Any], target: str, quant: tuple[str, ...]
) -> None:
    words = words_for(target, *quant)
    graph = build(*words, until="quantize" if quant else "graph")
    provider = {"nvtensorrtrtx": "NvTensorRtRtx"}.get(target, target)
    float_type = "fp32" if target == "cpu" else "fp16"
    assert list(missing_kernels(graph.model, provider, float_type)) == []


def test_a_graph_for_another_provider_is_recognised(build: Callable[..., Any]) -> None:
    graph = build(*words_for("cuda", *INT4), until="quantize")
    assert list(missing_kernels(graph.model, "NvTensorRtRtx", "fp16")) == [
        "GatherBlockQuantized",
        "GatherND",
        "MatMulNBits",
        "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    ]
    assert "GroupQueryAttention" in missing_kernels(graph.model, "cuda", "fp32")


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


@pytest.mark.parametrize("words", [[], [*INT4], [*INT4, "quant.symmetric=false"]], ids=str)
def test_tied_embeddings_are_stored_once(
    build: Callable[..., Any], tmp_path: Path, words: list[str]
) -> None:
    words = [*words, "quant.accuracy_level=1"]
    size = {}
    for tied in (False, True):
        graph = build(*words, until="quantize" if INT4[0] in words else "graph",
                      tie_word_embeddings=tied)  # fmt: skip
        write_model(graph.model, tmp_path)
        size[tied] = (tmp_path / DATA_FILE).stat().st_size
    reference = Reference(graph.decoder.architecture, graph.shipped)
    expected = reference.logits(reference.hidden_states(IDS)[0])
    assert relative_error(logits(graph, tmp_path)[0], expected) < 1e-5
    table = 160 * 64 * (4 if not words[:-1] else 1 / 2 + 4 / 32)
    assert size[False] - size[True] == pytest.approx(table, rel=0.1)


def test_no_list_names_an_operator_that_no_schema_defines() -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    known = {schema.name for schema in state.get_all_operator_schema()}
    assert {op for row in PROVIDERS.values() for op in row.kernels or {}} <= known


def test_the_folder_file_is_untouched_by_the_full_logits(
    build: Callable[..., Any], tmp_path: Path
) -> None:
    graph = build("target=cuda", "target.float_type=bf16", "graph.last_token_logits=true")
    logits(graph, tmp_path)
    kept = ir.load(tmp_path / "model.onnx").graph
    assert kept.outputs[0].shape == ("batch_size", 1, 160)
    assert kept.outputs[0].dtype == ir.DataType.BFLOAT16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
