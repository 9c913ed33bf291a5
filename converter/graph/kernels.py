"""Which operator has a kernel for which float type on which execution provider.

The CPU's list is read from the installed runtime. The other providers' are written down here, for
the operators that the graph template and the quantize pass use, from:

- cuda, dml: onnxruntime `docs/OperatorKernels.md`, which is generated from the registered kernels.
- webgpu: onnxruntime `onnxruntime/contrib_ops/webgpu/webgpu_contrib_kernels.cc` and
  `onnxruntime/core/providers/webgpu/webgpu_execution_provider.cc`; its float types are fp32, fp16.
- NvTensorRtRtx: TensorRT's ONNX parser (onnx-tensorrt `docs/operators.md`) and the graphs that
  onnxruntime-genai's builder makes for it: quantized weights as DequantizeLinear, RMSNorm in plain
  operators, GroupQueryAttention; no MatMulNBits, GatherBlockQuantized or
  SkipSimplifiedLayerNormalization.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

SHAPES = frozenset({"Cast", "Gather", "Max", "ReduceMax", "ReduceSum", "Shape", "Sub", "Unsqueeze"})
"""Operators on lengths and positions: small integers, which any provider may leave to the CPU."""
_PLAIN = frozenset(
    {"Add", "Cast", "Div", "Gather", "MatMul", "Mul", "ReduceMean", "Sigmoid", "Split", "Sqrt"}
)
_FUSED = frozenset(
    {
        "GroupQueryAttention",
        "MatMulNBits",
        "RotaryEmbedding",
        "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)
_BLOCKED = frozenset({"DequantizeLinear", "Transpose"})
_BOTH, _ALL = frozenset({"fp32", "fp16"}), frozenset({"fp32", "fp16", "bf16"})
_HALVES = frozenset({"fp16", "bf16"})

KERNELS: Mapping[str, Mapping[str, frozenset[str]]] = {
    "cuda": dict.fromkeys(
        _PLAIN | _FUSED | _BLOCKED | {"FusedMatMul", "GatherBlockQuantized", "GatherND"}, _ALL
    )
    | {"GroupQueryAttention": _HALVES},
    "dml": dict.fromkeys(_PLAIN | _FUSED | _BLOCKED | {"FusedMatMul", "GatherND"}, _BOTH),
    "webgpu": dict.fromkeys(_PLAIN | _FUSED | _BLOCKED | {"GatherBlockQuantized"}, _BOTH),
    "NvTensorRtRtx": dict.fromkeys(_PLAIN | _BLOCKED, _ALL) | {"GroupQueryAttention": _HALVES},
}
"""Provider to operator to the float types that it has a kernel for."""
_RUNTIME_NAMES = {"tensor(float)": "fp32", "tensor(float16)": "fp16", "tensor(bfloat16)": "bf16"}


def kernels(provider: str) -> Mapping[str, frozenset[str]]:
    """Operator to float types with a kernel on `provider`, a name of genai_config.json."""
    return cpu_kernels() if provider == "cpu" else KERNELS[provider]


@cache
def cpu_kernels() -> Mapping[str, frozenset[str]]:
    """The installed runtime's CPU kernels. fp16 counts where onnxruntime casts to fp32 around."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[str, set[str]] = {}
    for kernel in state.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            types = {name for names in kernel.type_constraints.values() for name in names}
            own = {_RUNTIME_NAMES[name] for name in types if name in _RUNTIME_NAMES}
            found.setdefault(kernel.op_name, set()).update(own)
    # Its InsertCastTransformer puts casts around nodes that lack an fp16 kernel; not so for bf16.
    return {
        op: frozenset(own | ({"fp16"} if "fp32" in own else set())) for op, own in found.items()
    }


def missing_kernels(model: ir.Model, provider: str, float_type: str) -> Iterator[str]:
    """Operators of a graph that have no kernel for its float type on `provider`, each once.

    `float_type` is fp32, fp16 or bf16: the type of the graph's activations.
    """
    known = kernels(provider)
    for op in sorted({node.op_type for node in model.graph}):
        if op not in SHAPES and float_type not in known.get(op, frozenset()):
            yield op


def supported_float_types(provider: str, operators: Iterable[str]) -> list[str]:
    """Float types for which `provider` has a kernel of every operator, fp32 first."""
    known = kernels(provider)
    return [
        name
        for name in ("fp32", "fp16", "bf16")
        if all(name in known.get(op, frozenset()) for op in operators)
    ]
