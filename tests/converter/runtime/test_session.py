"""Folders that onnxruntime-genai cannot load, and what is said of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime_genai")

from converter.cli.compose import compose_recipe
from converter.engine.execution import run_recipe
from converter.engine.registry import make_passes
from converter.errors import ConvertError
from converter.runtime.session import Runtime, number_problems, read_configs


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "model"
    recipe = compose_recipe(["recipe=demo", "verify=none", f"output='{output}'"])
    return run_recipe(recipe, make_passes(recipe.passes))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "model")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def problems(call: Callable[[], Any]) -> list[str]:
    with pytest.raises(ConvertError) as caught:
        call()
    return list(map(str, caught.value.problems))


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_truncated_file_is_named_with_both_sizes(folder: Path, name: str) -> None:
    size = (folder / name).stat().st_size
    cut(folder / name)
    (said,) = problems(lambda: Runtime(folder))
    assert f"{name} has 100 bytes, its lock file says {size:,}" in said
    assert "copy the folder again" in said
    assert "target=cpu" not in said


def test_every_damaged_file_is_named(folder: Path) -> None:
    cut(folder / "model.onnx")
    (folder / "model.onnx.data").unlink()
    said = problems(lambda: Runtime(folder))
    assert len(said) == 2
    assert "model.onnx.data is missing" in said[1]


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_the_template_refuses_is_a_problem_in_its_words(folder: Path) -> None:
    refusing = "{{ bos_token }}{{ raise_exception('System role not supported') }}"
    change(folder / "tokenizer_config.json", chat_template=refusing)
    (said,) = problems(lambda: Runtime(folder).render([{"role": "user", "content": "Hi"}]))
    assert "refuses this conversation: System role not supported." in said and "row" not in said


def test_a_model_without_bos_begins_a_text_after_a_stop_token(folder: Path) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    whole = Runtime(folder)
    assert (whole.bos, whole.start) == ([1], 1)
    del config["model"]["bos_token_id"]
    path.write_text(json.dumps(config))
    bare = Runtime(folder)
    assert bare.bos == [] and bare.start in bare.stops


def test_options_that_the_user_set_are_no_damage(folder: Path) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["provider_options"] = [{"nothing": {}}]
    path.write_text(json.dumps(config, indent=8))
    (said,) = problems(lambda: Runtime(folder))
    assert "lock file" not in said
    assert "target=cpu" in said


def test_a_folder_without_a_lock_file_says_what_the_runtime_says(folder: Path) -> None:
    (folder / "convert.lock.json").unlink()
    cut(folder / "tokenizer.json")
    (said,) = problems(lambda: Runtime(folder))
    assert "cannot load" in said
    assert "target=cpu" not in said


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ([], ["genai_config.json holds a list"]),
        ({}, ["no model section"]),
        ({"model": []}, ["no model section"]),
        (
            {"model": {"context_length": "8", "decoder": []}},
            ['context_length is "8"', "decoder is []"],
        ),
        (
            {"model": {"bos_token_id": None}},
            ["context_length is nothing", "decoder is nothing", "bos_token_id is null"],
        ),
    ],
)
def test_configs_are_objects_with_what_the_runtime_needs(
    tmp_path: Path, config: Any, parts: list[str]
) -> None:
    (tmp_path / "genai_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text("[]")
    said = problems(lambda: read_configs(tmp_path))
    assert len(said) == len(parts) + 1
    for part in [*parts, "tokenizer_config.json holds a list"]:
        assert any(part in item for item in said)


@pytest.mark.parametrize("options", [5, [], {"provider_options": [5]}, {"provider_options": 5}])
def test_session_options_of_another_type_are_refused(folder: Path, options: object) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["model"]["decoder"]["session_options"] = options
    path.write_text(json.dumps(config))
    (said,) = problems(lambda: Runtime(folder))
    assert "genai_config.json" in said


def test_what_is_no_text_is_refused(folder: Path) -> None:
    runtime = Runtime(folder)
    for call in (
        lambda: runtime.encode("h\udce9llo"),
        lambda: runtime.render([{"role": "user", "content": "h\udce9llo"}]),
    ):
        (said,) = problems(call)
        assert "Character 2" in said and "UTF-8" in said


def test_numbers_have_bounds_and_are_finite() -> None:
    assert not [*number_problems("--x", 0, 0), *number_problems("--x", 1.0, 0, 1)]
    for value in (float("nan"), float("inf"), -1):
        assert "at least 0" in str(*number_problems("--x", value, 0))
    assert "0 to 1" in str(*number_problems("--x", 7.0, 0, 1))
