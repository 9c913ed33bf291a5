"""What goes wrong at the user's end, said once and in full."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

LONGEST_LINE = 1000
"""Characters of a line of a problem; a file's own texts can be of any length."""
LISTED_ALIKE = 3
"""Problems that differ in their names only, and are said one by one."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    `found` is a sentence with a full stop. It begins with a capital, a value, a key of a recipe or
    a name. A setting that is wrong stands for a sentence: `threads=0.`
    `expected` is a phrase without a full stop. It begins in lower case, or with a name.
    `remedy` says what to do next, without a full stop: a command to type, or a verb in the
    imperative. Whoever follows it gets further.
    Each sentence has fewer than 30 words. Another library's text goes in by `first_line`.
    """

    found: str
    expected: str = ""
    remedy: str = ""
    key: tuple[str, ...] = field(default=(), kw_only=True)
    """Dotted keys of the recipe whose values it is about; what filters problems reads these."""
    where: str = field(default="", kw_only=True)
    """File, recipe, pass or folder that it was found in."""

    @property
    def headline(self) -> str:
        """What was found, and where."""
        return f"{self.where}: {self.found}" if self.where else self.found

    def __str__(self) -> str:
        lines = [self.headline]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.remedy:
            lines.append(f"  next:     {self.remedy}")
        return "\n".join(map(shortened, lines))

    def at(self, place: str) -> Problem:
        """The same problem, found in `place`; a place that it has already stands behind it."""
        return replace(self, where=f"{place}: {self.where}" if self.where else place)

    def concerns(self, key: str) -> bool:
        """Whether it is about the dotted `key`; a slot's switch decides on all of the slot."""
        slot, _, tail = key.rpartition(".")
        whole = slot if tail == "enabled" else key
        return any(own == whole or own.startswith(f"{whole}.") for own in self.key)


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


def gathered(problems: Iterable[Problem], listed: int = LISTED_ALIKE) -> Iterator[Problem]:
    """The problems; of more than `listed` alike the first, and how many more there are.

    Alike are those with the same `expected` and `remedy`: of a hundred shards, or of tokens.
    """
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault((problem.expected, problem.remedy), []).append(problem)
    for alike in kinds.values():
        if len(alike) <= listed:
            yield from alike
        else:
            count = f"There are {len(alike) - 1} more of this kind."
            yield replace(alike[0], found=f"{alike[0].found} {count}")


def shortened(line: str) -> str:
    """The line, without its middle where it is too long."""
    half = (LONGEST_LINE - 3) // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} … {line[-half:]}"


def first_line(error: BaseException) -> str:
    """The first line of what another library's error says, or else its type; no full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


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
