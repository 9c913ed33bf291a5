from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime_genai")

from converter.engine.execution import run_recipe
from converter.engine.registry import make_passes
from converter.speed import tuning
from converter.speed.tuning import CHUNK_SIZE, SPINNING, THREADS, candidates, tune


@pytest.fixture
def folder(make_recipe: Callable[..., Any], tmp_path: Path) -> Path:
    recipe = make_recipe("target.threads=2")
    recipe.output = str(tmp_path / "model")
    return run_recipe(recipe, make_passes(["load", "layout", "graph", "quantize", "package"]))


def fake_machine(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[Any], float]) -> None:
    """Runs take the time that `seconds` says of the folder's genai_config.json."""

    def run_once(folder: Path, lengths: Any, new_tokens: int) -> dict[str, Any]:
        config = json.loads((folder / "genai_config.json").read_text())
        assert (folder / "model.onnx").exists()
        return {"first_token": {str(lengths[-1]): seconds(config)}, "token": [0.0]}

    monkeypatch.setattr(tuning, "run_once", run_once)


def test_the_fastest_of_every_setting_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(config: Any) -> Any:
        options = config["model"]["decoder"]["session_options"]
        chunk = config["search"].get("chunk_size", 1000)
        spinning = options.get("session.intra_op.allow_spinning", "1")
        return 10 - options["intra_op_num_threads"] + float(spinning) + chunk / 1000

    fake_machine(monkeypatch, seconds)
    before = (folder / "genai_config.json").read_bytes()
    found = tune(folder, candidates(logical=8, physical=4))
    assert found.best.settings == {THREADS: 8, SPINNING: "0", CHUNK_SIZE: 128}
    assert found.best.seconds < found.start.seconds
    assert found.start.settings == {THREADS: 2, SPINNING: None, CHUNK_SIZE: None}
    assert (folder / "genai_config.json").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_noise_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(config: Any) -> Any:
        return 10 - 0.01 * config["model"]["decoder"]["session_options"]["intra_op_num_threads"]

    fake_machine(monkeypatch, seconds)
    found = tune(folder, candidates(logical=8, physical=4))
    assert found.best.settings == found.start.settings


def test_one_trial_of_each_combination(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_machine(monkeypatch, lambda config: 1.0)
    found = tune(folder, {THREADS: [2, 2, 4]})
    assert [trial.settings[THREADS] for trial in found.trials] == [2, 4]


@pytest.mark.slow
def test_a_real_race_measures(folder: Path) -> None:
    found = tune(folder, {THREADS: [1]}, prompt_lengths=(3, 6), new_tokens=3, rounds=1)
    assert {trial.settings[THREADS] for trial in found.trials} == {1, 2}
    assert all(trial.seconds > 0 for trial in found.trials)
