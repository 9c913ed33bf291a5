"""JSON files of checkpoints against schemas: every value of a wrong type becomes a problem.

A schema names the keys that the code reads, and only those. `null` counts as a key left out, as in
transformers' classes, whose defaults apply then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from converter.errors import Problem

LONGEST_SHOWN = 60
"""Characters of a wrong value that a problem shows."""
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
Size = Annotated[int, Field(gt=0, lt=2**31)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class JsonFile(BaseModel):
    """Base of the schemas: no value is coerced, keys that nothing reads are left alone."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


def value_problems(
    schema: type[JsonFile], values: Mapping[str, Any], file: str
) -> Iterator[Problem]:
    """A problem for each key of `values` whose value the schema does not take.

    Args:
        schema: each field's description says what is expected.
        values: the file's content.
        file: its name, for the problems.
    """
    present = {key: value for key, value in values.items() if value is not None}
    try:
        schema.model_validate(present)
    except ValidationError as error:
        for key in dict.fromkeys(str(detail["loc"][0]) for detail in error.errors()):
            expected = schema.model_fields[key].description or "another type of value"
            found = f"{key}={shown(values[key])}" if key in values else f"no {key}"
            yield Problem(f"{file} has {found}.", expected, f"correct {file}")


def surrogate_problem(path: Path, text: str, content: Any) -> Problem | None:
    """A problem when a JSON text escapes half of a character, which no other file can hold."""
    if not _HALF.search(text):
        return None
    try:
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start]).strip("'")
        return Problem(
            f"{path} holds {half}, half of a character in UTF-16.",
            "texts of whole characters",
            "correct the text, or fetch the file again",
        )
    return None


def shown(value: Any) -> str:
    """A value as a problem shows it, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, lists in lists
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"
