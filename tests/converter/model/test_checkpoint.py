"""What a source gives, and JSON files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.errors import ConvertError
from converter.model.checkpoint import TOKENIZERS, Checkpoint, read_json


def checkpoint(folder: Path | None) -> Checkpoint:
    return Checkpoint({}, {}, {}, folder)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_one_of_the_files_is_a_tokenizer(tmp_path: Path, name: str) -> None:
    assert not checkpoint(None).has_tokenizer and not checkpoint(tmp_path).has_tokenizer
    (tmp_path / name).mkdir()
    assert not checkpoint(tmp_path).has_tokenizer  # a folder is no file
    (tmp_path / name).rmdir()
    (tmp_path / name).touch()
    assert checkpoint(tmp_path).has_tokenizer


def test_a_generation_config_may_be_missing_but_not_broken(tmp_path: Path) -> None:
    assert checkpoint(None).generation_config == {} == checkpoint(tmp_path).generation_config
    path = tmp_path / "generation_config.json"
    path.write_text('{"eos_token_id": [2, 92542]}')
    assert checkpoint(tmp_path).generation_config == {"eos_token_id": [2, 92542]}
    path.write_text('{"eos_token_id": [2,')
    with pytest.raises(ConvertError, match="generation_config"):
        _ = checkpoint(tmp_path).generation_config


def test_json_is_utf8(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes('{"name": "书生"}'.encode())
    assert read_json(path) == {"name": "书生"}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b'{"a": 1', "cannot be read"),
        ('{"name": "书生"}'.encode("gb18030"), "cannot be read"),
        (b"[1, 2]", "holds a list"),
        (b"null", "holds a NoneType"),
        (b'"text"', "holds a str"),
    ],
)
def test_what_is_no_json_object_is_named(tmp_path: Path, content: bytes | None, part: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConvertError) as caught:
        read_json(path)
    (problem,) = caught.value.problems
    assert str(path) in problem.found and part in problem.found and problem.remedy


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="cannot be read"):
        read_json(tmp_path)
