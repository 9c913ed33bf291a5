"""Problems that come from two places and are said at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from converter.errors import ConvertError, Problem, together_with

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("onnxruntime", "onnxruntime-genai", "olive-ai", "convert", "git")
"""Names that are written in lower case."""


def test_problems_of_both_places_come_in_one_error() -> None:
    with pytest.raises(ConvertError) as caught, together_with([Problem("first")]):
        raise ConvertError(Problem("second"))
    assert [item.found for item in caught.value.problems] == ["first", "second"]


def test_the_context_runs_to_its_end_before_the_problems_are_raised() -> None:
    done = []
    with pytest.raises(ConvertError, match="first"), together_with([Problem("first")]):
        done.append(1)
    assert done == [1]


def test_nothing_is_raised_without_a_problem() -> None:
    with together_with([]):
        pass


def test_a_problem_shows_where_it_was_found_once() -> None:
    problem = Problem("It is broken.", "a sound file", "mend it", where="a.yaml")
    assert str(problem.at("acme")).splitlines() == [
        "acme: a.yaml: It is broken.",
        "  expected: a sound file",
        "  next:     mend it",
    ]
    assert problem.headline == "a.yaml: It is broken."


@pytest.mark.parametrize(
    ("own", "key", "expected"),
    [
        ("quant.bits", "quant.bits", True),
        ("quant.bits", "quant.bit", False),
        ("quant.lm_head.bits", "quant.bits", False),
        ("quant.lm_head.bits", "quant.lm_head", True),
        ("evaluate.max_kld", "evaluate.enabled", True),
        ("evaluated.max_kld", "evaluate.enabled", False),
    ],
)
def test_a_problem_concerns_its_keys_and_what_switches_them(
    own: str, key: str, expected: bool
) -> None:
    assert Problem("x", key=(own,)).concerns(key) is expected


def _literals(node: ast.expr | None) -> str | None:
    """The text of a literal, with a mark for each value that is put into it; None for others."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [str(v.value) if isinstance(v, ast.Constant) else "‹›" for v in node.values]
        return "".join(parts)
    return None


def _said() -> Iterator[tuple[str, list[str | None]]]:
    for path in sorted([*ROOT.glob("converter/**/*.py"), *ROOT.glob("passes/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Problem":
                given: list[ast.expr | None] = [*node.args, None, None, None]
                texts = [_literals(item) for item in given[:3]]
                yield f"{path.relative_to(ROOT)}:{node.lineno}", texts


def test_every_problem_has_the_form_that_its_class_states() -> None:
    wrong = []
    for place, (found, expected, remedy) in _said():
        if found and not found.endswith((".", "‹›")):
            wrong.append(f"{place}: found ends without a full stop: {found!r}")
        first = found.split(" ")[0] if found else ""
        if first[:1].islower() and not (first in NAMES or "=" in first or "." in first):
            wrong.append(f"{place}: found starts in lower case: {found!r}")
        for name, text in (("expected", expected), ("remedy", remedy)):
            if text and text.endswith(".") and not text.endswith("…"):
                wrong.append(f"{place}: {name} ends with a full stop: {text!r}")
        for text in (found, expected, remedy):
            if text and any(len(part.split()) > 30 for part in text.split(". ")):
                wrong.append(f"{place}: more than 30 words: {text!r}")
    assert not wrong, "\n".join(wrong)
