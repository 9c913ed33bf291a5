"""A checkpoint's small files: read, or refused all at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from converter.errors import ConvertError
from converter.tokenizer.settings import (
    listed_tokens,
    read_json,
    read_settings,
    settings_files,
    token_text,
)


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(ConvertError) as caught:
        read_settings(folder)
    return [problem.found for problem in caught.value.problems]


def test_templates_stand_beside_the_objects(tmp_path: Path) -> None:
    write(tmp_path, config={"a": 1}, tokenizer_config={}, unknown={})
    (tmp_path / "chat_template.jinja").write_text("one")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("two")
    assert read_settings(tmp_path) == {
        "config.json": {"a": 1},
        "tokenizer_config.json": {},
        "chat_template.jinja": "one",
        "additional_chat_templates/rag.jinja": "two",
    }
    assert len(settings_files(tmp_path)) == 4


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"{", "is not JSON"), (b"[]", "holds a list"), (b"\xff", "cannot be read"),
     (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
     (b'{"a":' * 3000, "is not JSON")],
)  # fmt: skip
def test_a_file_that_is_no_object_is_named(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "added_tokens.json"
    path.write_bytes(content)
    with pytest.raises(ConvertError, match=part):
        read_json(path)
    (tmp_path / "config.json").write_text("5")
    assert len(problems_of(tmp_path)) == 2


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja", "config.json"])
def test_a_link_to_nothing_is_not_a_missing_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "gone")
    (found,) = problems_of(tmp_path)
    assert name in found and "is a link to" in found


ODD_TOKENS: list[Any] = [5, True, [], ["x"], {}, {"content": 5}]
ODD_LISTS: list[Any] = [5, True, [5], [None], [{"content": None}], {"a": 5}, "abc"]
ODD_DECODERS: list[Any] = [5, [], {"x": {"content": "a"}}, {"5": "a"}, {"5": {}}, {"5": None}]
ODD_IDS: list[Any] = [None, "5", 2.5, True, [5]]
ODD_ADDED: list[Any] = [5, {}, ["a"], [{"content": "a"}], [{"content": 5, "id": 5}],
                        [{"content": "a", "id": "5"}]]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "key", "values"),
    [
        ("tokenizer_config", "eos_token", ODD_TOKENS),
        ("special_tokens_map", "bos_token", ODD_TOKENS),
        ("tokenizer_config", "extra_special_tokens", ODD_LISTS),
        ("special_tokens_map", "additional_special_tokens", ODD_LISTS),
        ("tokenizer_config", "added_tokens_decoder", ODD_DECODERS),
        ("added_tokens", "<x>", ODD_IDS),
        ("tokenizer", "added_tokens", ODD_ADDED),
    ],
)
def test_values_of_a_wrong_type_are_named(
    tmp_path: Path, file: str, key: str, values: list[Any]
) -> None:
    for value in values:
        (found,) = problems_of(write(tmp_path, **{file: {key: value}}))
        assert f"{file}.json has {key}=" in found


@pytest.mark.parametrize(
    "content",
    [{"eos_token": None, "additional_special_tokens": None, "added_tokens_decoder": None},
     {"eos_token": {"content": "a"}, "extra_special_tokens": {"image_token": "<i>"}},
     {"additional_special_tokens": ["a", {"content": "b"}],
      "added_tokens_decoder": {"5": {"content": "a"}}}],
)  # fmt: skip
def test_the_forms_of_transformers_are_right(tmp_path: Path, content: dict[str, Any]) -> None:
    write(tmp_path, tokenizer_config=content)
    assert read_settings(tmp_path)["tokenizer_config.json"] == content


def test_tokens_by_themselves_and_as_objects() -> None:
    assert [token_text(entry) for entry in ("a", {"content": "b"}, None, 5)] == [
        "a", "b", None, None]  # fmt: skip
    assert listed_tokens({"x": "a"}) == ["a"] and listed_tokens(None) == []


def test_half_of_a_character_is_refused_and_a_whole_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "added_tokens.json"
    path.write_text(r'{"\ud83d\ude42": 5, "a\\ud83d": 6}')
    assert read_settings(tmp_path) == {path.name: {"\U0001f642": 5, "a\\ud83d": 6}}
    path.write_text(r'{"\ud83d": 5}')
    with pytest.raises(ConvertError, match=r"holds \\ud83d, half of a character"):
        read_settings(tmp_path)
