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
from converter.speed.tuning import CHUNK_SIZE, SPINNING, THREADS, candidates, tune
from converter.storage.hashing import hash_file


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


def test_the_pass_writes_settings_that_load_and_their_hash(
    make_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(config: Any) -> Any:
        return 1.0 if config["search"].get("chunk_size") == 128 else 2.0

    fake_machine(monkeypatch, seconds)
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


@pytest.mark.slow
def test_a_real_race_measures(folder: Path) -> None:
    found = tune(folder, {THREADS: [1]}, prompt_lengths=(3, 6), new_tokens=3, rounds=1)
    assert {trial.settings[THREADS] for trial in found.trials} == {1, 2}
    assert all(trial.seconds > 0 for trial in found.trials)


def test_a_tuned_folder_is_reproduced_as_it_was_tuned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slower_with_each(folder: Path, lengths: Any, new_tokens: int) -> dict[str, Any]:
        settings = tuning.read_settings(folder, [CHUNK_SIZE])
        return {"first_token": {"512": 1.0 if settings[CHUNK_SIZE] else 2.0}, "token": [0.0]}

    monkeypatch.setattr(tuning, "run_once", slower_with_each)
    words = ["recipe=demo", "verify=none", "tune=standard", f"output={tmp_path / 'tuned'}"]
    recipe = compose_recipe(words)
    folder = run_recipe(recipe, make_passes(recipe.passes))
    config = json.loads((folder / "genai_config.json").read_text())
    assert config["search"]["chunk_size"] == 128
    monkeypatch.setattr(tuning, "run_once", lambda *_: pytest.fail("measured again"))
    assert run_verb("reproduce", [str(folder)]) == 0, capsys.readouterr().out
