"""What `convert plan` says, compared with what the conversion then does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, serve
from huggingface_hub import constants

from converter.cli.compose import compose_recipe
from converter.cli.plan import plan_text
from converter.cli.verbs import run_verb
from converter.engine.contract import Run
from converter.engine.execution import run_recipe
from converter.engine.plan import Plan, make_plan
from converter.engine.registry import make_passes
from converter.model.rope import Rope
from converter.recipe.schema import Recipe
from converter.sources.synthetic import open_synthetic, write_checkpoint
from converter.storage.staging import Staging
from passes.package import MakePackage


def plan_of(recipe: Recipe) -> Plan:
    return make_plan(recipe, make_passes(recipe.passes))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["quant=rtn", "quant.embedding.block_size=32"],
        [
            "quant=rtn",
            "quant.symmetric=false",
            "quant.lm_head.bits=8",
            "quant.block_size=16",
            "quant.embedding.bits=16",
        ],
        ["target=cuda", "quant=rtn", "quant.embedding.block_size=32"],
    ],
    ids=["fp32", "int4", "mixed", "cuda"],
)
def test_files_have_the_planned_size(
    make_recipe: Callable[..., Recipe], tmp_path: Path, words: list[str]
) -> None:
    recipe = make_recipe(f"output={tmp_path / 'out'}", *words)
    plan = plan_of(recipe)
    assert plan.problems == ()
    assert not (tmp_path / "out").exists()
    run_recipe(recipe, make_passes(recipe.passes))
    for name, size in plan.files.items():
        assert (tmp_path / "out" / name).stat().st_size == pytest.approx(size, abs=200), name
    # The data file holds exactly what the plan's list of matrices and the rest add up to.
    assert sum(item.nbytes for item in plan.matrices) < plan.files["model.onnx.data"]


def test_every_matrix_is_listed_with_its_form(make_recipe: Callable[..., Recipe]) -> None:
    plan = plan_of(make_recipe("quant=rtn", "quant.embedding.bits=16", "quant.lm_head.bits=8"))
    found = {
        item.kind: (item.count, item.shape, item.operator, item.form) for item in plan.matrices
    }
    int4 = "int4, block 32, symmetric"
    assert found == {
        "embed_tokens": (1, (160, 64), "Gather", "float32"),
        "qkv_proj": (2, (128, 64), "MatMulNBits", int4),
        "o_proj": (2, (64, 64), "MatMulNBits", int4),
        "gate_proj": (2, (96, 64), "MatMulNBits", int4),
        "up_proj": (2, (96, 64), "MatMulNBits", int4),
        "down_proj": (2, (64, 96), "MatMulNBits", int4),
        "lm_head": (1, (160, 64), "MatMulNBits", "int8, block 32, symmetric"),
    }
    values = 160 * 64 * 2 + 2 * (128 * 64 + 64 * 64 + 3 * 96 * 64 + 2 * 64) + 64
    assert plan.parameters == values


def test_a_longer_context_tells_its_base(make_recipe: Callable[..., Recipe]) -> None:
    scaling = {"type": "dynamic", "factor": 2.0}
    plan = plan_of(make_recipe("graph.context_length=512", rope_scaling=scaling))
    base = Rope(10000.0, "dynamic", 2.0).base(16, 512, 128)
    assert any(f"the base {base:.6g}" in note and "512 positions" in note for note in plan.notes)
    plan = plan_of(make_recipe(rope_scaling=scaling))
    assert any("changes nothing up to 128" in note for note in plan.notes)
    plan = plan_of(make_recipe("graph.context_length=512"))
    assert any("no dynamic scaling" in note for note in plan.notes)


def test_all_problems_are_listed_with_the_plan(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    recipe = make_recipe(f"output={tmp_path / 'out'}", "quant=rtn", "quant.block_size=128")
    plan = plan_of(recipe)
    text = plan_text(plan)
    assert "exists already" in text and "overwrite=true" in text
    assert "blocks of 128 do not divide" in text
    assert list((tmp_path / "out").iterdir()) == []


def test_an_unreadable_checkpoint_is_a_problem(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe("source=checkpoint", f"source.path={tmp_path}")
    plan = plan_of(recipe)
    assert plan.decoder is None
    assert "config.json does not exist" in plan_text(plan)


def test_a_tokenizer_that_does_not_fit_is_a_problem(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe()
    write_checkpoint(open_synthetic(recipe), tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no tokenizer")
    plan = plan_of(make_recipe("source=checkpoint", f"source.path={tmp_path}"))
    assert plan.decoder is not None
    assert any("tokenizer.model" in problem.found for problem in plan.problems)


@pytest.mark.slow
def test_the_command_plans_the_demo_as_it_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["recipe=demo", f"output={tmp_path / 'out'}", "verify=none"]
    assert run_verb("plan", words) == 0
    text = capsys.readouterr().out
    assert "load → layout → graph" in text and "MatMulNBits" in text
    plan = plan_of(compose_recipe(words))
    run_recipe(compose_recipe(words), make_passes(compose_recipe(words).passes))
    made = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert plan.output_bytes == pytest.approx(sum(made.values()), rel=0.05)
    for name, size in plan.files.items():
        assert made[name] == pytest.approx(size, abs=200), name


def test_an_unreachable_repository_is_planned_from_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    plan = plan_of(compose_recipe(["recipe=internlm2_7b_cpu_int4", f"output={tmp_path / 'o'}"]))
    assert plan.parameters == pytest.approx(7.74e9, rel=0.001)
    assert "internlm/internlm2-7b (not reached" in plan_text(plan)
    assert any("internlm/internlm2-7b" in problem.found for problem in plan.problems)


@pytest.mark.slow
def test_memory_grows_with_threads_and_not_with_depth(make_recipe: Callable[..., Any]) -> None:
    def writing(*words: str, **config: Any) -> int:
        recipe = make_recipe(*words, **config)
        passes = make_passes(["load", "layout", "graph"])
        artifact: Any = None
        for item in passes:
            artifact = item.run(artifact, Run(recipe, Staging.nowhere())).artifact
        found = MakePackage().peak_memory(artifact, recipe)
        assert found is not None
        return found

    assert writing("threads=4") == 2 * writing("threads=2")
    assert writing("threads=2", num_hidden_layers=6) == writing("threads=2", num_hidden_layers=1)


def test_planning_a_hub_repository_fetches_no_weights(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()
    folder = tmp_path / "repository"
    folder.mkdir()
    write_checkpoint(open_synthetic(recipe), folder)
    shard = next(folder.glob("*.safetensors"))
    with serve(Hub("lab/tiny", {"a" * 40: folder}, {"main": "a" * 40})) as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        plan = plan_of(
            make_recipe("source=checkpoint", "source.repo=lab/tiny", f"output={tmp_path / 'out'}")
        )
    tensors = json.loads((folder / "model.safetensors.index.json").read_text())["metadata"]
    assert plan.problems == ()
    assert plan.fetch_bytes == tensors["total_size"]
    assert plan.disk_bytes == plan.fetch_bytes + plan.output_bytes
    assert None not in hub.ranges(shard.name)
    assert f"lab/tiny at {'a' * 40}" in plan_text(plan)
