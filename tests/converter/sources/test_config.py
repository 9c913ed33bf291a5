"""Which config.json a recipe's architecture is looked up by, before the source is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, random_model, save

from converter.cli.compose import compose_recipe
from converter.errors import ConvertError
from converter.sources import config as module
from converter.sources.config import SourceConfig, demo_folder, source_config


def folder_of(path: Path, **config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_folder_s_own(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mine", model_type="qwen3")
    found = source_config({"source": {"kind": "checkpoint", "path": str(folder)}})
    assert found == SourceConfig({"model_type": "qwen3"}, str(folder))


def test_a_model_that_states_one_decides(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mine", model_type="qwen3")
    values = {"source": {"path": str(folder)}, "model": {"config": {"model_type": "phi"}}}
    found = source_config(values)
    assert found is not None and found.config == {"model_type": "phi"}


def test_the_demo() -> None:
    found = source_config({"source": {"kind": "demo"}})
    assert found is not None and found.place == str(demo_folder())
    assert found.config["model_type"] == "internlm2"


@pytest.mark.parametrize("content", [None, "{", "[]", "\x00"])
def test_none_where_it_cannot_be_read(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert source_config({"source": {"kind": "checkpoint", "path": str(tmp_path)}}) is None


@pytest.mark.parametrize(
    "source", [{}, {"kind": "synthetic"}, {"kind": "checkpoint"}, {"kind": "demo2", "repo": "a/b"}]
)
def test_none_where_nothing_is_named(source: dict[str, Any]) -> None:
    assert source_config({"source": source}) is None


def test_a_repository_is_asked_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "snapshot", model_type="glm")
    asked: list[tuple[str, Any]] = []

    def on_hub(repo: str, revision: Any) -> SourceConfig:
        asked.append((repo, revision))
        return SourceConfig(json.loads((folder / "config.json").read_text()), repo)

    monkeypatch.setattr(module, "_on_hub", on_hub)
    source = {"kind": "checkpoint", "repo": "lab/glm", "revision": "v1", "path": None}
    found = source_config({"source": source, "model": {}})
    assert found is not None and found.config["model_type"] == "glm"
    assert asked == [("lab/glm", "v1")]


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_a_folder_alone_is_a_recipe(name: str, tmp_path: Path) -> None:
    folder = save(random_model(FAMILIES[name]), tmp_path / "mine")
    recipe = compose_recipe([f"source.path='{folder}'"])
    assert recipe.name == "mine_cpu_int4" and recipe.quant.bits == 4
    assert FAMILIES[name].model_type in recipe.layout.model_types
    beside = compose_recipe([f"source.path='{folder}'", "export=cuda_fp16"])
    assert beside.target.execution_provider == "cuda" and beside.quant.round == "none"
    assert beside.name == "mine_cuda_fp16"
    assert compose_recipe([f"source.path='{folder}'", "name=own"]).name == "own"
    assert compose_recipe([f"source.path='{folder}/.'"]).name == "mine_cpu_int4"


def test_a_type_that_nobody_described_is_refused_with_the_place(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mine", model_type="t5", architectures=["T5Model"])
    with pytest.raises(ConvertError, match=r"(?s)mine has model_type 't5'.*convert list") as caught:
        compose_recipe([f"source.path='{folder}'"])
    assert len(caught.value.problems) == 1
