from __future__ import annotations

from typing import Any

import pytest

from converter.cli.compose import compose_recipe
from converter.errors import ConvertError
from converter.graph.kernels import cpu_kernels
from converter.providers import PROVIDERS, float_types
from converter.recipe.schema import QuantConfig, TargetConfig
from converter.recipe.target_rules import target_problems


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["target=cpu", "target.float_type=bf16"], "target.float_type=fp16"),
        (["target=cuda", "target.float_type=fp32"], "target.float_type=fp16"),
        (["target=dml", "target.float_type=bf16"], "target.float_type=fp16"),
        (["target=webgpu", "target.float_type=bf16"], "target.float_type=fp16"),
        (["target=dml", "target.rotary_in_attention=true"], "target.rotary_in_attention=false"),
        (["target=dml", "target.packed_qkv=true"], "target.packed_qkv=false"),
        (["target=dml", "target.position_ids=false"], "target.position_ids=true"),
        (["target=dml", "quant=rtn", "quant.embedding.bits=4"], "quant.embedding.bits=16"),
        (["target=nvtensorrtrtx", "quant=rtn", "target.embedding_bits=null"],
         "quant.embedding.bits=16"),
        (["target=nvtensorrtrtx", "target.fused_norm=true"], "target.fused_norm=false"),
        (
            ["target=nvtensorrtrtx", "target.quantized_weights=MatMulNBits",
             "quant=rtn"],
            "target.quantized_weights=DequantizeLinear",
        ),
        (
            ["target=nvtensorrtrtx", "quant=rtn", "quant.symmetric=false"],
            "quant.symmetric=true",
        ),
        (
            ["target=nvtensorrtrtx", "quant=rtn", "quant.pad_last_block=true"],
            "quant.pad_last_block=false",
        ),
        (["target.graph_capture=true"], "target.graph_capture=false"),
        (["target.threads=-1"], "target.threads=null"),
        (["target.chunk_size=0"], "target.chunk_size=512"),
    ],
    ids=str,
)  # fmt: skip
def test_an_impossible_combination_names_the_nearest_possible_one(
    words: list[str], remedy: str
) -> None:
    base = ["recipe=internlm2_1_8b_cpu_fp32"]
    with pytest.raises(ConvertError) as caught:
        compose_recipe([*base, *words])
    (problem,) = caught.value.problems
    assert remedy in problem.remedy
    if problem.remedy.startswith("set "):
        changes = problem.remedy.removeprefix("set ").split()
        compose_recipe([*base, *words, *changes])


def test_the_stated_cpu_float_types_are_the_runtimes() -> None:
    operators = ["GroupQueryAttention", "MatMul", "SkipSimplifiedLayerNormalization", "Sigmoid"]
    runs = {name for name in ("fp32", "fp16", "bf16")
            if all(name in cpu_kernels()[op] for op in operators)}  # fmt: skip
    assert runs == set(PROVIDERS["cpu"].float_types)


@pytest.mark.parametrize("provider", list(PROVIDERS))
def test_every_providers_float_types_have_a_possible_recipe(provider: str) -> None:
    forms: dict[str, dict[str, Any]] = {
        "dml": {"packed_qkv": False, "rotary_in_attention": False, "position_ids": True},
        "NvTensorRtRtx": {"fused_norm": False},
    }
    for float_type in float_types(provider):
        values: dict[str, Any] = {"execution_provider": provider, "float_type": float_type}
        target = TargetConfig(**values, **forms.get(provider, {}))
        assert list(target_problems(target, QuantConfig())) == []
