"""QMoE: its codes against onnxruntime's quantizer, its logits against transformers' experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from expert_models import SMALL_BLOCKS, graph_of
from families import TOKENS, token_ids
from parity import relative, run, session_of

from converter.evaluation.runtime_logits import model_inputs
from converter.graph.cpu_model import float_activations, full_logits_session
from converter.graph.graph import Graph
from converter.graph.names import EXPERTS_LAYER
from converter.model.reference import Reference
from converter.model.tensor_kinds import EXPERTS_DOWN, EXPERTS_GATE_UP
from converter.output.model_writer import write_model

oracle = pytest.importorskip("onnxruntime.capi._pybind_state")
FLOAT = ["target.accuracy_level=1", *SMALL_BLOCKS]
FAMILY = ["mixtral", "qwen3_moe_not_normalized", "olmoe_normalized", "granite_moe", "gpt_oss"]
SCHEMES: dict[str, list[str]] = {
    "symmetric": ["quant=rtn"],
    "with zero points": ["quant=rtn", "quant.symmetric=false"],
    "searched": ["quant=search"],
}


def logits(graph: Graph, folder: Path) -> torch.Tensor:
    return run(session_of(graph, folder), token_ids(), {}, TOKENS)[0]


def reference(graph: Graph, weights: Any = None) -> torch.Tensor:
    """transformers' logits on the decoder's weights, or on others."""
    found = Reference(graph.decoder, weights)
    return found.logits(found.hidden_states(token_ids()))[0]


def nodes(graph: Graph, op: str) -> list[Any]:
    return [node for node in graph.model.graph if node.op_type == op]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", FAMILY)
def test_logits_are_those_of_the_dequantized_experts(
    name: str, scheme: str, tmp_path: Path
) -> None:
    graph = graph_of(name, *FLOAT, *SCHEMES[scheme])
    assert len(nodes(graph, "QMoE")) == 3 and not nodes(graph, "MoE")
    found = logits(graph, tmp_path)
    assert relative(found, reference(graph, graph.shipped)) < 1e-4
    assert relative(found, reference(graph)) > 0.02  # rounding is felt


def test_experts_may_have_blocks_of_their_own(tmp_path: Path) -> None:
    graph = graph_of("gpt_oss", *FLOAT, "quant=rtn", "quant.experts.block_size=32")
    assert nodes(graph, "QMoE")[0].attributes["block_size"].as_int() == 32
    assert nodes(graph, "MatMulNBits")[0].attributes["block_size"].as_int() == 16
    assert relative(logits(graph, tmp_path), reference(graph, graph.shipped)) < 1e-4


@pytest.mark.parametrize("kind", [EXPERTS_GATE_UP, EXPERTS_DOWN])
@pytest.mark.parametrize("symmetric", [True, False])
def test_each_experts_codes_are_onnxruntimes(kind: str, symmetric: bool) -> None:
    graph = graph_of("mixtral", *FLOAT, "quant=rtn", f"quant.symmetric={symmetric}".lower())
    node, first = nodes(graph, "QMoE")[1], 2 if kind == EXPERTS_GATE_UP else 5
    given = [node.inputs[first], node.inputs[first + 1]]
    given += [] if symmetric else [node.inputs[11 if kind == EXPERTS_GATE_UP else 12]]
    arrays = [value.const_value.numpy() for value in given]
    weight = graph.decoder.weights[node.metadata_props[EXPERTS_LAYER] + kind].read()
    for expert, rows in enumerate(weight.chunk(5)):
        count, columns = rows.shape
        blocks = columns // 16
        codes = np.zeros((count, blocks, 8), np.uint8)
        scales = np.zeros(count * blocks, np.float32)
        points = np.zeros((count, (blocks + 1) // 2), np.uint8)
        turned = np.ascontiguousarray(rows.numpy().T)
        oracle.quantize_matmul_4bits(codes, turned, scales, points, 16, count, columns, symmetric)
        assert arrays[0][expert].tobytes() == codes.tobytes()
        assert arrays[1][expert].tobytes() == scales.tobytes()
        assert symmetric or arrays[2][expert].tobytes() == points.tobytes()


def test_weights_that_do_not_add_up_to_one_are_given_to_the_operator() -> None:
    """The CPU's kernel of QMoE normalizes them otherwise, whatever its attribute says."""
    plain, given = (graph_of(n, *FLOAT, "quant=rtn") for n in ("olmoe_normalized", "olmoe"))
    assert not nodes(plain, "Softmax") and len(nodes(plain, "QMoE")[0].inputs) < 15
    node = nodes(given, "QMoE")[0]
    assert node.inputs[14].producer().op_type == "Softmax"
    assert node.attributes["normalize_routing_weights"].as_int() == 0


