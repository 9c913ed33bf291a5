"""What is refused before the work, and that what it advises is accepted."""

from __future__ import annotations

import re

import pytest
from expert_models import SMALL_BLOCKS, decoder_of, graph_of, recipe_of

from converter.graph.expert_kernels import expert_problems
from converter.graph.kernels import missing_kernels, sink_problems

REFUSED: dict[str, tuple[str, list[str], str]] = {
    "webgpu in float": ("mixtral", ["target=webgpu"], "no kernel of MoE in fp16"),
    "dml in float": ("mixtral", ["target=dml"], "dml has no kernel of MoE in fp16"),
    "dml": ("mixtral", ["export=dml_int4"], "dml has no kernel of QMoE in fp16"),
    "tensorrt": ("mixtral", ["export=nvtensorrtrtx_int4"], "has no kernel of QMoE in fp16"),
    "webgpu, zero points": (
        "mixtral",
        ["export=webgpu_int4", "quant.symmetric=false"],
        "zero points, which QMoE does not take on webgpu",
    ),
    "webgpu, not normalized": ("olmoe", ["export=webgpu_int4"], "do not add up to 1"),
    "8 bits": ("mixtral", ["export=cpu_int8"], "experts of 8 bits"),
    "8 bits for experts": (
        "mixtral",
        ["export=cpu_int4", "quant.experts.bits=8"],
        "experts of 8 bits",
    ),
}
RUN: dict[str, tuple[str, list[str]]] = {
    "cpu": ("mixtral", ["export=cpu_int4"]),
    "cpu in half": ("mixtral", ["target.float_type=fp16"]),
    "cuda": ("olmoe", ["export=cuda_int4"]),
    "cuda in float": ("olmoe", ["export=cuda_bf16"]),
    "webgpu": ("gpt_oss", ["export=webgpu_int4"]),
    "8 bits, experts in float": ("mixtral", ["export=cpu_int8", "quant.experts.bits=16"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_provider_does_not_compute_is_refused(case: str) -> None:
    name, words, found = REFUSED[case]
    recipe, arch = recipe_of(name, *words, *SMALL_BLOCKS), decoder_of(name).architecture
    (problem,) = expert_problems(recipe, arch)
    assert found in problem.found
    advised = re.findall(r"(?:set |or )((?:quant|target)\.[\w.]+=\w+)", problem.remedy)
    exports = re.findall(r"export=\w+", problem.remedy)
    assert advised or exports
    quant = ["quant=rtn"] if "quant=rtn" in problem.remedy else []
    for word in advised:
        again = recipe_of(name, *words, *quant, *SMALL_BLOCKS, word)
        assert list(expert_problems(again, arch)) == []
    for word in exports:
        assert list(expert_problems(recipe_of(name, word, *SMALL_BLOCKS), arch)) == []


@pytest.mark.parametrize("case", RUN)
def test_what_is_not_refused_has_kernels(case: str) -> None:
    name, words = RUN[case]
    recipe = recipe_of(name, *words, *SMALL_BLOCKS)
    assert list(expert_problems(recipe, decoder_of(name).architecture)) == []
    graph, target = graph_of(name, *words, *SMALL_BLOCKS), recipe.target
    missing = missing_kernels(graph.model, target.execution_provider, target.float_type)
    assert list(missing) == []


def test_a_model_without_experts_is_no_business_of_these_rules() -> None:
    recipe = recipe_of("qwen3", "export=dml_int4", *SMALL_BLOCKS)
    assert list(expert_problems(recipe, decoder_of("qwen3").architecture)) == []


@pytest.mark.parametrize(
    ("provider", "count"),
    [("cpu", 0), ("cuda", 0), ("webgpu", 0), ("dml", 1), ("NvTensorRtRtx", 1)],
)
def test_sinks_are_refused_where_attention_does_not_take_them(provider: str, count: int) -> None:
    problems = list(sink_problems(decoder_of("gpt_oss"), provider))
    assert len(problems) == count
    assert all(f"{provider}'s GroupQueryAttention" in problem.found for problem in problems)
    assert list(sink_problems(decoder_of("mixtral"), provider)) == []
