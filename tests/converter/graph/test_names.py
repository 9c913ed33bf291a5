"""Names of the template, which onnxruntime-genai and Olive's passes know too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from converter.graph.names import (
    ATTENTION_MASK,
    EMBEDDING_NODE,
    HEAD_NODE,
    INPUT_IDS,
    LAST_TOKEN,
    LOGITS,
    MATRIX,
    POSITION_IDS,
    is_cache,
    is_of_layer,
    layer_weight,
    matrix_initializer,
    past,
    plain_initializer,
    present,
    product_node,
    product_path,
    quantized,
    residual_nodes,
)

CACHES = [(layer, kind) for layer in range(2) for kind in ("key", "value")]


def test_inputs_and_outputs_are_those_of_onnxruntime_genai(build: Callable[..., Any]) -> None:
    graph = build("target=dml").model.graph
    inputs, outputs = ([value.name for value in side] for side in (graph.inputs, graph.outputs))
    assert inputs[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert inputs[:3] == [INPUT_IDS, ATTENTION_MASK, POSITION_IDS]
    assert inputs[3:] == [past(*item) for item in CACHES]
    assert outputs == [LOGITS, *(present(*item) for item in CACHES)]
    assert (past("%d", "key"), present("%d", "value")) == (
        "past_key_values.%d.key",
        "present.%d.value",
    )


@pytest.mark.parametrize("quant", [False, True])
def test_nodes_have_the_names_that_others_look_for(build: Callable[..., Any], quant: bool) -> None:
    words = ["quant=rtn", "quant.embedding.block_size=32"] if quant else []
    graph = build("graph.last_token_logits=true", *words, until="quantize").model.graph
    known = {node.name: node.metadata_props.get(MATRIX) for node in graph}
    end = "_Q4" if quant else ""
    assert known["/model/embed_tokens/Gather" + end] == "embed_tokens"
    assert known["/lm_head/MatMul" + end] == "lm_head"
    assert known["/model/layers.1/attn/qkv_proj/MatMul" + end] == "layers.1.qkv_proj"
    if quant:
        assert {quantized(EMBEDDING_NODE, 4), quantized(HEAD_NODE, 4)} <= known.keys()
    assert LAST_TOKEN in known and len(known) == len(graph)


@pytest.mark.parametrize("words", [["target=cpu"], ["target=nvtensorrtrtx"]], ids=str)
def test_a_layer_starts_from_one_of_its_residual_nodes(
    build: Callable[..., Any], words: list[str]
) -> None:
    names = {node.name for node in build(*words).model.graph}
    assert len(names & set(residual_nodes(1))) == 1


def test_initializers_are_found_by_the_path_of_their_node(build: Callable[..., Any]) -> None:
    graph = build().model.graph
    multiplied = [node for node in graph if node.op_type == "MatMul"]
    for node in multiplied:
        path = product_path(node.name)
        assert node.name == product_node(path) != path
        assert node.inputs[1] is graph.initializers[matrix_initializer(path)]
    for canonical in ("norm", "embed_tokens", "layers.1.input_layernorm"):
        assert plain_initializer(canonical) in graph.initializers
    assert len(multiplied) == 5 * 2 + 1


def test_what_belongs_to_a_layer_is_told_from_what_does_not() -> None:
    name = layer_weight(1, "attn.k_scale")
    assert is_of_layer(name, 1) and not is_of_layer(name, 11)
    assert not is_of_layer(layer_weight(11, "attn.k_scale"), 1)
    assert not is_of_layer(plain_initializer("embed_tokens"), 1)


def test_caches_are_told_from_other_values() -> None:
    assert is_cache(past(3, "key")) and is_cache(present(12, "value"))
    assert not any(map(is_cache, (None, INPUT_IDS, LOGITS, "presented", "past_key_values")))
