"""What a checkpoint's small files say of its tokenizer, read and checked in one go."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem, first_line, gathered, raise_if
from converter.model.json_schema import surrogate_problem
from converter.tokenizer.template_source import TEMPLATE_FILE, TEMPLATE_FOLDER, TEMPLATE_JSON

TOKENIZER_CONFIG, TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"
ADDED_TOKENS, TOKENIZER_JSON = "added_tokens.json", "tokenizer.json"
JSON_FILES = (
    TOKENIZER_CONFIG,
    TOKENS_MAP,
    ADDED_TOKENS,
    "generation_config.json",
    "config.json",
    TEMPLATE_JSON,
    TOKENIZER_JSON,
)
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
TOKEN_LISTS = ("additional_special_tokens", "extra_special_tokens")
"""Keys that name further special tokens; the second is transformers 5's."""


def settings_files(folder: Path) -> list[Path]:
    """The files of `folder` that are read here."""
    return [path for path in _possible_files(folder) if path.is_file()]


def _possible_files(folder: Path) -> list[Path]:
    named = [folder / name for name in (*JSON_FILES, TEMPLATE_FILE)]
    return [*named, *sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))]


def read_settings(folder: Path) -> dict[str, Any]:
    """Contents by file name: JSON objects, and templates as texts.

    Raises:
        ConvertError: lists every file that cannot be read, and every value of a wrong type.
    """
    settings: dict[str, Any] = {}
    problems = [
        dangling_link(path)
        for path in _possible_files(folder)
        if path.is_symlink() and not path.exists()
    ]
    for path in settings_files(folder):
        try:
            read = read_json if path.suffix == ".json" else _read_text
            settings[path.relative_to(folder).as_posix()] = read(path)
        except ConvertError as error:
            problems += error.problems
    raise_if(gathered([*problems, *_type_problems(folder, settings)]))
    return settings


def dangling_link(path: Path) -> Problem:
    """The problem of a link in a checkpoint's folder whose file is not there."""
    return Problem(
        f"{path} is a link to {path.readlink()}, which is not there.",
        "the file itself, as a complete download has it",
        "fetch the file again",
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        found = f"{path} cannot be read: {first_line(error)}."
        raise ConvertError(Problem(found, "a text file in UTF-8", "fetch the file again")) from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of the tokenizer; raises `ConvertError` for anything else."""
    text = _read_text(path)
    if text.startswith("version https://git-lfs"):
        found = f"{path} is a Git LFS pointer, not the file itself."
        remedy = "run `git lfs pull` in the checkpoint's folder"
        raise ConvertError(Problem(found, "a JSON object", remedy))
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        found = f"{path} is not JSON: {first_line(error)}."
        raise ConvertError(Problem(found, "a JSON object", "fetch the file again")) from None
    if not isinstance(content, dict):
        raise ConvertError(
            Problem(f"{path} holds a {type(content).__name__}.", "a JSON object", "fetch it again")
        )
    raise_if(filter(None, [surrogate_problem(path, text, content)]))
    return content


def token_text(entry: Any) -> str | None:
    """The text of a token that is named by itself or as an object with its settings."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def listed_tokens(value: Any) -> list[Any]:
    """The entries of a list of tokens, or of an object that gives each a name."""
    return list(value.values() if isinstance(value, dict) else value or ())


def _type_problems(folder: Path, settings: Mapping[str, Any]) -> Iterator[Problem]:
    for name in (TOKENIZER_CONFIG, TOKENS_MAP):
        content = settings.get(name, {})
        for key in NAMED_TOKENS:
            if content.get(key) is not None and token_text(content[key]) is None:
                yield _wrong(folder / name, key, content[key], "a text, or an object with content")
        for key in TOKEN_LISTS:
            if not _is_token_list(content.get(key)):
                yield _wrong(folder / name, key, content[key], "a list of texts")
    decoder = settings.get(TOKENIZER_CONFIG, {}).get("added_tokens_decoder")
    if not _is_decoder(decoder):
        expected = "an object of ids, each with an object that has content"
        yield _wrong(folder / TOKENIZER_CONFIG, "added_tokens_decoder", decoder, expected)
    for text, index in settings.get(ADDED_TOKENS, {}).items():
        if type(index) is not int:
            yield _wrong(folder / ADDED_TOKENS, text, index, "a whole number")
    added = settings.get(TOKENIZER_JSON, {}).get("added_tokens")
    if not _is_added_list(added):
        expected = "a list of objects with content and id"
        yield _wrong(folder / TOKENIZER_JSON, "added_tokens", added, expected)


def _is_token_list(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, list | dict) and all(
        token_text(entry) is not None for entry in listed_tokens(value)
    )


def _is_decoder(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and all(
            key.isdigit() and isinstance(entry, dict) and token_text(entry) is not None
            for key, entry in value.items()
        )
    )


def _is_added_list(value: Any) -> bool:
    return value is None or (
        isinstance(value, list)
        and all(
            isinstance(entry, dict)
            and token_text(entry) is not None
            and type(entry.get("id")) is int
            for entry in value
        )
    )


def _wrong(path: Path, key: str, value: Any, expected: str) -> Problem:
    shown = json.dumps(value, ensure_ascii=False)
    return Problem(
        f"{path} has {key}={shown if len(shown) <= 60 else shown[:60] + '…'}.",
        expected,
        "correct the value, or fetch the file again",
    )
