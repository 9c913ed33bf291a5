"""A model with experts through all passes, and what stops it before the first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_models import SMALL_BLOCKS, saved

from converter.cli.compose import compose_recipe
from converter.cli.explain import explanation
from converter.engine.execution import run_recipe
from converter.engine.plan import Plan, make_plan
from converter.engine.registry import make_passes
from converter.errors import ConvertError
from converter.evaluation.verification import Comparison
from converter.storage.cache import Cache

pytest.importorskip("onnxruntime_genai")
pytestmark = pytest.mark.slow


def recipe_of(name: str, *words: str) -> Any:
    return compose_recipe([f"source.path={saved(name)}", *SMALL_BLOCKS, *words])


def planned(name: str, *words: str) -> Plan:
    recipe = recipe_of(name, *words)
    return make_plan(recipe, make_passes(recipe.passes))


def converted(name: str, folder: Path, *words: str) -> Path:
    recipe = recipe_of(name, f"output={folder}", *words)
    return run_recipe(recipe, make_passes(recipe.passes))


@pytest.mark.parametrize("words", [("quant=rtn",), ("quant=search",), ("export=cpu_fp32",)])
@pytest.mark.parametrize("name", ["mixtral", "olmoe", "gpt_oss"])
def test_a_verified_folder_says_what_it_holds(
    name: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    folder = converted(name, tmp_path / "out", *words)
    facts = json.loads((folder / "convert.lock.json").read_text())["facts"]
    assert facts["verify"]["relative_error"] < 1e-4
    counts = {"mixtral": (5, 2), "olmoe": (6, 3), "gpt_oss": (6, 3)}
    layout = facts["layout"]
    assert (layout["experts"], layout["experts_per_token"]) == counts[name]
    assert layout["layers_with_experts"] == 3
    text = "\n".join(explanation(folder))
    assert f"layout.experts {counts[name][0]}" in " ".join(text.split())
    if words == ("export=cpu_fp32",):
        assert "quantize" not in facts
    else:
        search = ", searched on the weights alone" if "quant=search" in words else ""
        assert facts["quantize"]["experts"] == f"int4, block 16{search}"


def test_a_folder_on_which_only_layers_are_compared_reaches_the_experts(tmp_path: Path) -> None:
    words = ["verify.max_bytes=1000", "verify.first_layers=1"]
    folder = converted("qwen3_moe_some_dense", tmp_path / "out", *words)
    facts = json.loads((folder / "convert.lock.json").read_text())["facts"]
    assert facts["verify"]["compared"] == "hidden states after 4 layers"  # layer 3 has experts


def test_the_plan_is_the_folder(tmp_path: Path) -> None:
    plan = planned("mixtral")
    folder = converted("mixtral", tmp_path / "out")
    assert plan.problems == ()
    assert plan.files["model.onnx.data"] == (folder / "model.onnx.data").stat().st_size
    kinds = {item.kind: (item.count, item.shape, item.operator) for item in plan.matrices}
    assert kinds["experts_gate_up_proj"] == (3, (5 * 224, 96), "QMoE")
    assert kinds["experts_down_proj"] == (3, (5 * 96, 112), "QMoE")
    assert kinds["router"] == (3, (5, 96), "MatMul")
    matrices = sum(item.nbytes for item in plan.matrices)
    assert 0.5 * matrices < plan.files["model.onnx.data"] < 1.5 * matrices
    assert plan.decoder is not None
    assert plan.parameters == sum(w.numel for w in plan.decoder.checkpoint.tensors.values())


REFUSED = {
    "export=cpu_int4_best": "has no tokenizer, and quant.round=gptq reads text",
    "quant.bits_per_weight=4.6": "states a budget for the weights",
    "quant.target_size=1MB": "states a budget for the weights",
    "quant=best calibration=shared": "calibration.inputs=float, and the model has experts",
    "quant.bits=8": "experts of 8 bits",
    "export=dml_int4": "dml has no kernel of QMoE",
    "quant.experts.block_size=64": "experts_gate_up_proj has 96 columns",
    "quant.experts.block_size=17": "quant.experts.block_size=17",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_experts_do_not_have_is_refused_before_the_work(word: str, tmp_path: Path) -> None:
    with pytest.raises(ConvertError) as caught:
        converted("mixtral", tmp_path / "out", *word.split())
    assert REFUSED[word] in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_padding_does_not_help_experts() -> None:
    plan = planned("mixtral", "quant.experts.block_size=64", "quant.pad_last_block=true")
    assert [p.found for p in plan.problems if "experts" in p.found]


def test_a_search_needs_no_tokenizer_and_calibrates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVERT_CACHE", str(tmp_path / "cache"))
    plan = planned("mixtral", "quant=search")
    assert plan.problems == () and plan.decoder is not None
    converted("mixtral", tmp_path / "out", "quant=search")
    entries = Cache(tmp_path / "cache").entries_of(plan.decoder.checkpoint)
    assert not [entry for entry in entries if entry.key.get("pass") == "quantize"]


@pytest.mark.parametrize("words", [(), ("export=cuda_fp16",), ("export=cpu_fp32",)], ids=str)
@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("qwen3_moe", "graph.experts.normalize=false"),
        ("mixtral", "graph.experts.per_token=1"),
        ("gpt_oss", "graph.experts.beta=0"),
    ],
)
def test_a_wrong_description_is_not_published(
    name: str, word: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ConvertError, match="differ from the reference"):
        converted(name, tmp_path / "out", word, "layout.without_effect=['*']", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("export", ["cuda_fp16", "cuda_int4", "cuda_bf16"])
def test_a_folder_in_16_bits_is_judged_by_its_median_step(export: str, tmp_path: Path) -> None:
    folder = converted("gpt_oss", tmp_path / "out", f"export={export}")
    verify = json.loads((folder / "convert.lock.json").read_text())["facts"]["verify"]
    assert 0 < verify["relative_error"] <= verify["largest_relative_error"]


def test_the_median_does_not_hide_a_wrong_graph() -> None:
    expected = torch.ones(5, 4)
    found = expected.clone()
    found[3] *= 2
    assert Comparison(found, expected, "").error == pytest.approx(1.0)
    assert Comparison(found, expected, "", typical=True).error == 0.0
    assert Comparison(found, expected, "", typical=True).largest == pytest.approx(1.0)
    assert Comparison(2 * expected, expected, "", typical=True).error == pytest.approx(1.0)
    found[0] = torch.nan
    assert not Comparison(found, expected, "", typical=True).error <= 1e9
