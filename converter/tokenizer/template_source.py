"""The chat template of a checkpoint, in whichever of its files and forms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from converter.errors import Problem
from converter.model.json_schema import shown
from converter.tokenizer.jinja import syntax_problem

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_JSON = "chat_template.json"
TEMPLATE_FOLDER = "additional_chat_templates"
"""Where transformers saves named templates beside the default one."""
CONFIG = "tokenizer_config.json"
TOOL_USE = "tool_use"
"""The named template that transformers takes when tools are given."""


@dataclass
class TemplateSource:
    """What a checkpoint says: the template, the one for tools, and what is to say of them."""

    default: str | None = None
    tool_use: str | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def template_source(settings: Mapping[str, Any]) -> TemplateSource:
    """Choose as transformers does: chat_template.jinja, else tokenizer_config.json.

    `settings` are contents of files by their names; those of `TEMPLATE_FOLDER` by their path.
    """
    given: Any = settings.get(CONFIG, {}).get("chat_template")
    where = CONFIG
    if TEMPLATE_FILE in settings:
        given, where = settings[TEMPLATE_FILE], TEMPLATE_FILE
    elif given is None and TEMPLATE_JSON in settings:
        given, where = settings[TEMPLATE_JSON].get("chat_template"), TEMPLATE_JSON
    named = _named(given)
    if named is None:
        return TemplateSource(problems=[_odd_form(given, where)])
    prefix, suffix = f"{TEMPLATE_FOLDER}/", ".jinja"
    named |= {
        path.removeprefix(prefix).removesuffix(suffix): text
        for path, text in settings.items()
        if path.startswith(prefix)
    }
    return _chosen(named, where)


def _named(given: Any) -> dict[str, str] | None:
    """Templates by name, `default` for the only one; None for a form that is none."""
    if given is None:
        return {}
    if isinstance(given, str):
        return {"default": given}
    if not isinstance(given, list) or not all(map(_is_entry, given)):
        return None
    return {entry["name"]: entry["template"] for entry in given}


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), str) for key in ("name", "template")
    )


def _odd_form(given: Any, where: str) -> Problem:
    return Problem(
        f"{where} has a chat_template that is no template: {shown(given)}.",
        "a text, or a list of objects with the texts name and template",
        "correct chat_template, or remove it for a model that only continues text",
    )


def _chosen(named: dict[str, str], where: str) -> TemplateSource:
    found = TemplateSource(named.get("default"), named.get(TOOL_USE))
    if found.default is None and len(named) == 1:
        ((name, found.default),) = named.items()
        found.tool_use = None
        found.notes.append(f"the only chat template, {name}, is taken for every conversation")
    elif found.default is None and named:
        found.problems.append(_no_default(sorted(named), where))
    left_out = sorted(set(named) - {"default", TOOL_USE}) if found.default else []
    if left_out and len(named) > 1:
        found.notes.append(
            f"the folder has one chat template; {', '.join(left_out)} of {where} are left out"
        )
    found.problems += _syntax_problems(found, where)
    return found


def _no_default(names: list[str], where: str) -> Problem:
    return Problem(
        f"{where} has the chat templates {', '.join(names)}, and none is the default.",
        "a template named default, which transformers takes for a plain conversation",
        "set the name of one of them to default",
    )


def _syntax_problems(found: TemplateSource, where: str) -> Iterator[Problem]:
    for template in (found.default, found.tool_use):
        problem = None if template is None else syntax_problem(template, where)
        if problem is not None:
            yield problem
