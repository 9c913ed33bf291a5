"""Chat templates as transformers reads and renders them.

Source: `_compile_jinja_template` in transformers' `utils/chat_template_utils.py`. A template is
somebody else's program: it runs in Jinja's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from converter.errors import Problem, first_line

Conversation = Sequence[Mapping[str, Any]]


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says; its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def environment(trim: bool = True) -> ImmutableSandboxedEnvironment:
    """The environment that transformers compiles templates in; `trim` false leaves blanks."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=trim, lstrip_blocks=trim, extensions=[_Generation, loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def syntax_problem(source: str, where: str) -> Problem | None:
    """What keeps Jinja from reading a template; None when nothing does."""
    try:
        environment().from_string(source)
    except TemplateSyntaxError as error:
        return Problem(
            f"The chat template of {where} is no Jinja template: line {error.lineno}: "
            f"{first_line(error)}.",
            "a whole template, as transformers renders it",
            "fetch the file again, or correct chat_template",
        )
    except (TemplateError, RecursionError) as error:
        found = f"The chat template of {where} cannot be compiled: {first_line(error)}."
        return Problem(found, "a template that transformers renders", "correct chat_template")
    return None


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    return environment().from_string(source)


class RenderError(Exception):
    """A template refuses a conversation, or fails on it; the text says how."""

    @property
    def is_failure(self) -> bool:
        """Whether it failed as a program does, by splitting at nothing, say; it did not refuse."""
        return not isinstance(self.__cause__, TemplateError)


def render(
    source: str,
    messages: Conversation,
    tools: Sequence[Mapping[str, Any]] | None,
    generation: bool,
    names: Mapping[str, str],
) -> str:
    """The text that transformers makes of a conversation.

    Args:
        source: a template whose syntax is right.
        messages: the conversation.
        tools: functions that the model may call, in OpenAI's form.
        generation: whether the beginning of an answer follows.
        names: texts of `bos_token` and the like.

    Raises:
        RenderError: the template raises.
    """
    try:
        return _compiled(source).render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=generation,
            **names,
        )  # fmt: skip
    except Exception as error:  # a template can fail in any way that a program can
        raise RenderError(str(error)) from error
