"""AWQ's search never loses to no search, in its own objective."""

from __future__ import annotations

import pytest
import torch

from converter.quantization.awq import awq_search, kv_channel_groups
from converter.quantization.gptq import hessian_error
from converter.quantization.rtn import BlockFormat, quantize_rtn
from converter.quantization.search import search_blocks

FORM = BlockFormat(4, 32, True)


def _rtn(weight: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
    return quantize_rtn(weight, FORM).dequantize(FORM)[:, : weight.shape[1]]


def _searched(weight: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
    return search_blocks(weight, diagonal, FORM).dequantize(FORM)[:, : weight.shape[1]]


def _inputs(tokens: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    loud = torch.exp(2 * torch.randn(columns, generator=generator))
    return torch.randn(tokens, columns, generator=generator) * loud


@pytest.mark.parametrize("round_weight", [_rtn, _searched])
@pytest.mark.parametrize("columns", [32, 100, 256])
def test_never_loses_to_no_scales(round_weight, columns: int) -> None:  # type: ignore[no-untyped-def]
    inputs = _inputs(400, columns)
    hessian = inputs.t() @ inputs
    weights = [
        torch.randn(n, columns, generator=torch.Generator().manual_seed(n)) for n in (48, 16)
    ]
    found = awq_search(weights, hessian, [round_weight] * 2)
    ratios = []
    for weight in weights:
        plain = hessian_error(weight, round_weight(weight, hessian.diagonal()), hessian)
        scaled = round_weight(weight * found.inputs, hessian.diagonal() / found.inputs**2)
        ratios.append(hessian_error(weight, scaled / found.inputs, hessian) / plain)
    assert found.error == pytest.approx(sum(ratios) / 2, rel=1e-4)
    assert found.error <= 1
    if round_weight is _rtn and columns > 32:
        assert found.error < 0.9


def test_identity_wins_where_scales_do_not_help() -> None:
    # Weights that already lie on the grid are rounded without error, and any scale would move them.
    codes = torch.randint(-8, 8, (16, 64), generator=torch.Generator().manual_seed(1)).float()
    codes[:, ::32] = -8
    inputs = _inputs(200, 64)
    found = awq_search([codes], inputs.t() @ inputs, [_rtn])
    assert found.exponent == 0
    assert torch.equal(found.inputs, torch.ones(64))


def test_dead_inputs_keep_a_scale_of_one() -> None:
    inputs = _inputs(200, 64)
    inputs[:, [3, 40]] = 0
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(2))
    found = awq_search([weight], inputs.t() @ inputs, [_rtn])
    assert found.inputs[3] == found.inputs[40] == 1
    nothing = awq_search([weight], torch.zeros(64, 64), [_rtn])
    assert torch.equal(nothing.inputs, torch.ones(64))


def test_scales_are_shared_by_the_query_heads_of_a_kv_head() -> None:
    groups = kv_channel_groups(num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    inputs = _inputs(300, 64)
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(3))
    found = awq_search([weight], inputs.t() @ inputs, [_rtn], groups=groups)
    per_head = found.inputs.view(2, 2, 16)
    assert torch.equal(per_head[:, 0], per_head[:, 1])
    assert torch.equal(found.producer.view(2, 16), per_head[:, 0])
    assert found.error < 1
