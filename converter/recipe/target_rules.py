"""What an execution provider cannot run, told from a recipe alone, with the nearest that it can."""

from __future__ import annotations

from collections.abc import Iterator

from converter.errors import Problem
from converter.providers import PROVIDERS, float_types
from converter.recipe.runtime_options import MOST_THREADS, search_problems, session_problems
from converter.recipe.schema import QuantConfig, TargetConfig


def target_problems(target: TargetConfig, quant: QuantConfig) -> Iterator[Problem]:
    """Combinations of a target's settings that no kernel or graph exists for."""
    yield from _float_type_problems(target)
    yield from _attention_problems(target)
    yield from _operator_problems(target)
    if quant.round != "none":
        yield from _quantization_problems(target, quant)
    yield from _runtime_problems(target)


def _float_type_problems(target: TargetConfig) -> Iterator[Problem]:
    provider, possible = target.execution_provider, float_types(target.execution_provider)
    if target.float_type not in possible:
        nearest = possible[-1] if target.float_type == "bf16" else possible[0]
        yield Problem(
            f"target.float_type={target.float_type} for the {provider} execution provider.",
            f"{' or '.join(possible)}; GroupQueryAttention has no kernel for others there",
            f"set target.float_type={nearest}",
            key=(
                "target.float_type",
                "target.execution_provider",
            ),
        )


def _attention_problems(target: TargetConfig) -> Iterator[Problem]:
    if target.packed_qkv and not target.rotary_in_attention:
        yield Problem(
            "target.packed_qkv=true with target.rotary_in_attention=false.",
            "separate Q and K when RotaryEmbedding stands outside of attention",
            "set target.packed_qkv=false",
            key=(
                "target.packed_qkv",
                "target.rotary_in_attention",
            ),
        )
    if not target.rotary_in_attention and not target.position_ids:
        yield Problem(
            "target.rotary_in_attention=false with target.position_ids=false.",
            "position_ids as an input when RotaryEmbedding stands outside of attention",
            "set target.position_ids=true",
            key=(
                "target.rotary_in_attention",
                "target.position_ids",
            ),
        )
    provider = PROVIDERS[target.execution_provider]
    if not provider.rotates and target.rotary_in_attention:
        yield Problem(
            f"target.rotary_in_attention=true for the {provider.name} execution provider.",
            "RotaryEmbedding outside of attention; GroupQueryAttention does not rotate there",
            "set target.rotary_in_attention=false target.packed_qkv=false target.position_ids=true",
            key=(
                "target.rotary_in_attention",
                "target.execution_provider",
            ),
        )


def _operator_problems(target: TargetConfig) -> Iterator[Problem]:
    provider = target.execution_provider
    known = PROVIDERS[provider].kernels
    if known is not None and target.fused_norm and "SkipSimplifiedLayerNormalization" not in known:
        yield Problem(
            f"target.fused_norm=true for the {provider} execution provider.",
            "RMSNorm in plain operators; SkipSimplifiedLayerNormalization has no kernel there",
            "set target.fused_norm=false",
            key=(
                "target.fused_norm",
                "target.execution_provider",
            ),
        )
    if target.graph_capture and PROVIDERS[provider].graph_capture is None:
        able = [row.name for row in PROVIDERS.values() if row.graph_capture is not None]
        yield Problem(
            f"target.graph_capture=true for the {provider} execution provider.",
            f"one of the providers that capture graphs: {', '.join(able)}",
            "set target.graph_capture=false",
            key=(
                "target.graph_capture",
                "target.execution_provider",
            ),
        )


def _quantization_problems(target: TargetConfig, quant: QuantConfig) -> Iterator[Problem]:
    provider, operator = target.execution_provider, target.quantized_weights
    known = PROVIDERS[provider].kernels
    if known is not None and operator not in known:
        yield Problem(
            f"target.quantized_weights={operator} for the {provider} execution provider.",
            f"an operator with a kernel there; {operator} has none",
            "set target.quantized_weights=DequantizeLinear",
            key=(
                "target.quantized_weights",
                "target.execution_provider",
                "quant.round",
            ),
        )
    if known is not None and "GatherBlockQuantized" not in known and quant.embedding.bits != 16:
        yield Problem(
            f"The embedding is quantized for the {provider} execution provider.",
            "an embedding in floating point; GatherBlockQuantized has no kernel there",
            "set quant.embedding.bits=16",
            key=(
                "quant.embedding.bits",
                "target.execution_provider",
                "quant.round",
            ),
        )
    if operator == "DequantizeLinear":
        yield from _dequantize_problems(quant)


def _dequantize_problems(quant: QuantConfig) -> Iterator[Problem]:
    for key, symmetric in (
        ("quant.symmetric", quant.symmetric),
        ("quant.lm_head.symmetric", quant.lm_head.symmetric),
    ):
        if symmetric is False:
            yield Problem(
                f"{key}=false with target.quantized_weights=DequantizeLinear.",
                "symmetric weights; TensorRT takes int4 without zero points",
                f"set {key}=true",
                key=(key, "target.quantized_weights"),
            )
    if quant.pad_last_block:
        yield Problem(
            "quant.pad_last_block=true with target.quantized_weights=DequantizeLinear.",
            "a block size that divides every matrix; DequantizeLinear has no padded columns",
            "set quant.pad_last_block=false",
            key=(
                "quant.pad_last_block",
                "target.quantized_weights",
            ),
        )


def _runtime_problems(target: TargetConfig) -> Iterator[Problem]:
    yield from search_problems(target.search, "target.search.{}")
    yield from session_problems(target.session_options, "target.session_options.{}")
    if target.threads is not None and not 0 <= target.threads <= MOST_THREADS:
        yield Problem(
            f"target.threads={target.threads}.",
            f"1 to {MOST_THREADS}, 0 for the runtime's choice, null for the physical cores",
            "set target.threads=null",
            key=("target.threads",),
        )
    if target.chunk_size is not None and target.chunk_size < 1:
        yield Problem(
            f"target.chunk_size={target.chunk_size}.",
            "a positive number of tokens, or null for the whole prompt",
            "set target.chunk_size=512",
            key=("target.chunk_size",),
        )
    provider = PROVIDERS[target.execution_provider]
    if target.kv_cache == "int8" and not provider.int8_cache:
        yield Problem(
            f"target.kv_cache=int8 for the {target.execution_provider} execution provider.",
            "the cpu target, whose GroupQueryAttention was checked with int8 keys and values",
            "set target.kv_cache=float",
            key=(
                "target.kv_cache",
                "target.execution_provider",
            ),
        )
