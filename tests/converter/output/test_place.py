from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.output.place import output_problems
from converter.recipe.schema import Recipe
from converter.storage.cache import FOLDER_VARIABLE
from converter.storage.staging import LOCK


def found(recipe: Recipe) -> list[str]:
    assert recipe.output is not None
    return [str(problem) for problem in output_problems(recipe, Path(recipe.output).resolve())]


def test_overwriting_replaces_a_conversion_or_an_empty_folder_alone(tmp_path: Path) -> None:
    output = tmp_path / "out"
    recipe = Recipe(output=str(output), overwrite=True)
    assert found(recipe) == []
    output.mkdir()
    assert found(recipe) == []
    (output / "thesis.md").write_text("mine")
    (problem,) = found(recipe)
    assert "holds thesis.md, but no convert.lock.json" in problem
    (output / LOCK).write_text("{}")
    assert found(recipe) == []
    recipe.output = str(output / "thesis.md")
    (problem,) = found(recipe)
    assert "which is no folder" in problem


def name_source(recipe: Recipe, path: Path) -> None:
    recipe.source.path = str(path)


def name_calibration(recipe: Recipe, path: Path) -> None:
    recipe.calibration.text = str(path / "text")


def name_evaluation(recipe: Recipe, path: Path) -> None:
    recipe.evaluate.text = str(path / "text")


@pytest.mark.parametrize("named", [name_source, name_calibration, name_evaluation])
@pytest.mark.parametrize("above", [False, True])
def test_what_the_run_reads_is_not_overwritten(
    tmp_path: Path, named: Callable[[Recipe, Path], None], above: bool
) -> None:
    place = tmp_path / "out" / "inner" if above else tmp_path / "out"
    place.mkdir(parents=True)
    for path in (tmp_path / "out" / LOCK, place / "text"):
        path.write_text("{}")
    recipe = Recipe(output=str(tmp_path / "out"), overwrite=True)
    assert found(recipe) == []
    named(recipe, place)
    (problem,) = found(recipe)
    assert "would remove" in problem


def test_places_of_the_user_are_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "out" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "out" / LOCK).write_text("{}")
    recipe = Recipe(output=str(tmp_path / "out"), overwrite=True)
    ways: tuple[tuple[Callable[[], None], str], ...] = (
        (lambda: monkeypatch.chdir(inner), "the folder you work in"),
        (lambda: monkeypatch.setenv("HOME", str(inner)), "your home folder"),
        (lambda: monkeypatch.setenv(FOLDER_VARIABLE, str(inner)), "the cache"),
    )
    for enter, named in ways:
        enter()
        (problem,) = found(recipe)
        assert named in problem
        monkeypatch.undo()


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (problem,) = found(Recipe(output=str(tmp_path / "file" / "out")))
    assert "is a file" in problem and "set output=FOLDER" in problem
    refused: Any = lambda *_: False  # noqa: E731
    monkeypatch.setattr("os.access", refused)
    (problem,) = found(Recipe(output=str(tmp_path / "out")))
    assert f"{tmp_path} is not writable" in problem
