"""Templates as transformers renders them, without transformers."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from converter.errors import ConvertError
from converter.tokenizer import jinja
from converter.tokenizer.conversations import SAMPLES
from converter.tokenizer.jinja import RenderError, environment, render, syntax_problem

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}\n  {% if m.content %}\n{{ m.role }}\n {% endif %}\n"
    "{% endfor %}\n",
    "{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=2) }}{% break %}{% endfor %}",
    "{{ tools | tojson }}{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}",
    "{% generation %}\n{{ strftime_now('%Y') }}{% endgeneration %}\n{# x #}\n{{ unknown }}",
    "{% if messages | length > 2 %}{{ raise_exception('Too long') }}{% endif %}x",
    "{{ messages[0].content.upper() + 1 }}",
]  # fmt: skip


@pytest.mark.parametrize("source", TEMPLATES)
def test_texts_and_refusals_are_transformers(source: str) -> None:
    theirs = _compile_jinja_template(source)
    for sample in SAMPLES:
        given: dict[str, Any] = {"messages": sample.messages, "tools": sample.tools}
        try:
            expected = theirs.render(documents=None, add_generation_prompt=True, **given, **NAMES)
        except Exception as error:
            with pytest.raises(RenderError) as caught:
                render(source, sample.messages, sample.tools, True, NAMES)
            assert str(caught.value) == str(error)
        else:
            assert render(source, sample.messages, sample.tools, True, NAMES) == expected


def test_a_template_cannot_reach_python() -> None:
    with pytest.raises(RenderError, match="unsafe"):
        render("{{ ''.__class__.__mro__ }}", [], None, False, {})
    with pytest.raises(RenderError):
        render("{{ messages.append(1) }}", [{"role": "user"}], None, False, {})


def test_blanks_are_left_where_nothing_is_trimmed() -> None:
    source = "{% if true %}\na{% endif %}"
    assert environment().from_string(source).render() == "a"
    assert environment(trim=False).from_string(source).render() == "\na"


def test_a_syntax_problem_names_file_and_line() -> None:
    problem = syntax_problem("a\n{{ b", "chat_template.jinja")
    assert problem is not None and "chat_template.jinja" in problem.found
    assert "line 2" in problem.found and syntax_problem("{{ b }}", "x") is None


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% for i in range(n) %}{{ f(n - 1) }}{% endfor %}{% endmacro %}"
        "{{ f(99) }}",
    ],
)
def test_a_template_that_takes_too_many_steps_is_stopped(source: str) -> None:
    begin, tracing = time.monotonic(), sys.gettrace()
    with pytest.raises(ConvertError, match="100,000 steps"):
        render(source, [], None, False, {})
    assert time.monotonic() - begin < 4 and sys.gettrace() is tracing
    assert render("{% for i in range(9999) %}{{ i }}{% endfor %}", [], None, False, {})


def test_a_template_with_long_steps_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja, "SECONDS", 0.05)
    source = "{% for i in range(9999) %}{{ range(99999) | list | length }}{% endfor %}"
    with pytest.raises(ConvertError, match="seconds"):
        render(source, [], None, False, {})
