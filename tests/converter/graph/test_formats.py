"""Formats and sizes told from shapes, against the graphs that come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from converter.errors import ConvertError
from converter.graph.formats import (
    CANDIDATES,
    budget_problems,
    candidate_formats,
    choose_mixed,
    indivisible,
    quantized_bytes,
    size_budget,
    tied_format,
)
from converter.graph.matrices import graph_matrices, matrix_format
from converter.graph.tensors import model_weights
from converter.quantization.rtn import BlockFormat
from converter.weights.placement import storage_key

RTN = ["quant=rtn", "quant.embedding.block_size=32"]
MIXED = ["quant=gptq", "quant.embedding.block_size=32", "evaluate=none"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        RTN,
        [*RTN, "quant.symmetric=false"],
        [*RTN, "quant.bits=8", "quant.lm_head.bits=4"],
        [*RTN, "quant.lm_head.bits=8"],
        [*RTN, "quant.scale_type=fp16"],
        [*RTN, "quant.embedding.bits=16"],
        [*RTN, "target=cuda"],
        [*RTN, "target=nvtensorrtrtx"],
        [*RTN, "target=dml"],
        [*RTN, "quant.block_size=128", "quant.pad_last_block=true"],
    ],
    ids=" ".join,
)
def test_bytes_are_those_of_the_graphs_weights(
    build: Callable[..., Any], make_recipe: Callable[..., Any], words: list[str], tied: bool
) -> None:
    if {"target=dml", "target=nvtensorrtrtx"} & set(words):
        words = [*words, "quant.embedding.bits=16"]
    graph = build(*words, until="quantize", tie_word_embeddings=tied)
    recipe = make_recipe(*words, tie_word_embeddings=tied)
    weights = {n: w for n, w in model_weights(graph.model).items() if not n.endswith("_cache")}
    stored = {storage_key(weight): weight.nbytes for weight in weights.values()}  # each once
    assert quantized_bytes(recipe, graph.decoder) == sum(stored.values())


@pytest.mark.parametrize(
    ("words", "tied", "expected"),
    [
        ([], True, BlockFormat(4, 32, True)),
        (["quant.lm_head.bits=8"], True, BlockFormat(8, 32, True)),
        (["quant.embedding.bits=16"], True, None),
        (["quant.lm_head.bits=16"], True, None),
        ([], False, None),
    ],
    ids=str,
)
def test_a_tied_embedding_takes_the_heads_format(
    build: Callable[..., Any],
    make_recipe: Callable[..., Any],
    words: list[str],
    tied: bool,
    expected: BlockFormat | None,
) -> None:
    recipe = make_recipe(*RTN, *words)
    decoder = build(tie_word_embeddings=tied).decoder
    assert tied_format(recipe.quant, decoder, matrix_format("lm_head", recipe.quant)) == expected


def test_a_head_with_padded_blocks_leaves_the_embedding_its_own(
    build: Callable[..., Any], make_recipe: Callable[..., Any]
) -> None:
    decoder = build(tie_word_embeddings=True).decoder
    quant = make_recipe(*RTN).quant
    assert tied_format(quant, decoder, BlockFormat(4, 128, True)) is None


def test_candidates_obey_the_recipe(
    build: Callable[..., Any], make_recipe: Callable[..., Any]
) -> None:
    decoder = build().decoder

    def found(name: str, *words: str) -> list[BlockFormat]:
        recipe = make_recipe(*MIXED, "quant.bits_per_weight=5", *words)
        matrices = {matrix.name: matrix for matrix in graph_matrices(recipe, decoder)}
        return candidate_formats(matrices[name], recipe.quant)

    fitting = [form for form in CANDIDATES if form.block_size <= 64]
    assert found("layers.0.qkv_proj", "quant.symmetric=false") == fitting
    assert found("layers.0.qkv_proj") == [form for form in fitting if form.symmetric]
    assert {form.block_size for form in found("layers.0.down_proj")} == {32}  # 96 columns
    padded = found("layers.0.down_proj", "quant.pad_last_block=true")
    assert {form.block_size for form in padded} == {32, 64, 128}
    assert found("lm_head", "quant.lm_head.bits=8") == [BlockFormat(8, 32, True)]
    assert found("lm_head", "quant.lm_head.bits=16") == []


@pytest.mark.parametrize(("bits", "fours"), [(4.6, True), (6, True), (8.4, False)])
def test_a_choice_takes_no_more_than_the_budget(
    build: Callable[..., Any], make_recipe: Callable[..., Any], bits: float, fours: bool
) -> None:
    decoder = build().decoder
    recipe = make_recipe(*MIXED, f"quant.bits_per_weight={bits}")
    matrices = graph_matrices(recipe, decoder)
    losses = {
        matrix.name: [2.0**-form.bits for form in candidate_formats(matrix, recipe.quant)]
        for matrix in matrices
    }
    chosen = choose_mixed(recipe, decoder, losses)
    spent = sum(
        m.rows * chosen[m.name].row_bytes(m.columns)
        + 2 * m.rows * chosen[m.name].blocks(m.columns)  # fp16 scales
        for m in matrices
    )
    budget = size_budget(recipe, decoder)
    assert budget.least <= spent <= budget.matrices
    assert any(form.bits == 4 for form in chosen.values()) is fours


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["quant.bits_per_weight=4.01"], "quant.bits_per_weight"),
        (["quant.target_size=1kB"], "quant.target_size"),
    ],
)
def test_the_remedy_of_a_budget_that_is_too_small_can_be_reached(
    build: Callable[..., Any], make_recipe: Callable[..., Any], words: list[str], key: str
) -> None:
    decoder = build().decoder
    recipe = make_recipe(*MIXED, *words)
    (problem,) = budget_problems(recipe, decoder)
    assert key in problem.found
    with pytest.raises(ConvertError):
        choose_mixed(recipe, decoder, {})
    word = problem.remedy.removeprefix("set ").removesuffix(" or more")
    assert list(budget_problems(make_recipe(*MIXED, word), decoder)) == []


@pytest.mark.parametrize(
    ("words", "remedies"),
    [
        (["quant.block_size=64"], {"set quant.block_size=32"}),
        (["quant.block_size=64", "quant.pad_last_block=true"], set()),
        (["quant.embedding.block_size=128"], {"set quant.embedding.block_size=64"}),
        (["quant.lm_head.block_size=128"], {"set quant.lm_head.block_size=64"}),
    ],
)
def test_blocks_that_do_not_divide_are_named_with_one_that_does(
    build: Callable[..., Any],
    make_recipe: Callable[..., Any],
    words: list[str],
    remedies: set[str],
) -> None:
    quant = make_recipe(*RTN, *words).quant
    arch = build().decoder.architecture
    assert {problem.remedy for problem in indivisible(quant, arch)} == remedies


def test_a_budget_refuses_a_matrix_that_none_of_its_formats_fits(
    build: Callable[..., Any], make_recipe: Callable[..., Any]
) -> None:
    """112 columns: a matrix without a format would have been rounded outside of the budget."""
    arch = replace(build().decoder.architecture, intermediate_size=112)
    found = list(indivisible(make_recipe(*MIXED).quant, arch, check_layers=False))
    assert [problem.found.split()[0] for problem in found] == ["down_proj"]
    assert found[0].remedy == "set quant.pad_last_block=true"
    padded = make_recipe(*MIXED, "quant.pad_last_block=true").quant
    assert list(indivisible(padded, arch, check_layers=False)) == []
