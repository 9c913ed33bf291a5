"""Special tokens that mark a tool call in an answer, which decoded text does not show."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from converter.tokenizer.conversations import TOOL_CALL
from converter.tokenizer.jinja import RenderError, render


def hidden_tool_tokens(
    template: str, special: Collection[str], names: Mapping[str, str]
) -> list[str]:
    """Those of the `special` tokens that `template` writes for a tool call and for no plain turn.

    onnxruntime-genai leaves special tokens out of decoded text. They stay special all the same:
    constrained generation looks for tool tokens among the special ones.
    """
    called = _rendered(template, [*TOOL_CALL], names)
    plain = _rendered(template, [TOOL_CALL[0], {"role": "assistant", "content": "Yes."}], names)
    return [token for token in special if token in called and token not in plain]


def _rendered(template: str, messages: list[Mapping[str, object]], names: Mapping[str, str]) -> str:
    try:
        return render(template, messages, None, False, names)
    except RenderError:
        return ""
