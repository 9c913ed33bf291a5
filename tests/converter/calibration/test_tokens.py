"""The calibration tokens: which sequences judge, how they are batched, where they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from converter.calibration.tokens import (
    BATCH_VALUES,
    CalibrationTokens,
    calibration_tokens,
    held_back,
    sequence_batches,
)
from converter.cli.compose import compose_recipe
from converter.errors import ConvertError
from converter.model.decoder import Decoder
from converter.model.reference import Reference
from converter.text.folder_tokenizer import source_tokenizer
from converter.text.texts import load_text

PROSE = Path(__file__).parents[3] / "converter/data/text/calibration/prose.en.txt"


def test_batches_cover_all_sequences_and_keep_the_held_back_apart() -> None:
    tokens = CalibrationTokens(torch.zeros(13, 512, dtype=torch.int64), held=2)
    narrow, wide = tokens.batches(1536), tokens.batches(14336)
    assert wide == [slice(index, index + 1) for index in range(13)]
    assert [index for part in narrow for index in range(13)[part]] == list(range(13))
    assert all(part.stop <= 11 or part.start >= 11 for part in narrow)
    assert max(part.stop - part.start for part in narrow) > 1
    assert [tokens.judges(part) for part in wide] == [False] * 11 + [True] * 2
    other = CalibrationTokens(tokens.ids.view(26, 256), held=2)
    assert tokens.digest != other.digest


@given(st.integers(1, 200), st.integers(1, 4096), st.integers(1, 20000), st.integers(0, 12))
def test_batches_never_exceed_their_room(count: int, length: int, columns: int, held: int) -> None:
    held = min(held, count)
    batches = sequence_batches(torch.Size((count, length)), columns, held)
    assert [index for part in batches for index in range(count)[part]] == list(range(count))
    for part in batches:
        size = part.stop - part.start
        assert size == 1 or size * length * columns <= BATCH_VALUES
        assert part.stop <= count - held or part.start >= count - held


@pytest.mark.parametrize(("count", "held"), [(1, 0), (3, 0), (4, 1), (16, 1), (32, 2), (256, 16)])
def test_one_sequence_in_sixteen_judges(count: int, held: int) -> None:
    assert held_back(count) == held


def test_synthetic_weights_get_random_tokens_of_their_seed(
    decoder: Decoder, make_recipe: Callable[..., Any]
) -> None:
    config = make_recipe("calibration.tokens=512", "calibration.sequence_length=64").calibration
    found = calibration_tokens(decoder, config)
    assert found.ids.shape == (8, 64) and found.ids.dtype == torch.int64 and found.held == 1
    assert found.ids.min() >= 0 and found.ids.max() < decoder.architecture.vocab_size
    assert calibration_tokens(decoder, config).digest == found.digest
    assert calibration_tokens(decoder, replace(config, seed=9)).digest != found.digest


def test_a_checkpoint_with_a_tokenizer_gets_text(demo_decoder: Decoder, tmp_path: Path) -> None:
    words = ["recipe=demo", "calibration.tokens=256", "calibration.sequence_length=32"]
    config = compose_recipe(words).calibration
    found = calibration_tokens(demo_decoder, config)
    assert found.ids.shape == (8, 32)
    tokenizer = source_tokenizer(demo_decoder)
    (kind,) = load_text(str(PROSE))
    known = set(tokenizer.encode("\n\n".join(kind.documents)))
    own = calibration_tokens(demo_decoder, replace(config, text=str(PROSE)))
    assert set(own.ids.flatten().tolist()) <= known | {tokenizer.bos_token_id}
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(ConvertError, match="tokens"):
        calibration_tokens(demo_decoder, replace(config, text=str(tmp_path / "short.txt")))


def test_embeddings_of_all_sequences(reference: Reference, tmp_path: Path) -> None:
    tokens = CalibrationTokens(torch.randint(0, 100, (3, 7)), held=0)
    found = tokens.embedded(reference, tmp_path)
    table = reference.weights["embed_tokens"].read()
    for index in range(3):
        assert torch.equal(found[index][0], table[tokens.ids[index]].float())
