from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from expert_models import graph_of
from targets import TARGETS

from converter.graph.expert_block import routing_attributes, stacked_shape
from converter.graph.kernels import missing_kernels
from converter.model.experts import Experts
from converter.model.tensor_kinds import EXPERTS_GATE_UP

CPU_FP16 = ["target.float_type=fp16"]


def moe_nodes(graph: Any) -> list[Any]:
    return [node for node in graph.model.graph if node.op_type == "MoE"]


def test_gate_and_up_take_turns_in_each_expert() -> None:
    graph = graph_of("mixtral")
    tensors = graph.decoder.checkpoint.tensors
    weight = moe_nodes(graph)[1].inputs[2].const_value
    assert tuple(weight.shape) == (5, 224, 96)
    found = torch.from_numpy(np.array(weight.numpy()))
    for expert in range(5):
        start = f"model.layers.1.block_sparse_moe.experts.{expert}."
        assert torch.equal(found[expert, 0::2], tensors[f"{start}w1.weight"].read())
        assert torch.equal(found[expert, 1::2], tensors[f"{start}w3.weight"].read())


def test_only_layers_with_experts_have_the_operator() -> None:
    graph = graph_of("qwen3_moe_some_dense")
    assert [str(node.name) for node in moe_nodes(graph)] == ["/model/layers.3/moe/MoE"]
    products = {str(node.name) for node in graph.model.graph if node.op_type == "MatMul"}
    assert "/model/layers.0/mlp/down_proj/MatMul" in products
    assert "/model/layers.3/mlp/down_proj/MatMul" not in products
    assert "/model/layers.3/moe/router/MatMul" in products


def test_biases_are_inputs_and_absent_ones_are_left_out() -> None:
    (biased, *_), (plain, *_) = (moe_nodes(graph_of(name)) for name in ("gpt_oss", "mixtral"))
    assert [value is None for value in biased.inputs] == [False] * 6
    assert [value is None for value in plain.inputs] == [False, False, False, True, False]
    assert tuple(biased.inputs[3].const_value.shape) == (6, 320)


def test_sinks_are_the_twelfth_input_of_attention() -> None:
    graph = graph_of("gpt_oss")
    nodes: list[Any] = [n for n in graph.model.graph if n.op_type == "GroupQueryAttention"]
    assert [tuple(node.inputs[11].const_value.shape) for node in nodes] == [(6,)] * 3
    others = [n for n in graph_of("mixtral").model.graph if n.op_type == "GroupQueryAttention"]
    assert all(len(node.inputs) < 12 for node in others)


def test_the_operator_is_told_how_weights_and_products_are_made() -> None:
    experts = Experts(8, 3, 64, (True,), normalize=False, alpha=1.702, beta=1.0, limit=7.0)
    assert routing_attributes(experts) == {
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.702,
        "activation_beta": 1.0,
        "k": 3,
        "normalize_routing_weights": 0,
        "swiglu_limit": 7.0,
    }
    assert "swiglu_limit" not in routing_attributes(Experts(8, 3, 64, (True,)))


def test_a_stack_is_cut_from_rows() -> None:
    assert stacked_shape((12, 5), 3) == (3, 4, 5)
    assert stacked_shape((12,), 3) == (3, 4)


def test_experts_are_lazy() -> None:
    weight = moe_nodes(graph_of("mixtral"))[0].inputs[2].const_value.weight
    assert weight is not None and weight.shape == (5 * 224, 96)
    assert graph_of("mixtral").decoder.weights[f"layers.0.{EXPERTS_GATE_UP}"].shape == (1120, 96)


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_a_graph_in_half_has_kernels(target: str) -> None:
    graph = graph_of("gpt_oss", f"target={target}", *CPU_FP16)
    assert list(missing_kernels(graph.model, target, "fp16")) == []


def test_targets_whose_graphs_are_refused_would_lack_a_kernel() -> None:
    names = {"nvtensorrtrtx": "NvTensorRtRtx"}
    lacking = [
        target
        for target in TARGETS
        if "MoE"
        in missing_kernels(
            graph_of("mixtral", f"target={target}").model, names.get(target, target), "fp16"
        )
    ]
    assert lacking == ["dml", "webgpu", "nvtensorrtrtx"]
