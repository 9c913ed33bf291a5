"""Reading PyTorch's zip checkpoints by position, and refusing what is none."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from converter.errors import ConvertError
from converter.weights.torch_file import open_torch_file


def test_values_are_those_that_were_saved(tmp_path: Path) -> None:
    big = torch.randn(300, 20)
    state = OrderedDict(
        bf16=torch.randn(50, 30).bfloat16(),
        view=big[10:20],
        whole=big,
        again=big,
        half=torch.randn(3, 3).half(),
        whole_numbers=torch.arange(7),
        empty=torch.zeros(0, 4),
        parameter=torch.nn.Parameter(torch.randn(4, 5)).data,
    )
    torch.save(state, tmp_path / "pytorch_model.bin")
    found = open_torch_file(tmp_path / "pytorch_model.bin")
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert (found[name].shape, found[name].dtype) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(found[name].read(), tensor), name
    assert torch.equal(found["whole"].rows(5, 9), big[5:9])


def test_a_module_saves_what_can_be_read(tmp_path: Path) -> None:
    module = torch.nn.Linear(6, 4)
    torch.save(module.state_dict(), tmp_path / "linear.bin")
    found = open_torch_file(tmp_path / "linear.bin")
    assert torch.equal(found["weight"].read(), module.weight.data)


class Attack:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("zipped", [True, False])
def test_an_attack_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    path, mark = tmp_path / "attack.bin", tmp_path / "attacked"
    state = {"weight": torch.ones(2), "bias": Attack(mark)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConvertError, match="nothing of it was run" if zipped else "zip archive"):
        open_torch_file(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # the attack is a real one


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "it holds a list"),
        ({"weight": torch.ones(2), "step": 3}, "step is a int, not a tensor"),
        ({"weight": torch.randn(4, 5).T}, "weight is not stored row by row"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "other.bin")
    with pytest.raises(ConvertError, match=message) as error:
        open_torch_file(tmp_path / "other.bin")
    assert "other.bin" in str(error.value)


def damaged(edit: Callable[[bytes], bytes], path: Path) -> Path:
    torch.save({"weight": torch.randn(100, 10), "bias": torch.randn(10)}, path)
    path.write_bytes(edit(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-10],
        lambda content: b"",
        lambda content: b"not a checkpoint at all",
        lambda content: content.replace(b"data.pkl", b"datb.pkl"),
    ],
    ids=["half", "end", "empty", "text", "no pickle"],
)
def test_a_damaged_file_is_named(tmp_path: Path, edit: Callable[[bytes], bytes]) -> None:
    path = damaged(edit, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConvertError, match=r"is not a checkpoint that can be read|is empty"):
        open_torch_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="cannot be read: No such file"):
        open_torch_file(tmp_path / "pytorch_model.bin")
