"""The metadata of a GGUF file's architecture, read key by key; what is left unread is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem
from converter.gguf.architectures import WITHOUT_EFFECT
from converter.model.json_schema import shown

SHOWN = 6
"""Unread keys that a problem names."""


class Metadata:
    """The keys behind `ARCHITECTURE.`, with the file for error messages."""

    def __init__(self, path: Path, values: Mapping[str, Any], architecture: str) -> None:
        self.path, self.values, self.architecture = path, values, architecture
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `ARCHITECTURE.key`, any type."""
        name = f"{self.architecture}.{key}"
        self._read.add(name)
        return self.values.get(name, default)

    def number(self, key: str, default: float | None = None) -> float | None:
        """A number; raises `ConvertError` for a value of another type."""
        value = self.get(key, default)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        raise self.refused(key, value, "a number")

    def size(self, key: str, default: int | None = None) -> int:
        """A positive number, which a list may state of every layer alike.

        Raises:
            ConvertError: it is missing, no such number, or differs between layers.
        """
        value = self.get(key, default)
        if isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        raise self.refused(key, value, "a positive number, the same for all layers")

    def refused(self, key: str, value: Any, expected: str) -> ConvertError:
        """The error of a value that cannot be used."""
        name = f"{self.architecture}.{key}"
        found = f"no {name}" if value is None else f"{name}={shown(value)}"
        return ConvertError(
            Problem(
                f"{self.path} has {found}.",
                expected,
                "take a file that llama.cpp's converter wrote",
            )
        )

    def unread_problems(self) -> Iterator[Problem]:
        """The problem of keys that may have an effect and that nothing has read."""
        prefix = f"{self.architecture}."
        known = self._read | {prefix + key for key in WITHOUT_EFFECT}
        left = [
            key
            for key, value in self.values.items()
            if key.startswith(prefix) and key not in known and not _is_nothing(value)
        ]
        if left:
            found = ", ".join(f"{key}={shown(self.values[key])}" for key in left[:SHOWN])
            more = f" and {len(left) - SHOWN} more keys" if len(left) > SHOWN else ""
            yield Problem(
                f"{self.path} has {found}{more}, which nothing reads.",
                f"keys of the architecture {self.architecture} as convert knows it",
                "take the checkpoint that the file was made from, and give its folder",
            )


def _is_nothing(value: Any) -> bool:
    """Whether a value stands for a part that the model does not have, such as experts."""
    return value is None or value is False or (not isinstance(value, str) and value == 0)
