"""Values and codes of every type, against the library's own arithmetic."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_files import QUANTIZABLE, write_gguf
from numpy.typing import NDArray

from converter.errors import ConvertError
from converter.gguf.header import read_header
from converter.gguf.stacked import StackedWeight
from converter.gguf.weights import KEPT, PLAIN, open_tensors
from converter.quantization.coded_weight import CodedWeight, StoredWeight, unpacked
from converter.weights.safetensors_file import OpenFile
from converter.weights.weight import TensorWeight, Weight

ROWS, COLUMNS = 12, 512


def has_arithmetic(kind: Kind) -> bool:
    try:
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


PACKED = [kind for kind in Kind if kind.name not in PLAIN]
BLOCKS = [kind.name for kind in PACKED if has_arithmetic(kind)]
UNKNOWN = [kind.name for kind in PACKED if not has_arithmetic(kind)]
"""Types of activations, and those that the library only names."""


def test_the_library_knows_the_types_of_models() -> None:
    assert {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_XS", "IQ2_XXS", "MXFP4"} < set(BLOCKS)
    assert {"Q8_1", "Q8_K"} <= set(UNKNOWN)


def opened(path: Path) -> Weight:
    header = read_header(path)
    return open_tensors({path.name: header})["a"]


def write_blocks(path: Path, kind: Kind, rows: int = ROWS) -> NDArray[np.uint8]:
    """Random blocks of any type, with scales that are numbers, as a tensor (rows, COLUMNS)."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(int(kind))
    content = generator.integers(0, 256, (rows, COLUMNS // block * size), np.uint8)
    # float16 infinities and NaN have all exponent bits; clearing one in every byte leaves numbers
    content &= 0xBF
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("a", content, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return content


@pytest.mark.parametrize("kind", QUANTIZABLE)
def test_quantized_values_are_the_librarys(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(1).normal(size=(ROWS, 64)).astype(np.float32)
    weight = opened(write_gguf(tmp_path / "a.gguf", "llama", {}, {"a": values}, kind))
    packed = gguf.quants.quantize(values, Kind[kind])
    expected = gguf.quants.dequantize(packed, Kind[kind])
    assert weight.shape == (ROWS, 64)
    assert np.array_equal(weight.read().float().numpy(), expected)


@pytest.mark.parametrize("kind", BLOCKS)
def test_any_rows_in_any_order_are_the_librarys(tmp_path: Path, kind: str) -> None:
    content = write_blocks(tmp_path / "a.gguf", Kind[kind])
    weight = opened(tmp_path / "a.gguf")
    assert isinstance(weight, StoredWeight) and weight.stored == f"GGUF {kind}"
    expected = torch.from_numpy(gguf.quants.dequantize(content, Kind[kind]))
    order = torch.tensor([7, 6, 11, 0, 3, 4, 5])
    assert weight.shape == expected.shape and weight.dtype == torch.float32
    assert torch.equal(weight.read(), expected)
    assert torch.equal(weight.rows(5, 9), expected[5:9])
    assert torch.equal(weight.permute_rows(order).rows(1, 6), expected[order[1:6]])


@pytest.mark.parametrize("kind", KEPT)
def test_kept_codes_mean_the_same_values_to_the_bit(tmp_path: Path, kind: str) -> None:
    content = write_blocks(tmp_path / "a.gguf", Kind[kind])
    weight = opened(tmp_path / "a.gguf")
    assert isinstance(weight, CodedWeight)
    packed = weight.packed(2, 9)
    assert packed.scales.dtype == torch.float16 and packed.zero_points is None
    assert packed.codes.shape == (7, COLUMNS // 32, 32 * weight.form.bits // 8)
    codes = unpacked(packed, weight.form)
    values = (codes.codes.float() - 2 ** (weight.form.bits - 1)) * codes.scales.unsqueeze(2)
    expected = gguf.quants.dequantize(content, Kind[kind])[2:9]
    assert np.array_equal(values.flatten(1).numpy(), expected)


@pytest.mark.parametrize("kind", sorted(set(BLOCKS) - set(KEPT)))
def test_what_matmulnbits_cannot_hold_says_why(tmp_path: Path, kind: str) -> None:
    write_blocks(tmp_path / "a.gguf", Kind[kind])
    weight = opened(tmp_path / "a.gguf")
    assert isinstance(weight, StoredWeight) and not isinstance(weight, CodedWeight)
    assert kind in weight.obstacle


@pytest.mark.parametrize("kind", UNKNOWN)
def test_types_without_arithmetic_are_refused(tmp_path: Path, kind: str) -> None:
    write_blocks(tmp_path / "a.gguf", Kind[kind])
    with pytest.raises(ConvertError, match=rf"{kind}, which nothing dequantizes"):
        opened(tmp_path / "a.gguf")


def test_float64_comes_as_float32_and_integers_as_they_are(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("a", np.array([[0.1, 2.0]], np.float64))
    writer.add_tensor("b", np.array([[1, 2]], np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = open_tensors({"a": read_header(tmp_path / "a.gguf")})
    assert torch.equal(tensors["a"].read(), torch.tensor([[0.1, 2.0]]))
    assert tensors["b"].dtype == torch.int32 and tensors["b"].read().tolist() == [[1, 2]]


def test_only_the_bytes_of_the_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_blocks(tmp_path / "a.gguf", Kind.Q4_K, rows=1000)
    weight = opened(tmp_path / "a.gguf")
    read: list[int] = []
    original = OpenFile.read

    def counted(self: OpenFile, offset: int, buffer: memoryview) -> None:
        read.append(len(buffer))
        original(self, offset, buffer)

    monkeypatch.setattr(OpenFile, "read", counted)
    weight.rows(500, 510)
    assert sum(read) == 10 * COLUMNS // 256 * 144


def test_stacked_parts_are_themselves_again(tmp_path: Path) -> None:
    paths = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    kinds = (Kind.Q4_0, Kind.Q6_K)
    contents = [write_blocks(path, kind) for path, kind in zip(paths, kinds, strict=True)]
    parts = [opened(path) for path in paths]
    expected = torch.cat(
        [
            torch.from_numpy(gguf.quants.dequantize(content, kind))
            for content, kind in zip(contents, kinds, strict=True)
        ]
    )
    order = torch.randperm(2 * ROWS, generator=torch.Generator().manual_seed(1))
    stacked = StackedWeight(parts).permute_rows(order)
    assert torch.equal(stacked.rows(3, 17), expected[order[3:17]])
    inverse = torch.argsort(order)
    upper, lower = stacked.permute_rows(inverse[:ROWS]), stacked.permute_rows(inverse[ROWS:])
    assert isinstance(upper, CodedWeight) and upper.stored == "GGUF Q4_0"
    assert isinstance(lower, StoredWeight) and lower.stored == "GGUF Q6_K"
    assert torch.equal(torch.cat([upper.read(), lower.read()]), expected)
    assert torch.equal(stacked.permute_rows(inverse).read(), expected)


def test_stacked_biases(tmp_path: Path) -> None:
    parts = [TensorWeight(torch.arange(3.0)), TensorWeight(torch.arange(3.0, 5.0))]
    order = torch.tensor([4, 0, 3, 1, 2])
    stacked = StackedWeight(parts).permute_rows(order)
    assert stacked.shape == (5,) and stacked.read().tolist() == [4, 0, 3, 1, 2]
