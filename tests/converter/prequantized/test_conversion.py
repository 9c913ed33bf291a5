"""Whole conversions from quantized folders: every target, what plan, log and lock file say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from families import FAMILIES, random_model, save
from parity import read
from prequantized import FORMATS, quantize_folder
from targets import HALF, IDS, TARGETS, logits, relative_error

from converter.cli.compose import compose_recipe
from converter.cli.explain import explanation
from converter.cli.plan import plan_text
from converter.engine.execution import check, run_recipe
from converter.engine.plan import make_plan
from converter.engine.registry import make_passes
from converter.errors import ConvertError
from converter.graph.quantized_operators import quantized_graph
from converter.graph.source_codes import KEPT, source_facts
from converter.graph.template import build_graph
from converter.model.reference import Reference
from converter.recipe.schema import FloatType

WORDS = ["quant.embedding.block_size=32"]


def source(folder: Path, form: str, family: str = "llama") -> Path:
    save(random_model(FAMILIES[family]), folder / "source")
    quantize_folder(folder / "source", FORMATS[form])
    return folder / "source"


def recipe_of(folder: Path, *words: str) -> Any:
    paths = [f"source.path='{folder}'", f"output='{folder.parent / 'out'}'"]
    return compose_recipe(["recipe=auto", *paths, *WORDS, *words])


def converted(recipe: Any) -> Path:
    return run_recipe(recipe, make_passes(recipe.passes))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["gptq", "awq", "compressed_symmetric", "int8", "nf4_nested"])
def test_a_folder_is_verified_and_says_what_became_of_the_codes(tmp_path: Path, form: str) -> None:
    """verify runs onnxruntime-genai against transformers on the weights that the folder holds."""
    words = ["quant.bits=8", "quant.block_size=16"]
    folder = converted(recipe_of(source(tmp_path, form), *words))
    facts = json.loads((folder / "convert.lock.json").read_text())["facts"]
    ((stored, count),) = facts["layout"]["quantized_source"].items()
    assert count == 7 * 3
    (fates,) = facts["quantize"]["source"].values()
    assert fates == ({KEPT: 5 * 3} if FORMATS[form].kept else fates) and sum(fates.values()) == 15
    assert facts["verify"]["relative_error"] < 1e-3
    assert stored in "\n".join(explanation(folder))


def test_the_plan_names_the_sources_quantization_and_what_is_kept(tmp_path: Path) -> None:
    recipe = recipe_of(source(tmp_path, "gptq"))
    text = plan_text(make_plan(recipe, make_passes(recipe.passes)))
    assert "21 weights quantized: GPTQ (4 bits, groups of 32)" in text
    assert "int4, block 32, asymmetric, kept" in text
    assert "15 of the graph keep their codes and scales" in text
    assert "to be solved" not in text  # 112 columns, which the recipe's blocks do not divide


def test_blocks_that_do_not_divide_are_refused_where_codes_are_not_kept(tmp_path: Path) -> None:
    recipe = recipe_of(source(tmp_path, "gptq"), "quant.source=requantize")
    with pytest.raises(ConvertError, match="down_proj has 112 columns"):
        check(recipe, make_passes(recipe.passes), None)


def test_planned_sizes_are_those_of_the_folder(tmp_path: Path) -> None:
    recipe = recipe_of(source(tmp_path, "gptq"), "verify=none")
    plan = make_plan(recipe, make_passes(recipe.passes))
    folder = converted(recipe)
    for name, size in plan.files.items():
        assert (folder / name).stat().st_size == pytest.approx(size, abs=200), name


def test_float_targets_say_that_the_codes_are_dequantized(tmp_path: Path) -> None:
    recipe = recipe_of(source(tmp_path, "awq"), "quant=none")
    text = plan_text(make_plan(recipe, make_passes(recipe.passes)))
    assert "15 are dequantized: the recipe leaves them in float" in text


def test_a_scheme_that_calibrates_is_refused_unless_it_may_round_again(tmp_path: Path) -> None:
    folder = source(tmp_path, "gptq")
    with pytest.raises(ConvertError) as caught:
        check(recipe_of(folder, "quant=gptq"), make_passes(recipe_of(folder).passes), None)
    (problem,) = [item for item in caught.value.problems if "already quantized" in item.found]
    assert "15 in GPTQ (4 bits, groups of 32)" in problem.found
    assert "quant.source=requantize" in problem.remedy
    words = ["quant=gptq", "quant.source=requantize", "quant.block_size=16"]
    with pytest.raises(ConvertError) as caught:
        check(recipe_of(folder, *words), make_passes(recipe_of(folder).passes), None)
    assert not [item for item in caught.value.problems if "already quantized" in item.found]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["gptq", "gptq_symmetric", "awq_rows", "compressed_int8"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_targets_graph_computes_with_the_kept_codes(
    tmp_path: Path, target: str, form: str
) -> None:
    decoder, described = read(source(tmp_path, form), "llama")
    words = [f"target={target}", "quant=rtn", "quant.bits=8", "quant.block_size=16"]
    words += ["quant.embedding.bits=16", "quant.accuracy_level=1"]
    recipe = replace(compose_recipe(["recipe=auto", *words]), layout=described.layout)
    recipe = replace(recipe, graph=described.graph)
    graph = quantized_graph(build_graph(decoder, recipe), recipe)
    (fates,) = source_facts(recipe, decoder).values()
    takes_zeros = recipe.target.quantized_weights == "MatMulNBits"
    asymmetric = form in ("gptq", "awq_rows")
    assert all(fate.startswith(KEPT) == (takes_zeros or not asymmetric) for fate in fates)
    reference = Reference(decoder, graph.shipped)
    expected = reference.logits(reference.hidden_states(IDS))
    found = logits(graph, tmp_path / "graph")
    assert relative_error(found[0], expected[0]) < 3 * HALF[recipe.target.float_type]


def test_scales_keep_their_type_where_the_graphs_type_holds_it(tmp_path: Path) -> None:
    decoder, recipe = read(source(tmp_path, "compressed_symmetric"), "llama")
    types: list[tuple[FloatType, ir.DataType]] = [
        ("fp32", ir.DataType.BFLOAT16),
        ("fp16", ir.DataType.FLOAT16),
        ("bf16", ir.DataType.BFLOAT16),
    ]
    for float_type, expected in types:
        target = replace(recipe.target, float_type=float_type)
        own = replace(recipe, target=target, quant=replace(recipe.quant, round="rtn"))
        graph = quantized_graph(build_graph(decoder, own), own)
        scales = graph.model.graph.initializers["model.layers.0.mlp.down_proj.MatMul.weight_scales"]
        assert scales.dtype == expected
        (fates,) = source_facts(own, decoder).values()
        rounded = f"{KEPT} with scales rounded to float16"
        assert fates == {rounded if float_type == "fp16" else KEPT: 5 * 3}


def test_the_embeddings_codes_are_kept_once_for_a_tied_head(tmp_path: Path) -> None:
    """As sources with quantized embeddings have them, such as GGUF's."""
    from converter.quantization.coded_weight import CodedWeight

    decoder, recipe = read(source(tmp_path, "gptq", "llama_tied"), "llama")
    table = decoder.weights["embed_tokens"].read()
    rounded, _ = read(source(tmp_path / "other", "gptq", "llama"), "llama")
    codes = rounded.weights["layers.0.gate_proj"]
    assert isinstance(codes, CodedWeight)
    index = torch.arange(len(table)) % codes.shape[0]
    own = codes.permute_rows(index)
    decoder = replace(decoder, weights={**decoder.weights, "embed_tokens": own, "lm_head": own})
    recipe = replace(recipe, quant=replace(recipe.quant, round="rtn", accuracy_level=1))
    graph = quantized_graph(build_graph(decoder, recipe), recipe)
    kinds = [node.op_type for node in graph.model.graph]
    assert kinds.count("GatherBlockQuantized") == 1
    reference = Reference(decoder, graph.shipped)
    expected = reference.logits(reference.hidden_states(IDS))
    assert relative_error(logits(graph, tmp_path / "graph")[0], expected[0]) < 1e-5
    size = (tmp_path / "graph" / "model.onnx.data").stat().st_size
    assert torch.equal(graph.shipped["lm_head"].read(), own.read()) and size
