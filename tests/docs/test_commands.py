"""Every command in a block of the documents has verbs, keys, slots and options that exist."""

from __future__ import annotations

import dataclasses
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from converter.cli.verbs import VERBS, parser_of
from converter.recipe.guest_slots import recipe_schema
from converter.recipe.tree import folders

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
NEEDS_KEYS = ("plan", "synth", "olive-config")
"""Verbs that take nothing but key=value words, which argparse does not check."""
GUEST = "card."
"""The slot of the example of a team's package, which need not be installed."""


def commands() -> Iterator[tuple[str, str]]:
    """Page and command of every line `convert …` in a block."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        blocks = re.findall(r"^```(?:console)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        indented = re.findall(r"^    (convert .*)$", text, re.MULTILINE)
        for line in [*(line for block in blocks for line in block.splitlines()), *indented]:
            if re.match(r"(\$ )?convert ", line):
                yield str(page.relative_to(ROOT)), line.removeprefix("$ ")


def words(command: str) -> list[str]:
    said = shlex.split(command, comments=True)[1:]
    return [word for word in said if "…" not in word and word not in (">", "[key=value")]


@pytest.mark.parametrize(("page", "command"), list(commands()))
def test_a_command_is_one_that_exists(page: str, command: str) -> None:
    verb, *rest = words(command) or ["list"]
    if verb in VERBS:
        parser = parser_of(verb)
        values = vars(parser.parse_args(rest)) if parser else {}
        overrides = values.get("overrides", [])
        assert verb not in NEEDS_KEYS or all("=" in word for word in overrides)
        check_keys(overrides)
    else:
        check_keys([word for word in (verb, *rest) if word != "-m"])


def check_keys(overrides: list[str]) -> None:
    for word in overrides:
        key, equals, _ = word.partition("=")
        assert equals, word
        if key in folders() or key.startswith(("hydra", GUEST)):
            continue
        assert key in known_keys(recipe_schema()), word


def known_keys(schema: type, prefix: str = "") -> set[str]:
    found = set()
    for name, kind in typing.get_type_hints(schema).items():
        found.add(f"{prefix}{name}")
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            found |= known_keys(kind, f"{prefix}{name}.")
    return found
