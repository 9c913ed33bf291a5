"""Quantized operators against onnxruntime's quantizer, and against their own weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import run_graph
from targets import HALF, IDS, INT4, TARGETS, logits, relative_error, words_for

from converter.graph.names import DATA_FILE, MATRIX
from converter.model.reference import Reference
from converter.output.model_writer import write_model

oracle = pytest.importorskip("onnxruntime.capi._pybind_state")


def initializer(model: Any, name: str) -> np.ndarray:
    array: np.ndarray = model.graph.initializers[name].const_value.numpy()
    return array


@pytest.mark.parametrize(
    ("bits", "block_size", "symmetric"),
    [(4, 32, True), (4, 16, False), (8, 32, True), (8, 16, False)],
)
def test_codes_equal_onnxruntimes_quantizer(
    build: Callable[..., Any], bits: int, block_size: int, symmetric: bool
) -> None:
    words = ["quant=rtn", f"quant.bits={bits}", f"quant.block_size={block_size}"]
    words += [f"quant.symmetric={symmetric}".lower(), "quant.embedding.block_size=null"]
    graph = build(*words, until="quantize")
    nodes = [node for node in graph.model.graph if node.op_type == "MatMulNBits"]
    assert len(nodes) == 5 * graph.decoder.architecture.num_hidden_layers + 1
    for node in nodes:
        names = [value.name for value in node.inputs[1:]]
        matrix = node.metadata_props[MATRIX]
        parts = ["q_proj", "k_proj", "v_proj"] if matrix.endswith("qkv_proj") else [""]
        weights = graph.decoder.weights
        stem = matrix.removesuffix("qkv_proj") if parts[0] else matrix
        rows = torch.cat([weights[stem + part].read() for part in parts]).float()
        count, columns = rows.shape
        blocks = columns // block_size
        codes = np.zeros((count, blocks, block_size * bits // 8), np.uint8)
        scales = np.zeros(count * blocks, np.float32)
        zero_points = np.zeros((count, (blocks * bits + 7) // 8), np.uint8)
        getattr(oracle, f"quantize_matmul_{bits}bits")(
            codes,
            np.ascontiguousarray(rows.numpy().T),
            scales,
            zero_points,
            block_size,
            count,
            columns,
            symmetric,
        )
        expected: list[np.ndarray] = [codes, scales.reshape(count, blocks)]
        expected += [] if symmetric else [zero_points]
        for name, array in zip(names, expected, strict=True):
            assert initializer(graph.model, name).tobytes() == array.tobytes(), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["quant.bits=4"],
        ["quant.bits=8", "quant.block_size=16"],
        ["quant.symmetric=false"],
        ["quant.lm_head.bits=16", "quant.embedding.bits=16"],
        ["quant.lm_head.bits=8", "quant.embedding.bits=8", "quant.embedding.symmetric=false"],
        ["target.packed_qkv=false"],
    ],
    ids=str,
)
def test_quantized_graph_computes_with_its_dequantized_weights(
    build: Callable[..., Any], tmp_path: Path, words: list[str]
) -> None:
    """accuracy_level 1 computes in fp32, so runtime and reference agree to rounding."""
    graph = build(
        "quant=rtn",
        "quant.embedding.block_size=32",
        "quant.accuracy_level=1",
        *words,
        until="quantize",
    )
    ids = torch.arange(3, 33)[None]
    reference = Reference(graph.decoder, graph.shipped)
    expected = reference.logits(reference.hidden_states(ids))
    found = run_graph(graph.model, tmp_path, ids)
    assert torch.allclose(found, expected, atol=2e-4)


def test_matrices_left_out_stay_in_float(build: Callable[..., Any]) -> None:
    words = ["quant=rtn", "quant.lm_head.bits=16", "quant.embedding.bits=16"]
    graph = build(*words, until="quantize").model.graph
    kinds = {node.metadata_props.get(MATRIX): node.op_type for node in graph}
    assert kinds["lm_head"] == "MatMul"
    assert kinds["embed_tokens"] == "Gather"
    assert kinds["layers.0.qkv_proj"] == "MatMulNBits"


def test_scales_have_the_graphs_float_type(build: Callable[..., Any]) -> None:
    graph = build("quant=rtn", "target=cuda", until="quantize")
    scales = [v for n, v in graph.model.graph.initializers.items() if n.endswith("_scales")]
    assert scales
    assert {str(value.dtype) for value in scales} == {"FLOAT16"}


def test_padding_makes_it_possible(build: Callable[..., Any], tmp_path: Path) -> None:
    words = ["quant=rtn", "quant.block_size=64", "quant.pad_last_block=true"]
    graph = build(*words, "quant.accuracy_level=1", until="quantize")
    ids = torch.arange(3, 33)[None]
    reference = Reference(graph.decoder, graph.shipped)
    expected = reference.logits(reference.hidden_states(ids))
    assert torch.allclose(run_graph(graph.model, tmp_path, ids), expected, atol=2e-4)


@pytest.mark.parametrize("operator", ["MatMulNBits", "DequantizeLinear"])
def test_fp16_scales_are_widened_by_the_runtime_when_it_loads(
    build: Callable[..., Any], tmp_path: Path, operator: str
) -> None:
    import onnx
    import onnxruntime

    words = ["quant=rtn", "quant.embedding.block_size=32", "quant.accuracy_level=1"]
    words += [f"target.quantized_weights={operator}", "quant.scale_type=fp16"]
    graph = build(*words, until="quantize")
    scales = [v for n, v in graph.model.graph.initializers.items() if n.endswith("_scales")]
    assert len(scales) > 10 and {value.dtype.name for value in scales} == {"FLOAT16"}

    ids = torch.arange(7)[None]
    reference = Reference(graph.decoder, graph.shipped)
    expected = reference.logits(reference.hidden_states(ids))
    assert torch.allclose(run_graph(graph.model, tmp_path, ids), expected, atol=2e-4)

    optimized, options = tmp_path / "optimized.onnx", onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimized)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(tmp_path / "graph.onnx", options, ["CPUExecutionProvider"])
    seen = onnx.load(optimized).graph
    cast = {name for node in seen.node if node.op_type == "Cast" for name in node.input}
    assert not cast & {tensor.name for tensor in seen.initializer}


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
    reference = Reference(graph.decoder, graph.shipped)
    expected = reference.logits(reference.hidden_states(IDS)[0])
    limit = HALF[make_recipe(*words).target.float_type]
    assert relative_error(logits(graph, tmp_path)[0], expected) < limit


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
    reference = Reference(graph.decoder, graph.shipped)
    expected = reference.logits(reference.hidden_states(IDS)[0])
    assert relative_error(logits(graph, tmp_path)[0], expected) < 1e-5
    table = 160 * 64 * (4 if not words[:-1] else 1 / 2 + 4 / 32)
    assert size[False] - size[True] == pytest.approx(table, rel=0.1)
