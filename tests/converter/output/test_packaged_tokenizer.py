"""What a folder gets of its source's tokenizer, and what is said of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import DEMO

from converter.cli.compose import compose_recipe
from converter.model.checkpoint import Checkpoint
from converter.output.genai_config import TokenIds
from converter.output.packaged_tokenizer import (
    packaged_tokenizer,
    token_ids,
    tokenizer_notes,
    tokenizer_problems,
)

VOCAB_SIZE = 1024
CHAT, BASE = "internlm2_1_8b_chat_cpu_int4", "internlm2_1_8b_cpu_int4"


def demo(folder: Path, *without: str, config: Mapping[str, Any] | None = None) -> Checkpoint:
    """The demo's small files, some of them left out, and a config of their own."""
    copy = shutil.copytree(DEMO, folder / "source", ignore=shutil.ignore_patterns(*without))
    return Checkpoint(config=config or {}, tensors={}, origin={}, folder=copy)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, TokenIds(1, (2,), 2)),
        ({"eos_token_id": None}, TokenIds(1, (), 0)),
        ({"eos_token_id": [5, 6], "pad_token_id": 0}, TokenIds(1, (5, 6), 0)),
        ({"bos_token_id": None, "eos_token_id": 3.0}, TokenIds(None, (3,), 3)),
    ],
)
def test_without_a_tokenizer_the_configs_name_the_ids(
    config: dict[str, Any], expected: TokenIds
) -> None:
    checkpoint = Checkpoint(config=config, tensors={}, origin={})
    assert packaged_tokenizer(checkpoint, VOCAB_SIZE) is None
    assert token_ids(checkpoint, None) == expected


def test_a_tokenizer_names_its_own_ids(tmp_path: Path) -> None:
    checkpoint = demo(tmp_path, config={"bos_token_id": 7, "pad_token_id": 9})
    tokenizer = packaged_tokenizer(checkpoint, VOCAB_SIZE)
    assert token_ids(checkpoint, tokenizer) == TokenIds(1, (2, 1022), 2)


def test_bos_is_the_configs_where_the_tokenizer_names_none(tmp_path: Path) -> None:
    checkpoint = demo(tmp_path, "tokenizer.model", config={"bos_token_id": 7})
    assert checkpoint.folder is not None
    files = packaged_tokenizer(demo(tmp_path / "whole"), VOCAB_SIZE)
    assert files is not None
    (checkpoint.folder / "tokenizer.json").write_bytes(files.files["tokenizer.json"])
    (checkpoint.folder / "special_tokens_map.json").write_text("{}")
    path = checkpoint.folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    del content["bos_token"]
    path.write_text(json.dumps(content))
    assert token_ids(checkpoint, packaged_tokenizer(checkpoint, VOCAB_SIZE)).bos == 7


def test_a_stop_token_needs_a_row_with_and_without_a_tokenizer(tmp_path: Path) -> None:
    checkpoint = demo(tmp_path, "tokenizer.model", config={"eos_token_id": 1024})
    (said,) = tokenizer_problems(compose_recipe([f"recipe={BASE}"]), checkpoint, VOCAB_SIZE)
    assert "The stop token 1024" in said.found


def test_a_chat_model_needs_a_tokenizer(tmp_path: Path) -> None:
    checkpoint = demo(tmp_path, "tokenizer.model")
    assert not list(tokenizer_problems(compose_recipe([f"recipe={BASE}"]), checkpoint, VOCAB_SIZE))
    (said,) = tokenizer_problems(compose_recipe([f"recipe={CHAT}"]), checkpoint, VOCAB_SIZE)
    assert "has no tokenizer" in said.found


def test_the_notes_say_what_the_folder_lacks(tmp_path: Path) -> None:
    recipe = compose_recipe([f"recipe={CHAT}"])
    (none,) = tokenizer_notes(recipe, None)
    assert "token ids only" in none
    (hidden,) = tokenizer_notes(recipe, packaged_tokenizer(demo(tmp_path), VOCAB_SIZE))
    assert "<|action_start|>" in hidden
    folder = demo(tmp_path / "base").folder
    assert folder is not None
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    base = packaged_tokenizer(Checkpoint({}, {}, {}, folder), VOCAB_SIZE)
    notes = list(tokenizer_notes(recipe, base))
    assert any("continue plain text" in note for note in notes)
    assert not any("tool call" in note for note in notes)