@pytest.mark.slow
def test_without_them_the_logits_differ(tmp_path: Path) -> None:
    graph = graph_of("olmoe", *FLOAT, "quant=rtn")
    expected = reference(graph, graph.shipped)
    assert relative(logits(graph, tmp_path), expected) < 1e-4
    for node in nodes(graph, "QMoE"):
        node.resize_inputs(14)
    assert relative(logits(graph, tmp_path), expected) > 0.05


@pytest.mark.slow
def test_int8_activations_can_be_taken_from_a_folder(tmp_path: Path) -> None:
    graph = graph_of("mixtral", "target.accuracy_level=4", *SMALL_BLOCKS, "quant=rtn")
    expected = reference(graph, graph.shipped)
    assert relative(logits(graph, tmp_path), expected) > 1e-3
    assert float_activations(graph.model)
    assert relative(logits(graph, tmp_path), expected) < 1e-4


def test_experts_of_8_bits_have_int8_activations_alone(tmp_path: Path) -> None:
    """Why they are refused: float activations cannot be asked for, so nothing can check them."""
    graph = graph_of("mixtral", *FLOAT, "quant=rtn", "quant.bits=8")
    assert relative(logits(graph, tmp_path), reference(graph, graph.shipped)) > 1e-3


def test_experts_can_stay_in_float(tmp_path: Path) -> None:
    graph = graph_of("mixtral", *FLOAT, "quant=rtn", "quant.experts.bits=16")
    assert len(nodes(graph, "MoE")) == 3 and nodes(graph, "MatMulNBits")
    assert relative(logits(graph, tmp_path), reference(graph, graph.shipped)) < 1e-4


def test_the_router_stays_in_float() -> None:
    graph = graph_of("qwen2_moe", *FLOAT, "quant=rtn", "quant.pad_last_block=true")
    float_products = {str(node.name) for node in nodes(graph, "MatMul")}
    assert float_products == {
        f"/model/layers.{layer}/{what}/MatMul"
        for layer in range(3)
        for what in ("moe/router", "shared_expert/gate")
    }


def test_scales_are_stored_in_half_where_the_scheme_says_so(tmp_path: Path) -> None:
    graph = graph_of("mixtral", *FLOAT, "quant=search")
    node = nodes(graph, "QMoE")[0]
    assert node.inputs[3].producer().op_type == "Cast"
    assert str(node.inputs[3].producer().inputs[0].dtype) == "FLOAT16"


@pytest.mark.slow
def test_a_search_costs_the_weights_less() -> None:
    errors = []
    for scheme in ("quant=rtn", "quant=search"):
        graph = graph_of("mixtral", *FLOAT, scheme)
        name = f"layers.0.{EXPERTS_GATE_UP}"
        wanted, found = graph.decoder.weights[name].read(), graph.shipped[name].read()
        errors.append(float((found - wanted).norm() / wanted.norm()))
    assert errors[1] < 0.95 * errors[0]


LIMITS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""What verify allows, and less in fp32."""
EXPORTS = {
    "cpu_int4": ("gpt_oss", "fp32"),
    "cuda_int4": ("olmoe", "fp16"),
    "webgpu_int4": ("gpt_oss", "fp16"),
    "cuda_fp16": ("qwen3_moe_not_normalized", "fp16"),
    "cuda_bf16": ("gpt_oss", "bf16"),
    "cpu_fp32": ("granite_moe_shared", "fp32"),
}


@pytest.mark.slow
@pytest.mark.parametrize("export", EXPORTS)
def test_the_graph_of_every_export_with_kernels_runs_on_the_cpu(
    export: str, tmp_path: Path
) -> None:
    name, float_type = EXPORTS[export]
    graph = graph_of(name, f"export={export}", *FLOAT)
    write_model(graph.model, tmp_path)
    session = full_logits_session(tmp_path, threads=1)
    ids = token_ids()
    inputs = model_inputs(session, ids.numpy()[0])
    found = torch.from_numpy(session.run(["logits"], inputs)[0])[0].float()
    expected = reference(graph, graph.shipped)
    errors = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    # 16 bits may send a token to another of two tied experts, which is no error of the graph.
    judged = errors.max() if float_type == "fp32" else errors.median()
    assert judged < LIMITS[float_type]
