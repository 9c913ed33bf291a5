"""The float model's logits of a text, kept in the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import llama_of

from converter.evaluation import reference_logits
from converter.evaluation.reference_file import ReferenceFile
from converter.evaluation.reference_logits import (
    REFERENCE_FILE,
    compute_reference,
    reference_disk,
    stored_reference,
)
from converter.model.decoder import Decoder
from converter.recipe.schema import EvaluateConfig
from converter.storage.cache import Cache
from converter.text.texts import EvaluationChunks

CHUNKS = EvaluationChunks(np.arange(3, 51, dtype=np.int64).reshape(3, 16), 8)


def nothing(done: int, total: int, detail: str) -> None:
    pass


@pytest.fixture
def decoder(build: Callable[..., Any]) -> Decoder:
    found: Decoder = build(until="layout")
    return found


@pytest.mark.parametrize("head_bytes", [2**28, 1])
def test_rows_are_those_of_the_whole_model(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head_bytes: int
) -> None:
    monkeypatch.setattr(reference_logits, "HEAD_BYTES", head_bytes)
    compute_reference(tmp_path / "file", "key", decoder, CHUNKS, nothing)
    found = ReferenceFile(tmp_path / "file", "key")
    ids = torch.from_numpy(CHUNKS.input_ids)
    with torch.no_grad():
        expected = llama_of(decoder.checkpoint)(ids).logits
    assert len(found) == 3
    for number in range(3):
        rows = found.chunk(number)
        assert torch.allclose(rows.logits, expected[number, 8:15], atol=1e-3)
        nll = torch.nn.functional.cross_entropy(
            expected[number, 8:15], ids[number, 9:], reduction="none"
        )
        assert torch.allclose(rows.nll, nll, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_it_is_made_once_for_a_text_and_a_position(decoder: Decoder, tmp_path: Path) -> None:
    cache, seen = Cache(tmp_path), list[str]()

    def tell(done: int, total: int, detail: str) -> None:
        seen.append(detail)

    first = stored_reference(decoder, CHUNKS, cache, tell)
    told = len(seen)
    assert told == 2 + 3 and "layer" in seen[0] and "lm_head" in seen[-1]
    again = stored_reference(decoder, CHUNKS, cache, tell)
    assert len(seen) == told and again.header == first.header
    for other in (
        EvaluationChunks(CHUNKS.input_ids, 4),
        EvaluationChunks(CHUNKS.input_ids + 1, 8),
    ):
        assert stored_reference(decoder, other, cache, tell).header.key != first.header.key
    assert len(cache.entries()) == 3
    arch = decoder.architecture
    changed = replace(decoder, architecture=replace(arch, norm=replace(arch.norm, eps=0.1)))
    found = stored_reference(changed, CHUNKS, cache, tell)
    assert found.header.key != first.header.key and len(cache.entries()) == 4


def test_the_disk_that_it_takes_is_bounded(decoder: Decoder, tmp_path: Path) -> None:
    config = EvaluateConfig(n_ctx=16)
    said = reference_disk(config, decoder.architecture, 3, [])
    cache = Cache(tmp_path)
    stored_reference(decoder, CHUNKS, cache, nothing)
    (file,) = tmp_path.rglob(REFERENCE_FILE)
    hidden = 3 * 16 * decoder.architecture.hidden_size * 4
    assert file.stat().st_size + hidden == pytest.approx(said, rel=0.05)
    assert reference_disk(config, decoder.architecture, 3, cache.entries()) == 0
