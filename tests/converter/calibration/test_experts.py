"""What experts are given, against transformers' own router, and what they are rounded by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, random_model, save, token_ids
from parity import read

from converter.calibration.experts import (
    ENOUGH,
    ExpertInputs,
    LayerExperts,
    expert_facts,
    expert_rounding,
)
from converter.model.reference import Reference
from converter.quantization.rtn import BlockFormat
from converter.quantization.search import search_blocks
from converter.weights.weight import TensorWeight

FORM = BlockFormat(4, 16, symmetric=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "qwen2_moe"])
def test_experts_see_what_the_router_gives_them(name: str, tmp_path: Path) -> None:
    model = random_model(FAMILIES[name])
    decoder, _ = read(save(model, tmp_path), FAMILIES[name].architecture)
    experts, ids = decoder.architecture.experts, token_ids()
    assert experts is not None
    given: dict[str, Any] = {}

    def look(_m: Any, args: Any, kwargs: Any) -> None:
        given["hidden"], given["index"] = [*args, *kwargs.values()][:2]

    module = model.model.layers[0].mlp.experts
    module.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        model(ids, use_cache=False)
    reference, seen = Reference(decoder), LayerExperts(experts.count)
    with reference.layer(0) as layer, seen.watching(layer), torch.no_grad():
        reference.run_layer(layer, reference.embed(ids))
    found = seen.matrices["experts_gate_up_proj"]
    hidden = given["hidden"].reshape(-1, given["hidden"].shape[-1])
    for expert in range(experts.count):
        rows = hidden[(given["index"] == expert).any(-1).reshape(-1)]
        assert int(found.tokens[expert]) == len(rows)
        assert torch.allclose(found.squares[expert], rows.square().sum(0), rtol=1e-3, atol=1e-5)
    assert int(found.tokens.sum()) == ids.numel() * experts.per_token
    down = seen.matrices["experts_down_proj"]
    assert torch.equal(down.tokens, found.tokens)
    assert down.squares.shape == (experts.count, experts.intermediate_size)
    assert set(seen.found()) == {"experts_gate_up_proj", "experts_down_proj", "tokens"}


def test_an_expert_with_few_tokens_is_rounded_by_those_of_all() -> None:
    inputs = ExpertInputs(torch.zeros(3, 16), torch.zeros(3, dtype=torch.int64))
    many, few = torch.randn(ENOUGH, 16), torch.randn(ENOUGH - 1, 16)
    inputs.add(0, many)
    inputs.add(2, few)
    whole = many.square().sum(0) + few.square().sum(0)
    assert torch.allclose(inputs.diagonals[0], many.square().sum(0))
    assert torch.allclose(inputs.diagonals[1], whole) and torch.allclose(inputs.diagonals[2], whole)


def test_each_expert_is_rounded_by_its_own_inputs() -> None:
    """Tiles that begin and end inside of experts give the same codes."""
    weight = torch.randn(3 * 8, 32)
    diagonals = torch.rand(3, 32).square() * 10
    codes = expert_rounding(TensorWeight(weight), FORM, diagonals, torch.float32)
    whole = codes(0, 24)
    for expert in range(3):
        rows = slice(8 * expert, 8 * expert + 8)
        own = search_blocks(weight[rows], diagonals[expert], FORM, torch.float32)
        assert torch.equal(whole.codes[rows], own.codes)
    assert torch.equal(codes(5, 19).codes, whole.codes[5:19])
    plain = search_blocks(weight, torch.ones(32), FORM, torch.float32)
    assert not torch.equal(plain.codes, whole.codes)


def test_the_report_says_how_few_tokens_there_were() -> None:
    layers = {
        "layers.0": {"tokens": torch.tensor([ENOUGH, 3, 500])},
        "layers.1": {"tokens": torch.tensor([ENOUGH - 1, ENOUGH, ENOUGH])},
    }
    expected = {"fewest_tokens_of_an_expert": 3, "experts_rounded_by_all_tokens": 2}
    assert expert_facts(layers) == expected
    assert expert_facts({}) == {}
