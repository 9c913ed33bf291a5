"""Tensors kept in a file: what went in comes out, by one and by several."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from converter.weights.spill import Spill


def filled(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Spill, torch.Tensor]:
    values = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1))
    spill = Spill(folder, 5, (2, 3), dtype)
    for index in (4, 0, 3, 1, 2):  # in any order
        spill[index] = values[index]
    return spill, values.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_spilled_tensors_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    spill, values = filled(tmp_path, dtype)
    for index in range(5):
        assert spill[index].dtype == dtype
        assert torch.equal(spill[index], values[index])


def test_a_slice_is_stacked_along_the_first_dimension(tmp_path: Path) -> None:
    spill, values = filled(tmp_path)
    assert torch.equal(spill[1:4], values[1:4].reshape(6, 3))
    spill[2:4] = torch.ones(4, 3)
    assert torch.equal(spill[2], torch.ones(2, 3)) and torch.equal(spill[1], values[1])
    assert torch.equal(spill[4], values[4])


def test_a_copy_on_disk_restores_all(tmp_path: Path) -> None:
    spill, values = filled(tmp_path, torch.bfloat16)
    spill.save(tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_size == values.numel() * 2
    other = Spill(tmp_path, 5, (2, 3), torch.bfloat16)
    other.load(tmp_path / "copy")
    assert torch.equal(other[0:5], values.reshape(10, 3))


def test_the_file_has_no_name_and_goes_with_the_spill(tmp_path: Path) -> None:
    spill, _ = filled(tmp_path)
    assert list(tmp_path.iterdir()) == []  # a killed run leaves nothing
    spill.close()
    with pytest.raises(ValueError, match="closed"):
        spill[0]


def test_what_was_never_written_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    spill = Spill(tmp_path, 3, (4,))
    spill[0] = torch.ones(4)
    with pytest.raises(OSError, match="ends early"):
        spill[1]
    (tmp_path / "short").write_bytes(bytes(20))
    with pytest.raises(OSError, match="ends early"):
        spill.load(tmp_path / "short")


def test_a_gradient_is_not_kept(tmp_path: Path) -> None:
    spill = Spill(tmp_path, 1, (4,))
    spill[0] = torch.ones(4, requires_grad=True) * 2
    assert torch.equal(spill[0], torch.full((4,), 2.0)) and not spill[0].requires_grad
