"""MXFP4 against transformers' own reader of it."""

from __future__ import annotations

import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from converter.weights.mxfp4 import Mxfp4Weight
from converter.weights.weight import TensorWeight


def packed(
    rows: int, count: int, low: int = 90, high: int = 140
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (rows, count, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(low, high, (rows, count), generator=generator, dtype=torch.uint8)
    return blocks, scales


def test_every_value_is_transformers() -> None:
    blocks, scales = packed(40, 3)
    found = Mxfp4Weight(TensorWeight(blocks), TensorWeight(scales))
    expected = convert_moe_packed_tensors(blocks[None], scales[None])[0].T  # it transposes
    assert found.shape == (40, 96)
    assert torch.equal(found.read(), expected)
    assert torch.equal(found.rows(7, 21), expected[7:21])


def test_codes_and_scales_that_can_be_checked_by_hand() -> None:
    blocks = torch.zeros(1, 1, 16, dtype=torch.uint8)
    blocks[0, 0, :3] = torch.tensor([0x21, 0xF7, 0x8B])  # the lower bits come first
    found = Mxfp4Weight(TensorWeight(blocks), TensorWeight(torch.tensor([[128]]).byte())).read()
    assert found[0, :7].tolist() == [1.0, 2.0, 12.0, -12.0, -3.0, -0.0, 0.0]


def test_a_scale_of_255_is_not_a_number() -> None:
    blocks, scales = packed(1, 2)
    scales[0, 1] = 255
    found = Mxfp4Weight(TensorWeight(blocks), TensorWeight(scales)).read()
    assert torch.isfinite(found[0, :32]).all()
    assert torch.isnan(found[0, 32:]).all()
