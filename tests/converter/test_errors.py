"""Problems that come from two places and are said at once."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from converter.errors import (
    LONGEST_LINE,
    ConvertError,
    Problem,
    first_line,
    gathered,
    together_with,
)

ROOT = Path(__file__).resolve().parents[2]
FIELDS = ("found", "expected", "remedy")
VALUE = "‹›"
"""Stands for a value that is put into a literal."""
SMALL_NAMES = ("onnxruntime", "onnxruntime-genai", "olive-ai", "git")
"""Names that are written in lower case, with which a sentence may begin."""
LARGE_NAMES = ("Linux", "Olive", "Git")
"""Names that are written with one capital, with which a phrase may begin."""
IMPERATIVES = """
accept add allow break calibrate change check choose connect convert copy correct delete
describe evaluate fetch free give implement install leave let loosen lower mend move put raise
reduce remove rename replace report restore run save send set split start state sweep take
uninstall use wait write
"""
PROGRAMS = ("convert", "pip", "mkdir", "mv", "eval", "export")


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


def test_a_problem_is_short_whatever_a_file_holds() -> None:
    problem = Problem(f"a.json has {'x' * 9999}.", "y" * 9999, "z" * 9999, where="w" * 9999)
    lines = str(problem).splitlines()
    assert max(map(len, lines)) <= LONGEST_LINE and len(lines) == 3
    assert lines[0].startswith("www") and lines[0].endswith("xxx.")


def test_of_many_problems_alike_the_first_is_said_and_their_number() -> None:
    def shards(count: int) -> list[Problem]:
        return [Problem(f"{number} is gone.", "a shard", "fetch it") for number in range(count)]

    other = Problem("b is bad.", "a sound file", "mend it")
    assert list(gathered([*shards(3), other])) == [*shards(3), other]
    first, second = gathered([*shards(2), other, *shards(7)[2:]])
    assert first == replace(shards(1)[0], found="0 is gone. There are 6 more of this kind.")
    assert second == other


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


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("No such thing.\nLook elsewhere."), "No such thing"),
        (ValueError("  it broke"), "it broke"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_the_first_line_of_another_librarys_error_fits_into_a_sentence(
    error: Exception, expected: str
) -> None:
    assert first_line(error) == expected


class _Literals:
    """The texts that an expression can stand for, as far as they are literals of its module."""

    def __init__(self, module: ast.Module) -> None:
        self._module = module
        self._functions = [n for n in ast.walk(module) if isinstance(n, ast.FunctionDef)]

    def problems(self) -> Iterator[tuple[int, list[list[str]]]]:
        """The line of each problem, and what its found, expected and remedy can be."""
        for node in ast.walk(self._module):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Problem":
                named = {item.arg: item.value for item in node.keywords}
                given = [*node.args, *(named[f] for f in FIELDS if f in named)]
                yield node.lineno, [self._texts(item) for item in given if _is_text(item)]

    def _texts(self, node: ast.expr) -> list[str]:
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=parts):
                return [
                    "".join(str(p.value) if isinstance(p, ast.Constant) else VALUE for p in parts)
                ]
            case ast.IfExp(body=first, orelse=second):
                return [*self._texts(first), *self._texts(second)]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                ends = self._texts(right) or [VALUE]
                return [start + end for start in self._texts(left) for end in ends]
            case ast.Name(id=name):
                return [text for value in self._assigned(name, node) for text in self._texts(value)]
        return []

    def _assigned(self, name: str, user: ast.expr) -> Iterator[ast.expr]:
        """What the function around `user`, or else the module, assigns to `name`."""
        around = [f for f in self._functions if any(n is user for n in ast.walk(f))]
        for scope in [*around[-1:], self._module]:
            nodes = ast.walk(scope) if scope is not self._module else self._module.body
            found = [
                node.value
                for node in nodes
                if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == [name]
            ]
            if found:
                yield from found
                return


def _is_text(node: ast.expr) -> bool:
    return not isinstance(node, ast.Starred)


def _modules() -> list[Path]:
    return sorted([*ROOT.glob("converter/**/*.py"), *ROOT.glob("passes/*.py")])


def _departures(field: str, text: str) -> Iterator[str]:
    """How a text departs from the form that the docstring of `Problem` states."""
    first = text.split(" ")[0]
    if field == "found":
        if not text.endswith("."):
            yield "ends without a full stop"
        if first[:1].islower() and first not in SMALL_NAMES and not re.search(r"[._=]", first):
            yield "starts in lower case"
    elif text.endswith((".", "!")):
        yield "ends with a full stop"
    if field == "expected" and first[:1].isupper() and not _is_name(first):
        yield "starts with a capital"
    begins = first.rstrip(",") in (*IMPERATIVES.split(), *PROGRAMS) or text.startswith((VALUE, "`"))
    if field == "remedy" and not begins:
        yield "starts without an imperative or a command"
    if any(len(part.split()) >= 30 for part in re.split(r"[.;:] ", text)):
        yield "has 30 words or more"
    if not text:
        yield "is empty"


def _is_name(word: str) -> bool:
    return word.strip(",;'") in LARGE_NAMES or any(char.isupper() for char in word[1:])


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_problem_has_the_form_that_its_class_states(path: Path) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {field} {departure}: {text!r}"
        for line, fields in _Literals(ast.parse(path.read_text(encoding="utf-8"))).problems()
        for field, texts in zip(FIELDS, fields, strict=False)
        for text in texts
        for departure in _departures(field, text)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("field", "text", "departure"),
    [
        ("found", f"{VALUE} is broken.", None),
        ("found", "quant.bits=5.", None),
        ("found", f"The disk failed: {VALUE}", "ends without a full stop"),
        ("found", "the disk failed.", "starts in lower case"),
        ("expected", "UTF-8 text", None),
        ("expected", "a file.", "ends with a full stop"),
        ("expected", "A file", "starts with a capital"),
        ("remedy", "convert list", None),
        ("remedy", "Fetch it", "starts without an imperative or a command"),
        ("remedy", "the file is kept", "starts without an imperative or a command"),
        ("remedy", "write " + "word " * 29, "has 30 words or more"),
    ],
)
def test_what_departs_from_the_form(field: str, text: str, departure: str | None) -> None:
    assert [*_departures(field, text)] == ([departure] if departure else [])


def test_names_and_alternatives_stand_for_their_literals() -> None:
    source = """
ELSEWHERE = "set output=FOLDER"
def f(x):
    found = f"{x} is broken."
    return Problem(found, "a" if x else "b", ELSEWHERE)
"""
    (problem,) = _Literals(ast.parse(source)).problems()
    assert problem == (5, [[f"{VALUE} is broken."], ["a", "b"], ["set output=FOLDER"]])


@pytest.mark.parametrize("name", ["rules", "target_rules", "validation"])
def test_every_rule_of_a_recipe_states_the_keys_that_it_is_about(name: str) -> None:
    module = ast.parse((ROOT / f"converter/recipe/{name}.py").read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(module) if isinstance(n, ast.Call)]
    problems = [call for call in calls if ast.unparse(call.func) == "Problem"]
    lacking = [call.lineno for call in problems if "key" not in {k.arg for k in call.keywords}]
    assert problems and not lacking
