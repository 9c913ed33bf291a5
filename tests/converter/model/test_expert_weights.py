"""The decoder's matrices of experts against transformers' parameters, and the way back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from descriptions import described
from expert_models import decoder_of, saved
from families import FAMILIES, random_model

from converter.errors import ConvertError
from converter.model.decoder import build_decoder, published_weights
from converter.model.tensor_kinds import EXPERTS_DOWN, EXPERTS_GATE_UP

NAMES = ["mixtral", "qwen3_moe", "olmoe", "qwen2_moe", "granite_moe", "gpt_oss"]


def own(name: str, part: str) -> torch.Tensor:
    """transformers' parameter of layer 1, stacked."""
    found = [
        p for n, p in random_model(FAMILIES[name]).named_parameters() if n.endswith(f"1.{part}")
    ]
    assert len(found) == 1
    stack: torch.Tensor = found[0].data
    return stack


def part_of(name: str) -> str:
    return "block_sparse_moe.experts" if name.startswith("granite") else "mlp.experts"


@pytest.mark.parametrize("name", NAMES)
def test_gate_and_up_take_turns(name: str) -> None:
    stack = own(name, f"{part_of(name)}.gate_up_proj")
    if name == "gpt_oss":  # it takes turns already, transposed; its bias has another name
        stack = stack.transpose(1, 2)
        gate, up = stack[:, 0::2], stack[:, 1::2]
    else:
        gate, up = stack.chunk(2, dim=1)
    expected = torch.stack([gate, up], dim=2).flatten(0, 2)
    found = decoder_of(name).weights[f"layers.1.{EXPERTS_GATE_UP}"]
    assert torch.equal(found.read(), expected)
    assert torch.equal(found.rows(101, 333), expected[101:333])


@pytest.mark.parametrize("name", NAMES)
def test_the_experts_follow_each_other(name: str) -> None:
    stack = own(name, f"{part_of(name)}.down_proj")
    expected = stack.transpose(1, 2) if name == "gpt_oss" else stack
    found = decoder_of(name).weights[f"layers.1.{EXPERTS_DOWN}"].read()
    assert torch.equal(found, expected.flatten(0, 1))


@pytest.mark.parametrize("name", [*NAMES, "granite_moe_shared", "qwen3_moe_some_dense"])
def test_what_was_read_goes_back_to_its_place(name: str) -> None:
    decoder = decoder_of(name)
    back, tensors = published_weights(decoder, decoder.weights), decoder.checkpoint.tensors
    assert back.keys() == tensors.keys()
    for key, weight in back.items():
        assert torch.equal(weight.read(), tensors[key].read()), key


def changed(name: str, **layout: Any) -> None:
    decoder, recipe = decoder_of(name), described(FAMILIES[name].architecture)
    named = recipe.layout.layer_tensors | layout.pop("layer_tensors", {})
    wrong = replace(recipe.layout, layer_tensors=named, **layout)
    build_decoder(decoder.checkpoint, wrong, decoder.architecture)


@pytest.mark.parametrize(
    ("layout", "found"),
    [
        ({"row_order": {"expert_gate_up_proj": "up first"}}, "is 'up first'"),
        ({"transposed": ["down_proj"]}, "layout.transposed names 'down_proj'"),
        ({"layer_tensors": {"router": None}}, "does not name router"),
        ({"layer_tensors": {"expert_down_proj": None}}, "does not name expert_down_proj"),
        ({"layer_tensors": {"expert_gate_up_proj": None}}, "does not name expert_gate_proj"),
        (
            {"layer_tensors": {"shared_down_proj": "shared_mlp.output_linear"}},
            "does not name shared_gate_proj: shared_down_proj is named",
        ),
        ({"layer_tensors": {"experts_down": "x"}}, "'experts_down', which is no tensor"),
    ],
    ids=str,
)
def test_a_description_that_cannot_be_is_refused(layout: dict[str, Any], found: str) -> None:
    if "router" in layout.get("layer_tensors", {}):
        recipe = described("granite_moe")
        named = recipe.layout.layer_tensors | {"router": None}
        decoder = decoder_of("granite_moe")
        arch = replace(decoder.architecture, experts=None)
        with pytest.raises(ConvertError) as caught:
            layout_of = replace(recipe.layout, layer_tensors=named)
            build_decoder(decoder.checkpoint, layout_of, arch)
    else:
        with pytest.raises(ConvertError) as caught:
            changed("granite_moe", **layout)
    assert found in str(caught.value)


def test_the_checkpoints_are_what_transformers_writes_today() -> None:
    """Both forms are tested: a tensor for each expert, and stacks."""
    mixtral, granite = (decoder_of(n).checkpoint.tensors for n in ("mixtral", "granite_moe"))
    assert "model.layers.0.block_sparse_moe.experts.0.w1.weight" in mixtral
    assert len(granite["model.layers.0.block_sparse_moe.input_linear.weight"].shape) == 3
    assert saved("gpt_oss").is_dir()
