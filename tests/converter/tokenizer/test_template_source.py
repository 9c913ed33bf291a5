"""The chat template in the files and forms that checkpoints have."""

from __future__ import annotations

from typing import Any

import pytest

from converter.tokenizer.template_source import template_source


def config(template: Any) -> dict[str, Any]:
    return {"tokenizer_config.json": {"chat_template": template}}


def named(**templates: str) -> list[dict[str, str]]:
    return [{"name": name, "template": text} for name, text in templates.items()]


@pytest.mark.parametrize(
    ("settings", "default", "tool_use"),
    [
        ({}, None, None),
        (config(None), None, None),
        (config("a"), "a", None),
        (config(named(default="a")), "a", None),
        (config(named(default="a", tool_use="b")), "a", "b"),
        (config("a") | {"chat_template.jinja": "new"}, "new", None),
        ({"chat_template.json": {"chat_template": "old"}}, "old", None),
        (config("a") | {"chat_template.json": {"chat_template": "old"}}, "a", None),
        ({"chat_template.jinja": "a", "additional_chat_templates/tool_use.jinja": "b"}, "a", "b"),
    ],
)
def test_where_transformers_finds_it(
    settings: dict[str, Any], default: str | None, tool_use: str | None
) -> None:
    found = template_source(settings)
    assert (found.default, found.tool_use) == (default, tool_use)
    assert found.notes == [] == found.problems


def test_the_only_one_of_a_list_is_taken_and_said() -> None:
    found = template_source(config(named(tool_use="b")))
    assert (found.default, found.tool_use) == ("b", None)
    assert "tool_use" in found.notes[0] and found.problems == []


def test_several_without_a_default_are_a_problem() -> None:
    (problem,) = template_source(config(named(rag="a", tool_use="b"))).problems
    assert "rag, tool_use" in problem.found and "default" in problem.expected


def test_templates_with_other_names_are_left_out_and_said() -> None:
    found = template_source(config(named(default="a", rag="b")))
    assert found.default == "a" and "rag" in found.notes[0]


@pytest.mark.parametrize(
    "form",
    [5, True, {"default": "a"}, ["a"], [{"name": "default"}], [{"template": "a"}],
     [{"name": 1, "template": "a"}], [{"name": "default", "template": None}], [None]],
)  # fmt: skip
def test_a_form_that_is_no_template_is_refused(form: Any) -> None:
    (problem,) = template_source(config(form)).problems
    assert "chat_template" in problem.found


@pytest.mark.parametrize(
    "text", ["{{ a ", "{% for m in messages %}", "{% nonsense %}", "{{ a | }}", "{% endif %}"]
)
def test_a_broken_template_is_refused_wherever_it_stands(text: str) -> None:
    for settings in (config(text), {"chat_template.jinja": text},
                     config(named(default="a", tool_use=text))):  # fmt: skip
        (problem,) = template_source(settings).problems
        assert "no Jinja template" in problem.found and "line 1" in problem.found
