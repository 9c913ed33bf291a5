"""`convert synth`: a checkpoint in published form that transformers' own reader takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command import TINY, TINY_SIZES
from safetensors.torch import load_file

from converter.cli.main import main


def synth(folder: Path, *words: str) -> Path:
    assert main(["synth", str(folder), *TINY, *words]) == 0
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def test_the_checkpoint_is_in_published_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = synth(tmp_path / "out", "source.dtype=float16")
    assert capsys.readouterr().out.strip() == str(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config.items() >= TINY_SIZES.items()
    found = tensors(folder)
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    assert found["model.tok_embeddings.weight"].shape == (160, 64)
    assert found["model.layers.1.attention.wqkv.weight"].shape == ((4 + 2 * 2) * 16, 64)
    assert len(found) == 3 + 2 * 7


def test_the_seed_decides_the_values(tmp_path: Path) -> None:
    one, same, other = (
        tensors(synth(tmp_path / name, f"source.seed={seed}"))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["output.weight"], other["output.weight"])


def test_an_existing_folder_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    assert main(["synth", str(tmp_path / "out"), *TINY]) == 1
    assert "exists already" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_wrong_recipe_is_said_with_the_wrong_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").touch()
    assert main(["synth", str(tmp_path / "out"), *TINY, "source.dtype=float7"]) == 1
    error = capsys.readouterr().err
    assert "2 problems" in error and "float7" in error and "exists already" in error
