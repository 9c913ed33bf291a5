"""Checkpoints that the formats' own libraries pack, against what the libraries read out of them.

transformers is always there. The others are not among the suite's packages: a test runs where
`pip install compressed-tensors bitsandbytes gptqmodel` has put its library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from converter.prequantized.source import open_quantized
from converter.quantization.coded_weight import CodedWeight, StoredWeight
from converter.weights.weight import TensorWeight

ROWS, COLUMNS, GROUP = 96, 128, 32
Settings = Mapping[str, Any]


def opened(section: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> StoredWeight:
    """What the project makes of one linear named `m`."""
    held = {f"m.{end}": TensorWeight(torch.atleast_1d(x), end) for end, x in tensors.items()}
    found = open_quantized({"quantization_config": section}, held, {"m.weight": (ROWS, COLUMNS)})
    assert not found.problems and set(found.weights) == {"m.weight"}
    weight = found.weights["m.weight"]
    assert isinstance(weight, StoredWeight)
    return weight


def values(seed: int = 0) -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))


def scaled(group: int, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales (rows, groups) and zero points of random values' ranges, in float32."""
    blocks = values().reshape(ROWS, -1, group)
    low, high = blocks.amin(2), blocks.amax(2)
    scales = ((high - low) / ((1 << bits) - 1)).half().float()
    return scales, (-low / scales).round().clamp(1, (1 << bits) - 1)


@pytest.mark.parametrize("tile", [(32, 64), (1, COLUMNS), (ROWS, COLUMNS)])
def test_fp8_as_transformers_dequantizes_it(tile: tuple[int, int]) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    stored = values().to(torch.float8_e4m3fn)
    scales = torch.rand(ROWS // tile[0], COLUMNS // tile[1]) + 0.5
    found = opened(
        {"quant_method": "fp8", "weight_block_size": [*tile]},
        {"weight": stored, "weight_scale_inv": scales},
    )
    expected = Fp8Dequantize(None)._dequantize_one(stored, scales)
    assert torch.equal(found.read(), expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors(bits: int, symmetric: bool) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    arguments = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group",
        "group_size": GROUP,
    }
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**arguments))
    scales, zeros = scaled(GROUP, bits)
    middle = 1 << (bits - 1)
    state = {"weight": values(), "weight_scale": scales}
    state["weight_zero_point"] = (zeros - middle).to(torch.int8)
    if symmetric:
        state["weight_zero_point"] = torch.zeros_like(state["weight_zero_point"])
    packed = PackedQuantizationCompressor.compress(state, scheme)
    expected = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
    section = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": arguments}},
    }
    found = opened(section, packed)
    assert isinstance(found, CodedWeight) and found.form.symmetric == symmetric
    assert torch.equal(found.read(), expected)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_in_4_bits(kind: str, nested: bool) -> None:
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(values(), quant_type=kind, compress_statistics=nested)
    expected = dequantize_4bit(packed, state)
    tensors = {"weight": packed, **{f"weight.{k}": v for k, v in _packed_state(state).items()}}
    found = opened({"quant_method": "bitsandbytes", "load_in_4bit": True}, tensors)
    torch.testing.assert_close(found.read(), expected, rtol=1e-6, atol=1e-7)


def _packed_state(state: Any) -> dict[str, torch.Tensor]:
    found = state.as_dict(packed=True)
    return {name.removeprefix("weight."): value for name, value in found.items()}


def test_bitsandbytes_in_8_bits() -> None:
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    codes, scales, _ = int8_vectorwise_quant(values().half())
    found = opened(
        {"quant_method": "bitsandbytes", "load_in_8bit": True}, {"weight": codes, "SCB": scales}
    )
    assert isinstance(found, CodedWeight)
    assert torch.equal(unpacked_codes(found), codes.int() + 128)
    expected = int8_vectorwise_dequant(codes, scales)
    torch.testing.assert_close(found.read(), expected.float(), rtol=1e-6, atol=1e-8)


def unpacked_codes(weight: CodedWeight) -> torch.Tensor:
    """int32 (rows, columns)."""
    codes = weight.packed(0, weight.shape[0]).codes.flatten(1).int()
    if weight.form.bits == 8:
        return codes
    return torch.stack((codes & 15, codes >> 4), 2).flatten(1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("v2", [False, True])
def test_gptqmodels_linear(bits: int, order: bool, v2: bool) -> None:
    pytest.importorskip("gptqmodel")
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import (
        convert_gptq_v1_to_v2_format_module,
        convert_gptq_v2_to_v1_format_module,
    )

    module = TorchLinear(bits, GROUP, False, order, COLUMNS, ROWS, bias=False)
    linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    groups = torch.arange(COLUMNS) // GROUP
    groups = groups[torch.randperm(COLUMNS)] if order else groups
    scales, zeros = scaled(GROUP, bits)
    zeros[0, 0] = 0  # whose minus one borrows from the neighbours
    codes = (values() / scales[:, groups] + zeros[:, groups]).round().clamp(0, (1 << bits) - 1)
    linear.weight.data = (codes - zeros[:, groups]) * scales[:, groups]
    module.pack_original(linear, scales, zeros, groups.int())
    module.post_init()
    expected = module.dequantize_weight().T.float()
    if not v2:
        convert_gptq_v2_to_v1_format_module(module, _configured(bits))
    section = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": GROUP,
        "desc_act": order,
        "sym": False,
        "checkpoint_format": "gptq_v2" if v2 else "gptq",
    }
    ends = ("qweight", "qzeros", "scales", "g_idx")
    found = opened(section, {end: getattr(module, end).clone() for end in ends})
    if not v2:
        convert_gptq_v1_to_v2_format_module(module, bits, torch.int32)
    assert isinstance(found, CodedWeight) == (not order)
    # The library multiplies in float16.
    torch.testing.assert_close(found.read().half().float(), expected, rtol=1e-3, atol=1e-6)
    if isinstance(found, CodedWeight):
        assert torch.equal(unpacked_codes(found), codes.int())


def _configured(bits: int) -> Any:
    from gptqmodel.quantization import QuantizeConfig

    return QuantizeConfig(bits=bits, group_size=GROUP)


def test_gptqmodels_awq_linear() -> None:
    pytest.importorskip("gptqmodel")
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    module = AwqTorchLinear(4, GROUP, False, False, COLUMNS, ROWS, bias=False)
    linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    groups = torch.arange(COLUMNS) // GROUP
    scales, zeros = scaled(GROUP, 4)
    codes = (values() / scales[:, groups] + zeros[:, groups]).round().clamp(0, 15)
    linear.weight.data = (codes - zeros[:, groups]) * scales[:, groups]
    module.pack(linear, scales, zeros)
    section = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    tensors = {end: getattr(module, end).clone() for end in ("qweight", "qzeros", "scales")}
    found = opened(section, tensors)
    assert isinstance(found, CodedWeight)
    assert torch.equal(unpacked_codes(found), codes.int())
    expected = dequantize_gemm(*(tensors[end] for end in ("qweight", "qzeros", "scales")), 4, GROUP)
    torch.testing.assert_close(found.read(), expected.T.float(), rtol=1e-3, atol=1e-6)
