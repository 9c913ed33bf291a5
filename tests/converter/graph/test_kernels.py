"""Every target's graph holds what its provider has kernels for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnxruntime
import pytest
from targets import INT4, TARGETS, words_for

from converter.graph.kernels import cpu_kernels, missing_kernels
from converter.providers import PROVIDERS


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


def test_no_list_names_an_operator_that_no_schema_defines() -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    known = {schema.name for schema in state.get_all_operator_schema()}
    assert {op for row in PROVIDERS.values() for op in row.kernels or {}} <= known


TYPES = {
    "fp32": onnx.TensorProto.FLOAT,
    "fp16": onnx.TensorProto.FLOAT16,
    "bf16": onnx.TensorProto.BFLOAT16,
}


def runs(op: str, float_type: str) -> bool:
    """Whether onnxruntime opens a model of this one operator on the CPU."""
    ends = [onnx.helper.make_tensor_value_info(n, TYPES[float_type], ["t", 4]) for n in "xy"]
    node = onnx.helper.make_node(op, ["x", "x"] if op in ("Add", "Mul") else ["x"], ["y"])
    graph = onnx.helper.make_graph([node], op, ends[:1], ends[1:])
    opsets = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception:  # onnxruntime's exceptions share no other base class
        return False
    return True


@pytest.mark.parametrize("float_type", list(TYPES))
@pytest.mark.parametrize("op", ["Add", "Mul", "Sigmoid", "Softmax", "Neg"])
def test_the_cpus_list_is_what_onnxruntime_opens(op: str, float_type: str) -> None:
    assert (float_type in cpu_kernels()[op]) == runs(op, float_type)
