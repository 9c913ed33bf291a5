"""The pass tune: what it asks of a recipe, what it writes, and that it is not done twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime_genai")

from converter.cli.compose import compose_recipe
from converter.cli.verbs import run_verb
from converter.engine.execution import run_recipe
from converter.engine.registry import make_passes
from converter.speed import tuning
from converter.speed.tuning import CHUNK_SIZE
from converter.storage.hashing import hash_file
from passes.tune import Tune


@pytest.fixture
def chunks_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any chunk size halves the time that a run takes."""

    def run_once(folder: Path, lengths: Any, new_tokens: int) -> dict[str, Any]:
        chunk = tuning.read_settings(folder, [CHUNK_SIZE])[CHUNK_SIZE]
        return {"first_token": {str(lengths[-1]): 1.0 if chunk else 2.0}, "token": [0.0]}

    monkeypatch.setattr(tuning, "run_once", run_once)


def test_settings_are_written_with_their_hash_and_load(
    make_recipe: Callable[..., Any], tmp_path: Path, chunks_are_faster: None
) -> None:
    recipe = make_recipe("tune=standard", "target.threads=2", "verify=standard")
    recipe.output = str(tmp_path / "out")
    passes = ["load", "layout", "graph", "quantize", "package", "tune", "verify"]
    output = run_recipe(recipe, make_passes(passes))
    config = json.loads((output / "genai_config.json").read_text())
    assert config["search"]["chunk_size"] == 128
    lock = json.loads((output / "convert.lock.json").read_text())
    assert lock["files"]["genai_config.json"]["blake3"] == hash_file(output / "genai_config.json")
    assert lock["facts"]["tune"]["settings"][CHUNK_SIZE] == 128
    assert lock["facts"]["tune"]["seconds_before"] == 2.0


def test_a_tuned_folder_is_reproduced_as_it_was_tuned(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    chunks_are_faster: None,
) -> None:
    words = ["recipe=demo", "verify=none", "tune=standard", f"output={tmp_path / 'tuned'}"]
    recipe = compose_recipe(words)
    folder = run_recipe(recipe, make_passes(recipe.passes))
    config = json.loads((folder / "genai_config.json").read_text())
    assert config["search"]["chunk_size"] == 128
    monkeypatch.setattr(tuning, "run_once", lambda *_: pytest.fail("measured again"))
    assert run_verb("reproduce", [str(folder)]) == 0, capsys.readouterr().out


def test_it_runs_only_where_the_recipe_asks(make_recipe: Callable[..., Any]) -> None:
    assert Tune().enabled(make_recipe("tune=standard"))
    assert not Tune().enabled(make_recipe("tune=none"))


def test_a_provider_without_such_settings_is_refused(make_recipe: Callable[..., Any]) -> None:
    assert list(Tune().requires(make_recipe("tune=standard"), None)) == []
    (problem,) = Tune().requires(make_recipe("tune=standard", "target=dml"), None)
    assert problem.found == "tune.enabled=true for the dml execution provider."
    assert problem.remedy == "set tune=none"
