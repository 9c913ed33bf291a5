"""The list of matrices against the graph that holds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from converter.graph.matrices import (
    graph_matrices,
    matrix_format,
    matrix_parts,
    matrix_weight,
    split_rows,
)
from converter.graph.names import MATRIX, matrix_initializer, product_path
from converter.quantization.rtn import BlockFormat


@pytest.mark.parametrize(
    "words",
    [
        ["target=cpu"],
        ["target=cpu", "target.packed_gate_up=true"],
        ["target=dml"],
        ["target=webgpu", "target.packed_gate_up=true"],
        ["target=nvtensorrtrtx"],
    ],
    ids=str,
)
def test_matrices_are_those_of_the_graph_in_its_order(
    build: Callable[..., Any], make_recipe: Callable[..., Any], words: list[str]
) -> None:
    graph = build(*words)
    recipe = make_recipe(*words)
    nodes = {node.metadata_props.get(MATRIX): node for node in graph.model.graph}
    found = graph_matrices(recipe, graph.decoder)
    assert [matrix.name for matrix in found] == [
        name for name in nodes if name not in (None, "embed_tokens")
    ]
    for matrix in found:
        stored = graph.model.graph.initializers[
            matrix_initializer(product_path(nodes[matrix.name].name))
        ]
        assert stored.shape == (matrix.columns, matrix.rows)
        source = matrix_weight(matrix.name, graph.decoder)
        assert source.shape == (matrix.rows, matrix.columns)
        rounded = source.cast(stored.const_value.weight.dtype).read()
        assert torch.equal(stored.const_value.weight.read(), rounded.T)


@pytest.mark.parametrize("matrix", ["layers.1.qkv_proj", "layers.0.gate_up_proj", "lm_head"])
def test_splitting_rows_undoes_stacking_them(build: Callable[..., Any], matrix: str) -> None:
    decoder = build().decoder
    parts = split_rows(matrix, matrix_weight(matrix, decoder), decoder)
    assert tuple(parts) == matrix_parts(matrix)
    for name, weight in parts.items():
        assert torch.equal(weight.read(), decoder.weights[name].read())


@pytest.mark.parametrize(("bits", "embeds"), [(4, True), (16, False)])
def test_a_tied_head_embeds_only_where_the_embedding_is_quantized(
    build: Callable[..., Any], make_recipe: Callable[..., Any], bits: int, embeds: bool
) -> None:
    words = ["quant=rtn", f"quant.embedding.bits={bits}", "quant.embedding.block_size=32"]
    for tied in (False, True):
        decoder = build(tie_word_embeddings=tied).decoder
        head = graph_matrices(make_recipe(*words, tie_word_embeddings=tied), decoder)[-1]
        assert (head.name, head.embeds) == ("lm_head", tied and embeds)


@pytest.mark.parametrize(
    ("words", "matrix", "expected"),
    [
        ([], "layers.0.q_proj", BlockFormat(4, 32, True)),
        (["quant.bits=8", "quant.symmetric=false"], "lm_head", BlockFormat(8, 32, False)),
        (["quant.lm_head.bits=8"], "lm_head", BlockFormat(8, 32, True)),
        (["quant.lm_head.bits=8"], "layers.0.down_proj", BlockFormat(4, 32, True)),
        (["quant.lm_head.bits=16"], "lm_head", None),
        (["quant.lm_head.symmetric=false"], "lm_head", BlockFormat(4, 32, False)),
        (["quant.embedding.block_size=16"], "embed_tokens", BlockFormat(4, 16, True)),
        (["quant.embedding.bits=16"], "embed_tokens", None),
    ],
    ids=str,
)
def test_a_matrix_has_its_own_format_or_that_of_all(
    make_recipe: Callable[..., Any], words: list[str], matrix: str, expected: BlockFormat | None
) -> None:
    assert matrix_format(matrix, make_recipe("quant=rtn", *words).quant) == expected
