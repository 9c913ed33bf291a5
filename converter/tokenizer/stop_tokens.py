"""The tokens that end an answer, united from every file that names one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from converter.errors import Problem, gathered
from converter.model.json_schema import shown
from converter.tokenizer.jinja import RenderError, render
from converter.tokenizer.settings import TOKENIZER_CONFIG, TOKENS_MAP, token_text

_ANSWER = "An answer."
_REMEDY = 'set "eos_token_id" in generation_config.json to an id or a list of ids'


@dataclass
class StopTokens:
    """Ids in the order in which they were found, where each comes from, and what is wrong."""

    origins: dict[int, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(self.origins)

    def add(self, index: int, origin: str) -> None:
        """Add an id that `origin` names; the first that names it is kept."""
        self.origins.setdefault(index, origin)

    def notes(self) -> list[str]:
        """Where they come from, when one file alone does not name them all."""
        if len(set(self.origins.values())) < 2:
            return []
        named = (f"{index} from {origin}" for index, origin in self.origins.items())
        return [f"stop tokens united: {', '.join(named)}"]


def stop_tokens(
    settings: Mapping[str, Any], turn_end: str | None, ids: Mapping[str, int]
) -> StopTokens:
    """Unite the stop tokens.

    Args:
        settings: contents of the JSON files, by name; the tokenizer's name an `eos_token`.
        turn_end: what the chat template writes behind an answer.
        ids: id of every text of the tokenizer.
    """
    found = StopTokens()
    for name in ("generation_config.json", "config.json"):
        value = settings.get(name, {}).get("eos_token_id")
        for index in value if isinstance(value, list) else [] if value is None else [value]:
            if _is_id(index):
                found.add(int(index), name)
            else:
                found.problems.append(_no_id(name, value))
    for name in (TOKENIZER_CONFIG, TOKENS_MAP):
        text = token_text(settings.get(name, {}).get("eos_token"))
        if text is not None and text in ids:
            found.add(ids[text], f"eos_token of {name}")
    if turn_end is not None and turn_end in ids:
        found.add(ids[turn_end], f"the chat template, whose turns end with {turn_end}")
    return found


def stop_problems(stops: StopTokens, vocab_size: int) -> Iterator[Problem]:
    """What keeps a generation from ending at these tokens."""
    if not stops.origins and not stops.problems:
        yield Problem("No stop token is named anywhere.", "an eos_token_id", _REMEDY)
    yield from row_problems(stops, vocab_size)


def row_problems(stops: StopTokens, vocab_size: int) -> Iterator[Problem]:
    """Stop tokens that are no ids, or that the model has no row for."""
    yield from gathered(stops.problems)
    yield from gathered(
        Problem(
            f"The stop token {index} of {origin} has no row.",
            f"an id below {vocab_size}",
            _REMEDY,
        )
        for index, origin in stops.origins.items()
        if not 0 <= index < vocab_size
    )


def turn_end(template: str, names: Mapping[str, str], tokens: Mapping[str, int]) -> str | None:
    """The added token that the template writes right behind an assistant's answer."""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = render(template, messages, None, False, names)
    except RenderError:
        return None
    behind = text.rpartition(_ANSWER)[2].lstrip() if _ANSWER in text else ""
    fitting = [token for token in tokens if token and behind.startswith(token)]
    return max(fitting, key=len, default=None)


def _is_id(value: Any) -> bool:
    return type(value) is int or (isinstance(value, float) and value.is_integer())


def _no_id(name: str, value: Any) -> Problem:
    found = f"{name} has eos_token_id={shown(value)}."
    return Problem(found, "a whole number, or a list of them", _REMEDY)
