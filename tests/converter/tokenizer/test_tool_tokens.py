"""Special tokens of a tool call, which decoded text leaves out."""

from __future__ import annotations

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
