"""Values of a description (recipes/architecture/), calculated from one config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from converter.errors import Problem
from converter.model.config_file import CONFIG_FILE
from converter.model.expression import ExpressionError, Reader
from converter.model.json_schema import shown
from converter.recipe.schema import GraphConfig, LayoutConfig


class Description(Protocol):
    """What holds a description: a recipe, by its two sections."""

    @property
    def layout(self) -> LayoutConfig: ...
    @property
    def graph(self) -> GraphConfig: ...


class Values:
    """Reads a description's expressions and gathers what is wrong with them."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._reader = Reader(config)
        self.problems: list[Problem] = []

    @property
    def read(self) -> set[str]:
        """Dotted paths of config.json that were asked for."""
        return self._reader.read

    def value(self, key: str, text: Any) -> Any:
        """The value of the recipe's `key`, any type; None where config.json has none."""
        try:
            return self._reader.value(text)
        except ExpressionError as error:
            self.problems.append(
                Problem(
                    f"{key}={text!r} cannot be calculated: {error}.",
                    "a number, a word, or an expression such as config.head_dim | 128",
                    f"correct {key}, or the values of {CONFIG_FILE} that it names",
                    key=(key,),
                )
            )
            return None

    def number(self, key: str, text: Any, default: float) -> float:
        """A number; `default` where config.json has none."""
        value = self.value(key, text)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.refuse(key, value, "a number")
            return default
        return float(value)

    def size(self, key: str, text: Any) -> int:
        """A positive whole number; 1 beside a problem where it is none."""
        value = self.value(key, text)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        self.refuse(key, value, "a positive whole number")
        return 1

    def refuse(self, key: str, value: Any, expected: str) -> None:
        """Note that the value of `key` cannot be used."""
        self.problems.append(
            Problem(
                f"{key} is {shown(value)} for this {CONFIG_FILE}.",
                expected,
                f"correct {CONFIG_FILE}, or {key} in the recipe",
                key=(key,),
            )
        )
