"""Special tokens of a tool call, which decoded text leaves out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from converter.tokenizer.chat_template import PUBLISHED_TEMPLATE, TOOL_TEMPLATE
from converter.tokenizer.special_tokens import CHAT_TOKENS
from converter.tokenizer.tool_tokens import hidden_tool_tokens


def test_internlm2s_are_those_around_a_call() -> None:
    hidden = hidden_tool_tokens(TOOL_TEMPLATE, CHAT_TOKENS, {"bos_token": "<s>"})
    assert hidden == ["<|action_start|>", "<|action_end|>", "<|plugin|>"]


def test_a_template_without_calls_has_none() -> None:
    assert hidden_tool_tokens(PUBLISHED_TEMPLATE, CHAT_TOKENS, {}) == []
    assert hidden_tool_tokens("{{ raise_exception('no') }}", CHAT_TOKENS, {}) == []


def test_tokens_that_are_shown_are_not_named() -> None:
    assert hidden_tool_tokens(TOOL_TEMPLATE, ["<|im_end|>"], {}) == []


def test_the_runtime_shows_them_only_when_they_are_not_special(
    demo_folder: Path, tmp_path: Path
) -> None:
    genai: Any = pytest.importorskip("onnxruntime_genai")
    hidden = ["<|action_start|>", "<|plugin|>", "<|action_end|>"]
    for name in ("genai_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder / name, tmp_path)
    tokenizer = genai.Tokenizer(str(tmp_path))
    ids = [tokenizer.to_token_id(token) for token in hidden]
    stream = tokenizer.create_stream()
    assert ids == [1021, 1018, 1020] and not any(map(stream.decode, ids))
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    for token in content["added_tokens"]:
        token["special"] = token["content"] not in hidden
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    stream = genai.Tokenizer(str(tmp_path)).create_stream()
    assert [stream.decode(index) for index in ids] == hidden
