"""A folder's graph, changed for the CPU; the folder itself stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from oracle import feeds
from targets import HALF, IDS, logits, relative_error

from converter.graph.cpu_model import cut_model, widen
from converter.graph.names import MODEL_FILE
from converter.model.reference import Reference
from converter.output.model_writer import write_model


def test_the_folder_file_is_untouched_by_the_full_logits(
    build: Callable[..., Any], tmp_path: Path
) -> None:
    graph = build("target=cuda", "target.float_type=bf16", "graph.last_token_logits=true")
    logits(graph, tmp_path)
    kept = ir.load(tmp_path / "model.onnx").graph
    assert kept.outputs[0].shape == ("batch_size", 1, 160)
    assert kept.outputs[0].dtype == ir.DataType.BFLOAT16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]


@pytest.mark.parametrize("words", [["target=cuda", "target.float_type=bf16"], ["target=cpu"]])
def test_full_logits_are_every_tokens(
    build: Callable[..., Any], tmp_path: Path, words: list[str]
) -> None:
    graph = build(*words, "graph.last_token_logits=true")
    found = logits(graph, tmp_path)
    reference = Reference(graph.decoder, graph.shipped)
    expected = reference.logits(reference.hidden_states(IDS)[0])[None]
    assert found.shape == expected.shape == (1, IDS.shape[1], 160)
    assert relative_error(found, expected) < HALF["bf16" if words[1:] else "fp32"]


@pytest.mark.parametrize("target", ["cuda", "nvtensorrtrtx"])
def test_a_widened_graph_has_no_bfloat16_but_for_its_weights(
    build: Callable[..., Any], target: str
) -> None:
    model = build(f"target={target}", "target.float_type=bf16").model
    stored = {n: v.dtype for n, v in model.graph.initializers.items()}
    assert widen(model)
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    assert ir.DataType.BFLOAT16 not in {value.dtype for value in values}
    casts = {n.attributes["to"].as_int() for n in model.graph if n.op_type == "Cast"}
    assert ir.DataType.FLOAT in casts and ir.DataType.BFLOAT16 not in casts
    assert {n: v.dtype for n, v in model.graph.initializers.items()} == stored


@pytest.mark.parametrize("words", [["target=cuda"], ["target=cpu"]], ids=str)
def test_a_graph_without_bfloat16_is_left_alone(
    build: Callable[..., Any], words: list[str]
) -> None:
    model = build(*words).model
    before = [(node.name, node.op_type) for node in model.graph]
    assert not widen(model)
    assert [(node.name, node.op_type) for node in model.graph] == before


@pytest.mark.parametrize("target", ["cpu", "nvtensorrtrtx"])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_cut_graph_gives_the_residual_stream(
    build: Callable[..., Any], tmp_path: Path, layers: int, target: str
) -> None:
    graph = build(f"target={target}", num_hidden_layers=3)
    write_model(graph.model, tmp_path)
    cut_model(tmp_path / MODEL_FILE, tmp_path / "cut.onnx", layers)
    session = onnxruntime.InferenceSession(tmp_path / "cut.onnx")
    (found,) = session.run(None, feeds(session, IDS.numpy()))
    expected = Reference(graph.decoder, graph.shipped).hidden_states(IDS, layers)
    limit = HALF["fp32" if target == "cpu" else "fp16"]
    assert relative_error(torch.from_numpy(found.astype(np.float32)), expected) < limit
    assert f"past_key_values.{layers}.key" not in {item.name for item in session.get_inputs()}
