"""The execution providers that a recipe can name, one row each.

What differs from provider to provider is stated here and read everywhere else, so a new one is a
row, and a choice of the slot `target`. Kernels are written down for the operators that the graph
template and quantization use, from:

- cuda, dml: onnxruntime `docs/OperatorKernels.md`, which is generated from the registered kernels.
- webgpu: onnxruntime `onnxruntime/contrib_ops/webgpu/webgpu_contrib_kernels.cc` and
  `onnxruntime/core/providers/webgpu/webgpu_execution_provider.cc`; its float types are fp32, fp16.
  MoE has no kernel there; QMoE's is in `onnxruntime/contrib_ops/webgpu/moe/qmoe.cc`.
- NvTensorRtRtx: TensorRT's ONNX parser (onnx-tensorrt `docs/operators.md`) and the graphs that
  onnxruntime-genai's builder makes for it: quantized weights as DequantizeLinear, RMSNorm in plain
  operators, GroupQueryAttention; no MatMulNBits, GatherBlockQuantized or
  SkipSimplifiedLayerNormalization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_PLAIN = frozenset(
    {"Add", "Cast", "Div", "Erf", "Gather", "LayerNormalization", "MatMul", "Mul", "ReduceMean"}
    | {"Relu", "Reshape", "Sigmoid", "Split", "Sqrt", "Tanh"}
)
_FUSED = frozenset(
    {
        "GroupQueryAttention",
        "MatMulNBits",
        "RotaryEmbedding",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)
_BLOCKED = frozenset({"DequantizeLinear", "Transpose"})
_BOTH, _ALL = frozenset({"fp32", "fp16"}), frozenset({"fp32", "fp16", "bf16"})
_HALVES = frozenset({"fp16", "bf16"})

Kernels = Mapping[str, frozenset[str]]
"""Operator to the float types (fp32, fp16, bf16) that a provider has a kernel for."""


@dataclass(frozen=True)
class Provider:
    """An execution provider of onnxruntime, as recipes, graphs and the runtime see it."""

    name: str
    """In recipes and in genai_config.json's `provider_options`."""
    onnxruntime_name: str
    device: str
    """`cpu` or `gpu`."""
    kernels: Kernels | None = None
    """None: the installed runtime is asked (converter/graph/kernels.py)."""
    float_types: tuple[str, ...] = field(default=())
    """Stated where `kernels` is None, so that checking a recipe does not load onnxruntime."""
    availability: str | None = None
    """Function of onnxruntime_genai that says whether this build has the provider; None: the
    provider is looked for among those of onnxruntime."""
    graph_capture: str | None = None
    """Option that records the graph once and replays it; None where there is none."""
    lengths_on_device: bool = False
    """Whether a captured graph must not read lengths from a shape, which the CPU knows."""
    rotates: bool = True
    """Whether GroupQueryAttention can rotate queries and keys itself."""
    rewinds: bool = True
    """Whether a generator can forget its last tokens."""
    int8_cache: bool = False
    """Whether GroupQueryAttention was checked with int8 keys and values."""
    sinks: bool = False
    """Whether GroupQueryAttention takes `head_sink`, by the sources above."""
    plain_experts_only: bool = False
    """Whether QMoE takes neither zero points nor weights of experts that do not add up to 1."""
    tunes: bool = False
    """Whether threads, spinning and chunk size are settings of it."""


_ROWS = (
    Provider(
        "cpu",
        "CPUExecutionProvider",
        "cpu",
        float_types=("fp32", "fp16"),
        int8_cache=True,
        sinks=True,
        tunes=True,
    ),
    Provider(
        "cuda",
        "CUDAExecutionProvider",
        "gpu",
        dict.fromkeys(
            _PLAIN
            | _FUSED
            | _BLOCKED
            | {"FusedMatMul", "GatherBlockQuantized", "GatherND", "MoE", "Softmax"},
            _ALL,
        )
        | {"GroupQueryAttention": _HALVES, "QMoE": _HALVES},
        availability="is_cuda_available",
        graph_capture="enable_cuda_graph",
        sinks=True,
    ),
    Provider(
        "dml",
        "DmlExecutionProvider",
        "gpu",
        dict.fromkeys(_PLAIN | _FUSED | _BLOCKED | {"FusedMatMul", "GatherND"}, _BOTH),
        availability="is_dml_available",
        graph_capture="enable_graph_capture",
        rotates=False,
        rewinds=False,
    ),
    Provider(
        "webgpu",
        "WebGpuExecutionProvider",
        "gpu",
        dict.fromkeys(_PLAIN | _FUSED | _BLOCKED | {"GatherBlockQuantized", "QMoE"}, _BOTH),
        availability="is_webgpu_available",
        graph_capture="enableGraphCapture",
        lengths_on_device=True,
        sinks=True,
        plain_experts_only=True,
    ),
    Provider(
        "NvTensorRtRtx",
        "NvTensorRTRTXExecutionProvider",
        "gpu",
        dict.fromkeys(_PLAIN | _BLOCKED, _ALL) | {"GroupQueryAttention": _HALVES},
        graph_capture="enable_cuda_graph",
    ),
)
PROVIDERS: dict[str, Provider] = {row.name: row for row in _ROWS}
"""Name in a recipe to the provider's row."""
CPU = PROVIDERS["cpu"]
"""Where folders are verified, evaluated and measured by Olive, whatever their target."""
NEEDED = ("GroupQueryAttention", "MatMul")
"""Operators of every graph: what they have kernels for, a graph can have."""


def float_types(name: str) -> list[str]:
    """Float types that a graph can have on the provider, fp32 first."""
    row = PROVIDERS[name]
    if row.kernels is None:
        return list(row.float_types)
    known = row.kernels
    possible = ("fp32", "fp16", "bf16")
    return [kind for kind in possible if all(kind in known.get(op, ()) for op in NEEDED)]


def is_available(name: str) -> bool:
    """Whether the installed runtime can run on the provider."""
    row = PROVIDERS[name]
    if row.device == "cpu":
        return True
    if row.availability is not None:
        import onnxruntime_genai

        return bool(getattr(onnxruntime_genai, row.availability, lambda: False)())
    import onnxruntime

    return row.onnxruntime_name in onnxruntime.get_available_providers()
