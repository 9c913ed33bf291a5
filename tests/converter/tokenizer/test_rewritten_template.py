"""The template that a folder gets."""

from __future__ import annotations

import pytest

from converter.tokenizer import rewritten_template as module
from converter.tokenizer.chat_template import TOOL_TEMPLATE
from converter.tokenizer.rewritten_template import rewritten_template
from converter.tokenizer.template_source import TemplateSource

TRIMMED = "{% for m in messages %}\n{{ m.content }}{% endfor %}"


def written(default: str | None, tool_use: str | None = None) -> tuple[str | None, list[str]]:
    notes: list[str] = []
    return rewritten_template(TemplateSource(default, tool_use), {}, notes), notes


def test_what_is_right_stays_without_a_word() -> None:
    for template in (None, TOOL_TEMPLATE, "{% for m in messages %}{{ m.content }}{% endfor %}"):
        assert written(template) == (template, [])


def test_a_rewritten_one_is_said() -> None:
    text, notes = written(TRIMMED)
    assert text != TRIMMED and "written anew" in notes[0]


def test_what_cannot_be_written_stays_and_is_said() -> None:
    source = "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}a{% endcall %}"
    text, notes = written(source)
    assert text == source and "CallBlock" in notes[0]


def test_a_rewriting_with_another_text_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "runtime_template", lambda *_: ("other", True))
    text, notes = written(TRIMMED)
    assert text == TRIMMED and "without another text" in notes[0]


def test_internlm2s_template_gives_way_to_one_for_tools() -> None:
    text, _ = written(TOOL_TEMPLATE, "{{ tools | length }}")
    assert (text is not None and text.startswith("{# the runtime")) or "{% if tools %}" in str(text)
