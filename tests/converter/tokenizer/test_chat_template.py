"""The chat template in onnxruntime-genai and transformers, against the official chat format."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from published import CHAT_TOKENIZER, TOKENIZER_MODEL, VOCAB_SIZE, write_genai_config

from converter.tokenizer import prepare_tokenizer
from converter.tokenizer.chat_template import PUBLISHED_TEMPLATE, TOOL_TEMPLATE

pytestmark = pytest.mark.slow  # 92544 pieces are read by every runtime

CONFIG = CHAT_TOKENIZER / "tokenizer_config.json"

PLAIN: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello! What's your name?"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "  a\r\n\tb \\ \"c\" 'd' "}],
    [
        {"role": "system", "content": "You are InternLM2-Chat"},
        {"role": "user", "content": "\u4f60\u597d \U0001f917 {{ x }} {% if %}"},
        {"role": "assistant", "content": "<b>&amp;</b>\n"},
        {"role": "user", "content": "\n"},
    ],
    [{"role": "environment", "content": "{}"}],
]
WEATHER = {
    "name": "get_current_weather",
    "description": "Get the current weather, \u5929\u6c14, <of> a 'given' \"location\"",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string"}, "unit": {"type": ["string", "null"]}},
        "required": ["location"],
    },
}
CALL = {
    "type": "function",
    "function": {"name": "get_current_weather", "arguments": {"location": "\u4e0a\u6d77", "n": 1}},
}
QUESTION = [
    {"role": "system", "content": "You are InternLM2-Chat"},
    {"role": "user", "content": "The weather in Shanghai?"},
]


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    import onnxruntime_genai
    from transformers import AutoTokenizer

    root = tmp_path_factory.mktemp("template")
    shutil.copy(CONFIG, root)
    shutil.copy(TOKENIZER_MODEL, root)
    out = root / "out"
    out.mkdir()
    for name, content in prepare_tokenizer(root, VOCAB_SIZE).files.items():
        (out / name).write_bytes(content)
    write_genai_config(out)
    return onnxruntime_genai.Tokenizer(str(out)), AutoTokenizer.from_pretrained(out)


def render(readers: tuple[Any, Any], messages: Any, prompt: bool = True, tools: Any = None) -> str:
    """What both runtimes make of the conversation with the folder's own template."""
    genai, transformers = readers
    extra = {} if tools is None else {"tools": json.dumps(tools, ensure_ascii=False)}
    text = genai.apply_chat_template(
        json.dumps(messages, ensure_ascii=False), add_generation_prompt=prompt, **extra
    )
    expected = transformers.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=prompt, tools=tools
    )
    assert text == expected
    return str(text)


def test_published_template_is_the_one_of_the_chat_models() -> None:
    assert json.loads(CONFIG.read_text("utf-8"))["chat_template"] == PUBLISHED_TEMPLATE


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("messages", PLAIN)
def test_plain_conversations_are_rendered_as_published(
    readers: tuple[Any, Any], messages: list[dict[str, Any]], prompt: bool
) -> None:
    genai, transformers = readers
    published = transformers.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=prompt,
        chat_template=PUBLISHED_TEMPLATE,
    )
    assert render(readers, messages, prompt) == published
    assert transformers.chat_template == TOOL_TEMPLATE
    content = json.dumps(messages, ensure_ascii=False)
    assert published == genai.apply_chat_template(
        content, add_generation_prompt=prompt, template_str=PUBLISHED_TEMPLATE
    )


def test_function_call_is_written_as_the_chat_format_says(readers: tuple[Any, Any]) -> None:
    messages = [
        *QUESTION,
        {"role": "assistant", "content": "Sure, I will search.", "tool_calls": [CALL]},
        {"role": "tool", "name": "get_current_weather", "content": '{"temperature": 22}'},
        {"role": "assistant", "content": "22 celsius"},
    ]
    tools = [{"type": "function", "function": WEATHER}, WEATHER]
    definition = json.dumps(WEATHER, ensure_ascii=False)
    assert render(readers, messages, prompt=False, tools=tools) == (
        "<s><|im_start|>system\nYou are InternLM2-Chat<|im_end|>\n"
        f"<|im_start|>system name=<|plugin|>\n[{definition}, {definition}]<|im_end|>\n"
        "<|im_start|>user\nThe weather in Shanghai?<|im_end|>\n"
        "<|im_start|>assistant\nSure, I will search.<|action_start|><|plugin|>\n"
        '{"name": "get_current_weather", "parameters": {"location": "\u4e0a\u6d77", "n": 1}}'
        "<|action_end|><|im_end|>\n"
        '<|im_start|>environment name=<|plugin|>\n{"temperature": 22}<|im_end|>\n'
        "<|im_start|>assistant\n22 celsius<|im_end|>\n"
    )


def test_tools_come_first_without_a_system_message(readers: tuple[Any, Any]) -> None:
    text = render(readers, QUESTION[1:], tools=[WEATHER])
    assert text.startswith("<s><|im_start|>system name=<|plugin|>\n[{")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_code_interpreter_is_written_as_the_chat_format_says(readers: tuple[Any, Any]) -> None:
    code = "```python\nimport pandas as pd\n```"
    call = {"type": "function", "function": {"name": "interpreter", "arguments": code}}
    messages = [
        {"role": "system", "content": "You are InternLM2-Chat"},
        {"role": "system", "name": "interpreter", "content": "You have a notebook."},
        {"role": "user", "content": "Plot this."},
        {"role": "user", "name": "file", "content": '[{"path": "data.csv"}]'},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "environment", "name": "interpreter", "content": "![image](xxx.png)"},
    ]
    assert render(readers, messages) == (
        "<s><|im_start|>system\nYou are InternLM2-Chat<|im_end|>\n"
        "<|im_start|>system name=<|interpreter|>\nYou have a notebook.<|im_end|>\n"
        "<|im_start|>user\nPlot this.<|im_end|>\n"
        '<|im_start|>user name=file\n[{"path": "data.csv"}]<|im_end|>\n'
        f"<|im_start|>assistant\n<|action_start|><|interpreter|>\n{code}<|action_end|><|im_end|>\n"
        "<|im_start|>environment name=<|interpreter|>\n![image](xxx.png)<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_arguments_that_are_json_text_stay_as_they_are(readers: tuple[Any, Any]) -> None:
    call = {"function": {"name": "f", "arguments": '{"a":  1}'}}
    text = render(readers, [{"role": "assistant", "content": "", "tool_calls": [call, call]}])
    assert text.count('{"name": "f", "parameters": {"a":  1}}<|action_end|>') == 2
