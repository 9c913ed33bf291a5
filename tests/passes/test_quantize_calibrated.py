"""Calibrated quantization from the recipe to the packaged folder, on the demo and tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from oracle import run_graph

from converter.cli.compose import compose_values
from converter.engine.contract import Run
from converter.engine.execution import check, run_recipe
from converter.engine.registry import make_passes
from converter.errors import ConvertError
from converter.model.reference import Reference
from converter.recipe.validation import parse_recipe
from converter.storage.staging import Staging

pytestmark = pytest.mark.slow

SMALL = ["calibration.tokens=2048", "calibration.sequence_length=128"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVERT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def demo_recipe(*words: str) -> Any:
    return parse_recipe(compose_values(["recipe=demo", *SMALL, *words]))


def run_demo(output: Path, *words: str) -> dict[str, Any]:
    """Convert the demo model; the lock file's facts."""
    recipe = demo_recipe(f"output={output}", *words)
    run_recipe(recipe, make_passes(recipe.passes))
    facts: dict[str, Any] = json.loads((output / "convert.lock.json").read_text())["facts"]
    return facts


def test_calibrated_folders_verify_and_are_closer_than_rounding_to_nearest(tmp_path: Path) -> None:
    words = ["evaluate=standard", "evaluate.max_chunks=4", "evaluate.n_ctx=256"]
    words += ["quant.accuracy_level=1"]
    rtn = run_demo(tmp_path / "rtn", "quant=rtn", *words)
    for name in ("awq", "best"):
        facts = run_demo(tmp_path / name, f"quant={name}", *words)
        assert facts["verify"]["relative_error"] < 1e-3
        assert facts["evaluate"]["mean_kld"] < rtn["evaluate"]["mean_kld"]
        linears = facts["quantize"]["linears"]
        assert len(linears) == 5 * 5 + 1
        assert sum(item["after"] < item["before"] for item in linears) > len(linears) * 0.8
        assert (tmp_path / name / "report" / "errors.png").stat().st_size > 1000


def test_folds_reach_norms_biases_and_separate_projections(
    build: Callable[..., Any], synthetic_biases: None, tmp_path: Path
) -> None:
    words = ["quant=awq", "quant.accuracy_level=1", "target.packed_qkv=false"]
    words += ["calibration.tokens=512", "calibration.sequence_length=64"]
    graph = build(*words, until="quantize", bias=True)
    plain = build(*words, until="graph", bias=True)
    for norm in ("model.layers.0.input_layernorm.weight", "model.norm.weight"):
        before, after = (
            item.model.graph.initializers[norm].const_value.numpy() for item in (plain, graph)
        )
        assert not np.allclose(before, after)
    ids = torch.arange(3, 43)[None]
    reference = Reference(graph.decoder, graph.shipped)
    expected = reference.logits(reference.hidden_states(ids))
    assert torch.allclose(run_graph(graph.model, tmp_path, ids), expected, atol=2e-4)


@pytest.mark.parametrize("quant", ["gptq", "awq"])
def test_a_tied_head_shares_its_calibrated_codes(
    build: Callable[..., Any], tmp_path: Path, quant: str
) -> None:
    words = [f"quant={quant}", "quant.accuracy_level=1", "calibration.tokens=512"]
    words += ["calibration.sequence_length=64"]
    graph = build(*words, until="quantize", tie_word_embeddings=True)
    assert isinstance(graph.model, ir.Model)
    ids = torch.arange(3, 43)[None]
    reference = Reference(graph.decoder, graph.shipped)
    expected = reference.logits(reference.hidden_states(ids))
    assert torch.allclose(run_graph(graph.model, tmp_path, ids), expected, atol=2e-4)
    shipped = graph.shipped
    assert torch.equal(shipped["lm_head"].read(), shipped["embed_tokens"].read())


def test_a_tied_head_in_padded_blocks_has_codes_of_its_own(
    build: Callable[..., Any], tmp_path: Path
) -> None:
    words = ["quant=rtn", "quant.accuracy_level=1", "quant.block_size=128"]
    words += ["quant.pad_last_block=true", "quant.embedding.block_size=32"]
    graph = build(*words, until="quantize", tie_word_embeddings=True)
    ids = torch.arange(3, 43)[None]
    reference = Reference(graph.decoder, graph.shipped)
    expected = reference.logits(reference.hidden_states(ids))
    assert torch.allclose(run_graph(graph.model, tmp_path, ids), expected, atol=2e-4)
    shipped = graph.shipped
    assert not torch.equal(shipped["lm_head"].read(), shipped["embed_tokens"].read())


def test_mixed_precision_keeps_its_size(tmp_path: Path) -> None:
    run_demo(tmp_path / "mixed", "quant=gptq", "quant.target_size=0.9MB", "verify=none")
    model = ir.load(tmp_path / "mixed" / "model.onnx")
    caches = {"cos_cache", "sin_cache"}
    values = model.graph.initializers.items()
    sizes = [v.const_value.nbytes for name, v in values if v.const_value and name not in caches]
    assert 0.85e6 < sum(sizes) < 0.9e6 + 500  # a few constants are no weights
    bits = {n.attributes["bits"].value for n in model.graph if n.op_type == "MatMulNBits"}
    assert bits == {4, 8}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["quant.target_size=0.1MB"], "MB for this model"),
        (["quant.bits_per_weight=3"], "bits, scales and zero points included"),
        (["calibration.text=/nowhere.txt"], "There is no text at /nowhere.txt"),
        (["calibration.sequence_length=2048", "calibration.tokens=4096"], "1024 positions"),
    ],
)
def test_what_cannot_work_is_found_before_the_work(words: list[str], expected: str) -> None:
    recipe = demo_recipe("quant=gptq", *words)
    with pytest.raises(ConvertError) as caught:
        check(recipe, make_passes(recipe.passes), None)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["quant=gptq", "quant.target_size=big"], "a number and a unit"),
        (["quant=gptq", "quant.target_size=1MB", "quant.bits_per_weight=5"], "one of the two"),
        (["quant=none", "quant.smooth=awq"], "a rounding for the others"),
        (["quant=rtn", "quant.refine=true"], "quant.round=gptq"),
    ],
)
def test_contradictions_are_refused(words: list[str], expected: str) -> None:
    with pytest.raises(ConvertError) as caught:
        demo_recipe(*words)
    assert expected in str(caught.value)


@pytest.mark.parametrize("content", ["", "too short", b"\xff\xfe\x00\xd8"])
def test_unusable_text_is_named(tmp_path: Path, content: str | bytes) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(content if isinstance(content, bytes) else content.encode())
    recipe = demo_recipe("quant=search", f"calibration.text={text}")
    artifact: Any = None
    with pytest.raises(ConvertError) as caught:
        passes = make_passes(["load", "layout", "graph", "quantize"])
        check(recipe, passes, None)
        for item in passes:
            artifact = item.run(artifact, Run(recipe, Staging.nowhere())).artifact
    message = str(caught.value)
    assert "tokens" in message if content == "too short" else "text.txt" in message
