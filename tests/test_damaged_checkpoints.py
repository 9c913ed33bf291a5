"""Damaged checkpoints: each converts, or is refused in a few lines, and leaves nothing behind."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path

import damage
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter.cli.compose import compose_recipe
from converter.engine.execution import find_problems, run_recipe
from converter.engine.registry import make_passes
from converter.errors import ConvertError
from converter.progress import Silent
from converter.recipe.schema import Recipe

SCREEN = 40
"""Lines of a screen,"""
COLUMNS = 120
"""and how many characters each has."""
SECONDS = 20
"""One check takes some hundredths; what takes so long does not end."""
WORDS = ["recipe=internlm2_1_8b_chat_cpu_int4", "quant=rtn", "verify=none", "evaluate=none"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    for name, write in damage.SOURCES.items():
        write(folder / name)
    return {name: folder / name for name in damage.SOURCES}


FUZZING = settings(
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=SECONDS * 1000,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", damage.SOURCES)
@FUZZING
@given(data=st.data())
def test_a_check_finds_what_is_wrong(
    sources: dict[str, Path], name: str, data: st.DataObject
) -> None:
    attempt(sources[name], data.draw(damage.damages(sources[name])), whole=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", damage.SOURCES)
@settings(FUZZING, max_examples=15)
@given(data=st.data())
def test_a_conversion_ends(sources: dict[str, Path], name: str, data: st.DataObject) -> None:
    attempt(sources[name], data.draw(damage.damages(sources[name])), whole=True)


def attempt(source: Path, damages: Sequence[damage.Damage], whole: bool) -> str:
    """Check a damaged copy of `source`, and convert the `whole` of it; give what was refused."""
    with tempfile.TemporaryDirectory() as name:
        copy = shutil.copytree(source, Path(name) / "source")
        for item in damages:
            try:
                item.apply(copy)
            except (ValueError, TypeError):
                return ""  # an earlier one left no JSON to damage
        output = Path(name) / "place" / "output"
        output.parent.mkdir()
        recipe = deepcopy(_recipe())
        recipe.source.path, recipe.output = str(copy), str(output)
        notes = Notes()
        said = refusal(recipe, whole, notes)
        left = [path.name for path in output.parent.iterdir()]
        assert left == ([] if said or not whole else ["output"])
        for text in (said, "\n".join(notes.said)):
            lines = sum(1 + len(line) // COLUMNS for line in text.splitlines())
            assert lines <= SCREEN, text[:3000]
        return said


class Notes(Silent):
    """Keeps what a conversion says on its way."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


@cache
def _recipe() -> Recipe:
    return compose_recipe([*WORDS, "source.path=x", "output=x"])


def refusal(recipe: Recipe, whole: bool, notes: Notes) -> str:
    """What is said against a recipe's checkpoint; any other exception goes through."""
    passes = [item for item in make_passes(recipe.passes) if item.enabled(recipe)]
    try:
        if whole:
            run_recipe(recipe, passes, notes)
            return ""
        return "\n".join(map(str, find_problems(recipe, passes, Path(recipe.output or ""))[1]))
    except ConvertError as error:
        return str(error)
