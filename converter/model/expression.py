"""Small expressions over config.json: `config.head_dim | config.hidden_size / 4`.

They are data: parsed here, never run as Python, so that a description from elsewhere can do no
more than read config.json and calculate.

    value  := sum ("|" sum)*              the first that config.json has (null counts as not there)
    sum    := term (("+" | "-") term)*
    term   := power (("*" | "/") power)*
    power  := factor ("**" power)?
    factor := "-" factor | number | word | "config." path | "sqrt(" value ")" | "(" value ")"

A word stands for itself (`silu`); `null`, `true` and `false` are what they are in JSON.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

CONFIG = "config"
_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?)|([A-Za-z_][\w.\-]*)|(\*\*|[-+*/|()]))")
_WORDS = {"null": None, "true": True, "false": False}
_MOST_CHARACTERS = 500
_LARGEST_POWER = 64


class ExpressionError(ValueError):
    """An expression that cannot be read or calculated; its text says why."""


@dataclass
class Reader:
    """Evaluates expressions over one config.json and remembers which keys they asked for."""

    config: Mapping[str, Any]
    read: set[str] = field(default_factory=set)
    """Dotted paths that any expression names, whether config.json has them or not."""

    def value(self, text: Any) -> Any:
        """The value of an expression; anything that is no text is its own value.

        Raises:
            ExpressionError: it cannot be parsed, or calculates with what is no number.
        """
        if not isinstance(text, str):
            return text
        tokens = _tokens(text)
        value = _Parser(tokens, self._at).whole()
        return value

    def _at(self, path: str) -> Any:
        self.read.add(path)
        found: Any = self.config
        for part in path.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found


def _tokens(text: str) -> list[str]:
    if len(text) > _MOST_CHARACTERS:
        raise ExpressionError(f"it has more than {_MOST_CHARACTERS} characters")
    found, place = list[str](), 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ExpressionError(f"{text[place:].strip()[:20]!r} is neither a value nor a sign")
        found.append(match[0].strip())
        place = match.end()
    return found


class _Parser:
    """Recursive descent; evaluates as it reads, so alternatives are all looked at."""

    def __init__(self, tokens: list[str], at: Callable[[str], Any]) -> None:
        self._tokens, self._at, self._place = tokens, at, 0

    def whole(self) -> Any:
        value = self._alternatives()
        if self._next() is not None:
            raise ExpressionError(f"{self._next()!r} comes where it should end")
        return value

    def _next(self) -> str | None:
        return self._tokens[self._place] if self._place < len(self._tokens) else None

    def _take(self, *wanted: str) -> str | None:
        token = self._next()
        if token in wanted:
            self._place += 1
            return token
        return None

    def _alternatives(self) -> Any:
        value = self._sum()
        while self._take("|"):
            other = self._sum()
            value = other if value is None else value
        return value

    def _sum(self) -> Any:
        value = self._term()
        while sign := self._take("+", "-"):
            value = _calculate(sign, value, self._term())
        return value

    def _term(self) -> Any:
        value = self._power()
        while sign := self._take("*", "/"):
            value = _calculate(sign, value, self._power())
        return value

    def _power(self) -> Any:
        value = self._factor()
        if self._take("**"):
            return _calculate("**", value, self._power())
        return value

    def _factor(self) -> Any:
        if self._take("-"):
            return _calculate("-", 0, self._factor())
        if self._take("("):
            return self._closed()
        token = self._next()
        if token is None or not re.match(r"[\w]", token):
            raise ExpressionError(f"a value is missing before {token or 'the end'}")
        self._place += 1
        if token[0].isdigit():
            return float(token) if re.search(r"[.eE]", token) else int(token)
        if token == "sqrt" and self._take("("):
            return _calculate("**", self._closed(), 0.5)
        if token.startswith(f"{CONFIG}."):
            return self._at(token.removeprefix(f"{CONFIG}."))
        return _WORDS.get(token, token)

    def _closed(self) -> Any:
        value = self._alternatives()
        if not self._take(")"):
            raise ExpressionError("a bracket is not closed")
        return value


def _calculate(sign: str, left: Any, right: Any) -> Any:
    """The result of two numbers; None where either is None."""
    if left is None or right is None:
        return None
    for value in (left, right):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ExpressionError(f"{value!r} is no number")
    try:
        return _CALCULATIONS[sign](left, right)
    except (ArithmeticError, ValueError) as error:
        raise ExpressionError(f"{left!r} {sign} {right!r} has no result") from error


def _power(left: float, right: float) -> float:
    if abs(right) > _LARGEST_POWER or (left < 0 and right != int(right)):
        raise ValueError
    result = float(float(left) ** right)
    if not math.isfinite(result):
        raise ValueError
    return result


def _quotient(left: float, right: float) -> float:
    """A whole number where it is one: sizes stay int."""
    if isinstance(left, int) and isinstance(right, int) and right and left % right == 0:
        return left // right
    return left / right


_CALCULATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": _quotient,
    "**": _power,
}
