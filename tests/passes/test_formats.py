from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("onnxruntime_genai")

from converter.engine.execution import check, run_recipe
from converter.engine.registry import make_passes
from converter.errors import ConvertError
from converter.speed import tuning
from converter.speed.benchmarking import run_once
from converter.speed.formats import write_variant
from passes.formats import ChooseFormats

ALL = ["load", "layout", "graph", "formats", "quantize", "package", "tune", "verify"]
OPEN = ["quant=rtn", "tune=standard", "target.threads=2", "verify=standard"]
OPEN += ["tune.block_sizes=[16,64]", "tune.head_bits=[4,8]"]


def format_of(folder: Path, name: str) -> tuple[int, int]:
    """(bits, block_size) of a matrix of the folder's graph."""
    import onnx_ir as ir

    for node in ir.load(folder / "model.onnx").graph:
        if node.op_type == "MatMulNBits" and name in str(node.name):
            return node.attributes["bits"].as_int(), node.attributes["block_size"].as_int()
    raise AssertionError(name)


def fake_formats(monkeypatch: pytest.MonkeyPatch, seconds: Callable[..., float]) -> None:
    def run_once(folder: Path, lengths: Any, new_tokens: int) -> dict[str, Any]:
        found = seconds(format_of(folder, "o_proj"), format_of(folder, "lm_head"))
        return {"first_token": {str(lengths[-1]): found}, "token": [0.0]}

    monkeypatch.setattr(tuning, "run_once", run_once)


def test_the_fastest_allowed_format_is_the_one_that_is_made(
    make_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_formats(monkeypatch, lambda layer, head: 10 / layer[1] + 1 / head[0])
    recipe = make_recipe(*OPEN, intermediate_size=128)
    recipe.output = str(tmp_path / "out")
    output = run_recipe(recipe, make_passes(ALL))
    assert format_of(output, "o_proj") == (4, 64)
    assert format_of(output, "lm_head")[0] == 8
    written = yaml.safe_load((output / "recipe.yaml").read_text())
    assert written["quant"]["block_size"] == 64
    assert written["quant"]["lm_head"]["bits"] == 8
    facts = json.loads((output / "convert.lock.json").read_text())["facts"]["formats"]
    tried = [(item["quant.block_size"], item["quant.lm_head.bits"]) for item in facts["trials"]]
    assert tried == [(32, 4), (16, 4), (64, 4), (64, 4), (64, 8)]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_equal_formats_leave_the_recipes_own(
    make_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_formats(monkeypatch, lambda layer, head: 1.0)
    recipe = make_recipe(*OPEN, intermediate_size=128)
    recipe.output = str(tmp_path / "out")
    output = run_recipe(recipe, make_passes(ALL))
    assert (format_of(output, "o_proj"), format_of(output, "lm_head")) == ((4, 32), (4, 32))


def test_an_interrupted_race_of_formats_leaves_nothing(
    make_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*formats: Any) -> float:
        raise KeyboardInterrupt

    fake_formats(monkeypatch, interrupted)
    recipe = make_recipe(*OPEN, intermediate_size=128)
    recipe.output = str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, make_passes(ALL))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["quant=gptq", "quant.bits_per_weight=4.5", "evaluate=none"], "tune.block_sizes=[]"),
        (["quant=none"], "tune.block_sizes=[]"),
        (["tune.block_sizes=[48]"], "write 32 instead"),
        (["passes=[load,layout,graph,quantize,formats,package]"], "between graph and quantize"),
    ],
)
def test_formats_that_cannot_be_tuned_are_refused(
    make_recipe: Callable[..., Any], words: list[str], remedy: str
) -> None:
    problems = list(ChooseFormats().requires(make_recipe(*OPEN, *words), None))
    assert remedy in "\n".join(map(str, problems))


def test_an_allowed_block_size_must_divide_the_matrices(make_recipe: Callable[..., Any]) -> None:
    recipe = make_recipe(*OPEN)
    with pytest.raises(ConvertError, match=r"96 columns[^!]*leave 64 out of tune"):
        check(recipe, make_passes(ALL), None)


@pytest.mark.slow
def test_a_written_variant_can_be_measured(
    make_recipe: Callable[..., Any], build: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = make_recipe("quant=rtn", "target.threads=1")
    write_variant(build(), recipe, tmp_path / "variant")
    assert len(run_once(tmp_path / "variant", [4], 3)["token"]) == 2
