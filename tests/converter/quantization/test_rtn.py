"""Byte for byte against ONNX Runtime's own quantizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from converter.quantization.rtn import BlockFormat, pack, quantize_rtn, unpack

oracle = pytest.importorskip("onnxruntime.capi._pybind_state")


def onnxruntime_quantize(
    rows: torch.Tensor, form: BlockFormat
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count, columns = rows.shape
    blocks = form.blocks(columns)
    codes = np.zeros((count, blocks, form.block_size * form.bits // 8), np.uint8)
    scales = np.zeros(count * blocks, np.float32)
    zero_points = np.zeros((count, form.zero_point_bytes(columns)), np.uint8)
    quantize = getattr(oracle, f"quantize_matmul_{form.bits}bits")
    weight = np.ascontiguousarray(rows.float().numpy().T)
    quantize(codes, weight, scales, zero_points, form.block_size, count, columns, form.symmetric)
    return codes, scales.reshape(count, blocks), zero_points


def nasty_rows(columns: int) -> torch.Tensor:
    """Random rows, and rows that break a careless quantizer."""
    rows = torch.randn(40, columns, generator=torch.Generator().manual_seed(columns))
    steps = torch.arange(columns)
    rows[0] = 0
    rows[1], rows[2] = -rows[1].abs(), rows[2].abs()
    rows[3] = torch.where(steps % 2 == 0, 1.0, -1.0)  # the largest magnitude twice
    rows[4] *= 1e-41  # denormal
    rows[5, 7] = 1e30
    rows[6] = steps % 17 - 8.0
    rows[7] = (steps % 16 - 7.5) * 0.25  # every value half way between two codes
    rows[8] *= 1e-38
    rows[9] = 3e38 * torch.sign(rows[9])
    rows[10] = -0.0
    rows[11] *= 1e-45
    rows[12] = torch.where(steps % 3 == 0, -0.0, 0.0)
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [256, 96, 34, 1000])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_bytes_equal_onnxruntimes(
    bits: int, symmetric: bool, block_size: int, columns: int, dtype: torch.dtype
) -> None:
    form = BlockFormat(bits, block_size, symmetric)
    rows = nasty_rows(columns).to(dtype)
    if dtype == torch.float16:
        rows = rows.nan_to_num(posinf=6e4, neginf=-6e4)
    codes, scales, zero_points = onnxruntime_quantize(rows, form)
    found = quantize_rtn(rows, form)
    assert pack(found.codes, bits).numpy().tobytes() == codes.tobytes()
    assert found.scales.numpy().tobytes() == scales.tobytes()
    if found.zero_points is not None:
        assert pack(found.zero_points, bits).numpy().tobytes() == zero_points.tobytes()


@pytest.mark.parametrize("bits", [4, 8])
def test_unpack_undoes_pack(bits: int) -> None:
    codes = torch.randint(0, 1 << bits, (5, 3, 33), dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes, bits), bits, 33), codes)


def test_dequantized_values_are_within_half_a_step() -> None:
    rows = torch.randn(20, 100)
    for form in (BlockFormat(4, 32, False), BlockFormat(8, 64, True)):
        found = quantize_rtn(rows, form)
        error = (found.dequantize(form)[:, :100] - rows).abs()
        steps = found.scales.abs().repeat_interleave(form.block_size, 1)[:, :100]
        assert bool((error <= steps * (1.01 if form.symmetric else 0.51)).all())
