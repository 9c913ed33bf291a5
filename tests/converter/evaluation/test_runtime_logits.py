"""Logits of a folder as it ships, against transformers on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from oracle import llama_of

from converter.errors import ConvertError
from converter.evaluation.runtime_logits import folder_logits, model_inputs
from converter.graph.names import MODEL_FILE
from converter.output.model_writer import write_model

IDS = np.arange(3, 39, dtype=np.int64).reshape(3, 12)


@pytest.fixture
def written(build: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    def write(*words: str) -> Path:
        write_model(build(*words).model, tmp_path)
        return tmp_path

    return write


@pytest.mark.parametrize("last_only", ["true", "false"])
def test_every_row_starts_anew(
    written: Callable[..., Path], build: Callable[..., Any], last_only: str
) -> None:
    folder = written(f"graph.last_token_logits={last_only}")
    found = list(folder_logits(folder, IDS))
    with torch.no_grad():
        expected = llama_of(build(until="load"))(torch.from_numpy(IDS)).logits.numpy()
    assert len(found) == 3
    for row, logits in zip(expected, found, strict=True):
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, row, atol=1e-4)


def test_only_the_positions_that_are_asked_for(written: Callable[..., Path]) -> None:
    folder = written()
    (whole,) = folder_logits(folder, IDS[:1])
    (part,) = folder_logits(folder, IDS[:1], slice(5, 11), threads=1)
    np.testing.assert_allclose(part, whole[5:11], atol=1e-5)


def test_inputs_begin_with_an_empty_cache(written: Callable[..., Path]) -> None:
    path = written("target.position_ids=true") / MODEL_FILE
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = model_inputs(session, IDS[0])
    assert set(inputs) == {item.name for item in session.get_inputs()}
    assert np.array_equal(inputs["input_ids"], IDS[:1])
    assert inputs["attention_mask"].tolist() == [[1] * 12]
    for name, value in inputs.items():
        if name.startswith("past"):
            assert value.shape == (1, 2, 0, 16) and value.dtype == np.float32
    if "position_ids" in inputs:
        assert inputs["position_ids"].tolist() == [list(range(12))]


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=rf"has no {MODEL_FILE}"):
        next(iter(folder_logits(tmp_path, IDS)))


def test_a_model_that_does_not_load_says_what_onnxruntime_said(
    written: Callable[..., Path],
) -> None:
    folder = written()
    (folder / f"{MODEL_FILE}.data").unlink()
    with pytest.raises(ConvertError) as caught:
        next(iter(folder_logits(folder, IDS)))
    (problem,) = caught.value.problems
    assert "cannot load" in problem.found and "\n" not in problem.found
