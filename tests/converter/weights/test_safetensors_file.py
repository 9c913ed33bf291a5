from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter.errors import ConvertError
from converter.weights.safetensors_file import open_safetensors, write_safetensors
from converter.weights.weight import TensorWeight

TENSORS = {
    "matrix": torch.randn(7, 5),
    "half": torch.randn(3, 4).half(),
    "brain": torch.randn(4, 3).bfloat16(),
    "vector": torch.randn(9),
    "ids": torch.arange(6).reshape(2, 3),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    return file


def test_reads_what_the_library_wrote(path: Path) -> None:
    opened = open_safetensors(path)
    assert opened.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(opened[name].read(), tensor)
        assert torch.equal(opened[name].rows(1, 2), tensor[1:2])


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    file = tmp_path / "written.safetensors"
    write_safetensors(file, {name: TensorWeight(tensor) for name, tensor in TENSORS.items()})
    loaded = load_file(file)
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("kept", [0, 4, 60, -1])
def test_a_truncated_file_is_refused_from_its_header(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ConvertError, match=r"cut short|not a safetensors|is empty"):
        open_safetensors(path)


def test_a_file_cut_after_opening_is_an_error_not_zeros(path: Path) -> None:
    opened = open_safetensors(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConvertError, match="cut short"):
        for weight in opened.values():
            weight.read()


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 15]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
    ],
)
def test_impossible_headers_are_refused(tmp_path: Path, entry: object) -> None:
    text = json.dumps({"x": entry}).encode()
    file = tmp_path / "bad.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    with pytest.raises(ConvertError, match="header is not valid"):
        open_safetensors(file)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64"])
def test_a_good_file_in_any_type_is_not_damaged(tmp_path: Path, dtype: str) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(4, 2).to(getattr(torch, dtype))}, file)
    opened = open_safetensors(file)["x"]
    assert (opened.shape, opened.dtype) == ((4, 2), getattr(torch, dtype))
    assert opened.read().shape == (4, 2)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F99", None, ["F32"]])
def test_a_type_that_is_not_read_is_named_and_the_file_not_called_damaged(
    tmp_path: Path, dtype: object
) -> None:
    entry = {"dtype": dtype, "shape": [1], "data_offsets": [0, 4]}
    text = json.dumps({"x": entry}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(ConvertError, match=r"x in .* has the type|not valid") as caught:
        open_safetensors(file)
    assert isinstance(dtype, list) or "fetch it again" not in str(caught.value)


@pytest.mark.parametrize(("low", "high"), [(0, 3), (5, 9), (0, 6000), (5990, 6000)])
def test_columns_of_rows_are_read_alone_or_with_their_rows(
    tmp_path: Path, low: int, high: int
) -> None:
    values = torch.arange(4 * 6000, dtype=torch.int32).reshape(4, 6000)
    save_file({"x": values}, tmp_path / "x.safetensors")
    weight = open_safetensors(tmp_path / "x.safetensors")["x"]
    assert torch.equal(weight.block(1, 3, low, high), values[1:3, low:high])
