"""A tokenizer is compared once, and again when anything that decides the result has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from conftest import DEMO

from converter.tokenizer import remembered
from converter.tokenizer.comparison import Comparison, compare_with_runtime
from converter.tokenizer.prepare import TokenizerFiles, prepare_tokenizer
from converter.tokenizer.remembered import remembered_comparison

Ask = Callable[[TokenizerFiles], Comparison]


@cache
def demo() -> TokenizerFiles:
    return prepare_tokenizer(DEMO, 1024)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Grows by one each time that the runtime is really asked; the cache is empty."""
    monkeypatch.setenv("CONVERT_CACHE", str(tmp_path / "cache"))
    count: list[int] = []

    def counting(*arguments: object) -> Comparison:
        count.append(1)
        return compare_with_runtime(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(remembered, "compare_with_runtime", counting)
    return count


def written_as(template: str) -> TokenizerFiles:
    """The demo with a chat template that transformers and the folder both get."""
    config = json.loads(demo().files["tokenizer_config.json"]) | {"chat_template": template}
    files = {**demo().files, "tokenizer_config.json": json.dumps(config).encode()}
    return replace(demo(), files=files, expected=replace(demo().expected, template=template))


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{{ raise_exception('Not “this” one') }}",
    ],
)
def test_what_is_remembered_is_what_was_found(asked: list[int], template: str | None) -> None:
    given = demo() if template is None else written_as(template)
    direct = compare_with_runtime(given.files, given.expected)
    assert [remembered_comparison(given.files, given.expected) for _ in range(3)] == [direct] * 3
    assert asked == [1]
    assert bool(direct.problems or direct.notes) == (template is not None)


def test_other_files_packages_and_expectations_are_asked_anew(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, expected = demo().files, demo().expected
    remembered_comparison(files, expected)
    remembered_comparison({**files, "tokenizer.json": files["tokenizer.json"] + b" "}, expected)
    remembered_comparison(files, replace(expected, names={**expected.names, "pad_token": "!"}))
    monkeypatch.setattr(remembered, "version", lambda package: "99")
    remembered_comparison(files, expected)
    monkeypatch.setattr(remembered, "_code", lambda: "other texts")
    remembered_comparison(files, expected)
    assert len(asked) == 5


def test_nothing_is_remembered_without_the_runtime(
    asked: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from converter.tokenizer import comparison

    for module in (remembered, comparison):
        monkeypatch.setattr(module, "runtime_is_installed", lambda: False)
    found = remembered_comparison(demo().files, demo().expected)
    assert "not installed" in found.notes[0] and not (tmp_path / "cache").exists()


def test_a_cache_that_is_no_folder_does_no_harm(
    asked: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "locks").write_text("in the way")
    found = [remembered_comparison(demo().files, demo().expected) for _ in range(2)]
    assert found[0] == found[1] and found[0].texts > 200 and asked == [1, 1]
