"""Which operator has a kernel for which float type on which execution provider.

The CPU's list is read from the installed runtime, the others' stand in converter/providers.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache
from typing import TYPE_CHECKING

from converter.errors import Problem
from converter.graph.names import layer_prefix
from converter.model.tensor_kinds import SINKS
from converter.providers import CPU, PROVIDERS, Kernels

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.model.decoder import Decoder
    from converter.recipe.schema import TargetConfig

SHAPES = frozenset(
    {"Cast", "Gather", "Greater", "Max", "ReduceMax", "ReduceSum", "Shape", "Sub", "Unsqueeze"}
)
"""Operators on lengths and positions: small integers, which any provider may leave to the CPU."""
_RUNTIME_NAMES = {"tensor(float)": "fp32", "tensor(float16)": "fp16", "tensor(bfloat16)": "bf16"}


def kernels(provider: str) -> Kernels:
    """Operator to float types with a kernel on `provider`, a name of genai_config.json."""
    known = PROVIDERS[provider].kernels
    return cpu_kernels() if known is None else known


@cache
def cpu_kernels() -> Kernels:
    """The installed runtime's CPU kernels. fp16 counts where onnxruntime casts to fp32 around."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[str, set[str]] = {}
    for kernel in state.get_all_opkernel_def():
        if kernel.provider == CPU.onnxruntime_name:
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


def kernel_problems(
    model: ir.Model, target: TargetConfig, replaced: Collection[str] = ()
) -> Iterator[Problem]:
    """Operators of the graph that the target's execution provider has no kernel for.

    A later pass replaces those of the types `replaced`.
    """
    provider, float_type = target.execution_provider, target.float_type
    missing = missing_kernels(model, provider, float_type)
    for op in (op for op in missing if op not in replaced):
        yield Problem(
            f"The graph holds {op} in {float_type}, which has no kernel on {provider}.",
            "operators that the execution provider runs (converter/providers.py)",
            "report this, with the recipe",
        )


def head_size_problems(head_dim: int) -> Iterator[Problem]:
    """Head sizes that GroupQueryAttention's kernels do not take.

    Source: onnxruntime's `group_query_attention_helper.h`: multiples of 8. Where it rotates queries
    and keys itself it wants more, and the graph rotates them in front (`converter.graph.form`).
    """
    if head_dim % 8:
        yield Problem(
            f"The head size is {head_dim}.",
            "a multiple of 8, which GroupQueryAttention needs",
            "choose another checkpoint",
        )


def sink_problems(decoder: Decoder, provider: str) -> Iterator[Problem]:
    """Attention sinks on a provider whose GroupQueryAttention does not take them."""
    if f"{layer_prefix(0)}{SINKS}" in decoder.weights and not PROVIDERS[provider].sinks:
        able = [row.name for row in PROVIDERS.values() if row.sinks]
        yield Problem(
            f"The model has attention sinks, which {provider}'s GroupQueryAttention does not take.",
            f"a provider that does: {', '.join(able)}",
            "choose export=cpu_int4 or export=cuda_int4",
            key=("target.execution_provider",),
        )
