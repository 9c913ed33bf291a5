"""What goes wrong at the user's end, said once and in full."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what was found (and where), what was expected, what to do next."""

    found: str
    expected: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        lines = [self.found]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.remedy:
            lines.append(f"  next:     {self.remedy}")
        return "\n".join(lines)


class ConvertError(Exception):
    """Every problem found at one point, together. The command prints it and exits with 1."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def raise_if(problems: Iterable[Problem]) -> None:
    """Raise one `ConvertError` that lists all `problems`; do nothing when there are none."""
    found = tuple(dict.fromkeys(problems))
    if found:
        raise ConvertError(found)


@contextmanager
def together_with(problems: Iterable[Problem]) -> Iterator[None]:
    """Raise `problems` at the end of the context, together with those that it raises itself."""
    found = list(problems)
    try:
        yield
    except ConvertError as error:
        raise_if([*found, *error.problems])
        raise
    raise_if(found)
