"""Conversations on which a chat template is compared, as transformers' users have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One conversation. A `plain` one has user and assistant taking turns, and no more."""

    name: str
    messages: Sequence[Mapping[str, Any]]
    plain: bool = False
    tools: Sequence[Mapping[str, Any]] | None = None


def _turns(*contents: Any, first: str = "user") -> list[dict[str, Any]]:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


_SYSTEM = {"role": "system", "content": "Be kind."}
_FUNCTION = {
    "name": "get_weather",
    "description": "The weather of a 'place', °C",
    "parameters": {
        "type": "object",
        "properties": {
            "place": {"type": "string", "description": "A <city>"},
            "unit": {"type": "string", "enum": ["C", "F"]},
        },
        "required": ["place"],
    },
}
TOOLS: Sequence[Mapping[str, Any]] = ({"type": "function", "function": _FUNCTION},)
_CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"place": "Köln", "days": 2, "now": True}},
}
TOOL_CALL: Sequence[Mapping[str, Any]] = (
    *_turns("Is it warm in Köln?"),
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
)
"""A question, and an answer that calls a function."""
_CALLED = [
    *TOOL_CALL,
    {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": '{"t": 21}'},
]
_THOUGHT = "<think>\nEasy.\n</think>\n\nFour."
_REASONED = {"role": "assistant", "content": "Four.", "reasoning_content": "Easy."}


def _plain() -> Iterator[Sample]:
    yield Sample("a question", _turns("Hello"), plain=True)
    yield Sample("a question and its answer", _turns("Hello!", "Hi there."), plain=True)
    yield Sample("three turns", _turns("Hello!", "Hi there.", "Who are you?"), plain=True)
    words = ("What is 2+2?", "It's 4.", "Sure? Say {yes}.", "Yes:\n\n- 4\n", "I see...")
    yield Sample("five turns", _turns(*words), plain=True)


def _further() -> Iterator[Sample]:
    yield Sample("a system message", [_SYSTEM, *_turns("Hello")])
    yield Sample("a system message, several turns", [_SYSTEM, *_turns("Hello", "Hi.", "Bye")])
    yield Sample("a system message alone", [_SYSTEM])
    yield Sample("an empty system message", [{"role": "system", "content": ""}, *_turns("Hello")])
    yield Sample("a thought before the last answer", _turns("2+2?", _THOUGHT))
    yield Sample("a thought before an earlier answer", _turns("2+2?", _THOUGHT, "And 3+3?"))
    yield Sample("reasoning_content", [*_turns("2+2?"), _REASONED, *_turns("And 3+3?")])
    yield Sample("blanks around", _turns("  Hello \n\n", "\n Hi.  ", "\tBye\n"))
    yield Sample("other scripts", _turns("你好，世界 🌍", "Grüße, мир!", "café?"))
    yield Sample("quotes and braces", _turns("\"a\" 'b' \\n {{ x }} {% if %} </b> &"))
    yield Sample("empty contents", _turns("", "", ""))
    yield Sample("two questions in a row", [*_turns("Hello"), *_turns("Anyone?")])
    yield Sample("the assistant first", _turns("Hi.", "Hello", first="assistant"))
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]
    yield Sample("content in parts", _turns(parts))


def _with_tools() -> Iterator[Sample]:
    yield Sample("tools", _turns("Is it warm?"), tools=TOOLS)
    yield Sample("tools and a system message", [_SYSTEM, *_turns("Is it warm?")], tools=TOOLS)
    yield Sample("a tool's result", _CALLED, tools=TOOLS)
    yield Sample("an answer after a tool's result",
                 [*_CALLED, {"role": "assistant", "content": "Yes."}], tools=TOOLS)  # fmt: skip
    yield Sample("a tool's result without tools", _CALLED)


SAMPLES: Sequence[Sample] = (*_plain(), *_further(), *_with_tools())
"""Every sample is rendered with and without the beginning of an answer behind it."""
