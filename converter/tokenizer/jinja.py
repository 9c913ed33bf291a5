"""Chat templates as transformers reads and renders them.

Source: `_compile_jinja_template` in transformers' `utils/chat_template_utils.py`. A template is
somebody else's program: it runs in Jinja's sandbox.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from types import FrameType
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from converter.errors import ConvertError, Problem, first_line

Conversation = Sequence[Mapping[str, Any]]
_TEMPLATE_FILE = "<template>"
"""What Jinja calls the file of a template that was given as a text."""
STEPS, SECONDS = 100_000, 5.0
"""What a template may take for one conversation; real ones take some hundred steps."""


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
        ConvertError: it takes more than `STEPS` or `SECONDS`; onnxruntime-genai would take them
            too, and cannot be stopped.
    """
    try:
        with _counted_steps():
            return _compiled(source).render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=generation,
                **names,
            )  # fmt: skip
    except ConvertError:
        raise
    except Exception as error:  # a template can fail in any way that a program can
        raise RenderError(str(error)) from error


@contextmanager
def _counted_steps() -> Iterator[None]:
    """Raise when templates run more than `STEPS` lines of the Python that Jinja makes of them."""
    left, end = STEPS, time.monotonic() + SECONDS

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or time.monotonic() > end:
            most = f"{STEPS:,} steps" if left < 0 else f"{SECONDS:.0f} seconds"
            found = f"The chat template takes more than {most} for one conversation."
            remedy = "correct chat_template in the checkpoint's folder"
            raise ConvertError(Problem(found, "a template that soon ends", remedy))
        return line

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        return line if frame.f_code.co_filename == _TEMPLATE_FILE else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)
