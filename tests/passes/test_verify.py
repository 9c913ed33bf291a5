from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime_genai")

from converter.engine.contract import Done, Pass, Run
from converter.engine.execution import run_recipe
from converter.engine.registry import make_passes
from converter.errors import ConvertError
from converter.output.package import Package

VERIFIED = ["verify=standard", "verify.new_tokens=6", "quant.embedding.block_size=32"]


def convert(recipe: Any, output: Path, *between: Pass[Any, Any]) -> dict[str, Any]:
    recipe.output = str(output)
    *before, verify = make_passes(["load", "layout", "graph", "quantize", "package", "verify"])
    run_recipe(recipe, [*before, *between, verify])
    lock: dict[str, Any] = json.loads((output / "convert.lock.json").read_text())
    facts: dict[str, Any] = lock["facts"]["verify"]
    return facts


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        ([], 1e-5),
        (["target=cuda"], 5e-3),
        (["quant=rtn"], 5e-2),
        (["quant=rtn", "quant.accuracy_level=1"], 1e-5),
        (["target=cuda", "quant=rtn"], 5e-3),
        (["graph.last_token_logits=true"], 1e-5),
        (["graph.context_length=300", "verify.new_tokens=150"], 1e-5),
    ],
    ids=str,
)
def test_a_right_folder_passes(
    make_recipe: Callable[..., Any], tmp_path: Path, words: list[str], limit: float
) -> None:
    config = {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    recipe = make_recipe(*VERIFIED, *words, **config)
    assert convert(recipe, tmp_path / "out", *[])["relative_error"] < limit


def test_a_large_folder_is_compared_on_its_first_layers(
    make_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = make_recipe(*VERIFIED, "quant=rtn", "verify.max_bytes=1000", num_hidden_layers=4)
    facts = convert(recipe, tmp_path / "out")
    assert facts["compared"] == "hidden states after 2 layers"
    assert facts["relative_error"] < 5e-2
    assert not list((tmp_path / "out").glob("first_layers*"))


class Damage(Pass[Package, Package]):
    """Overwrites some bytes of the data file, as a bad disk would."""

    name = "damage"

    def run(self, artifact: Package, run: Run) -> Done[Package]:
        path = artifact.folder / "model.onnx.data"
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 4096] = bytes(range(256)) * 16
        path.write_bytes(data)
        return Done(artifact)


@pytest.mark.parametrize("words", [["quant=rtn"], ["quant=rtn", "verify.max_bytes=1000"]])
def test_a_damaged_folder_is_not_published(
    make_recipe: Callable[..., Any], tmp_path: Path, words: list[str]
) -> None:
    recipe = make_recipe(*VERIFIED, *words, num_hidden_layers=3)
    damage = Damage()
    with pytest.raises(ConvertError, match=r"verify: .* differ from the reference"):
        convert(recipe, tmp_path / "out", damage)
    assert list(tmp_path.iterdir()) == []


def test_a_precision_without_tolerance_is_refused_before_the_work(
    make_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = make_recipe(*VERIFIED)
    recipe.verify.max_error.pop("fp32")
    with pytest.raises(ConvertError, match="no tolerance for fp32"):
        convert(recipe, tmp_path / "out")


def test_the_graph_and_int8_activations_are_two_questions(
    make_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    facts = convert(make_recipe(*VERIFIED, "quant=rtn"), tmp_path / "out")
    cost = facts["int8_activations"]
    assert facts["relative_error"] < 1e-4 < 1e-3 < cost["relative_error"] < 0.1
    assert 0 < cost["kl_divergence"] < 1e-2
    limited = make_recipe(*VERIFIED, "quant=rtn", "verify.max_error.int8_activations=1e-4")
    with pytest.raises(ConvertError, match="Rounding activations to int8 changes the logits by"):
        convert(limited, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_window_is_filled(tmp_path: Path) -> None:
    from families import FAMILIES, random_model, save

    from converter.cli.compose import compose_recipe

    folder = save(random_model(FAMILIES["mistral_window"]), tmp_path / "checkpoint")
    recipe = compose_recipe([f"source.path='{folder}'", "export=cpu_fp32"])
    facts = convert(recipe, tmp_path / "out")
    assert "past the window of 8" in facts["compared"] and facts["relative_error"] < 1e-5
