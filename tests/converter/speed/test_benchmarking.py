from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from expert_models import SMALL_BLOCKS, graph_of

pytest.importorskip("onnxruntime_genai")

from converter.cli.verbs import run_verb
from converter.engine.execution import run_recipe
from converter.engine.registry import make_passes
from converter.errors import ConvertError
from converter.speed.benchmarking import (
    Spread,
    bench,
    bytes_per_token,
    draw,
    graph_bytes_per_token,
    summarise,
    table,
)

PASSES = ["load", "layout", "graph", "quantize", "package"]


@pytest.fixture
def folder(make_recipe: Callable[..., Any], tmp_path: Path) -> Path:
    recipe = make_recipe("quant=rtn", "quant.embedding.block_size=32", "target.threads=1")
    recipe.output = str(tmp_path / "model")
    return run_recipe(recipe, make_passes(PASSES))


ROUND = {
    "load": 2.0,
    "first_token": {"8": 0.5, "40": 2.0},
    "token": [0.1, 0.1, 0.3],
    "peak": 100,
    "bandwidth": 1e6,
}


def test_medians_and_rates(folder: Path) -> None:
    slow = ROUND | {"load": 4.0, "token": [0.2], "peak": 300}
    slower = ROUND | {"load": 9.0, "token": [0.5], "peak": 200}
    slower["bandwidth"] = 1e5
    found = summarise(folder, [ROUND, slow, slower], [8, 40], 16)
    assert found.load_seconds == Spread(4.0, 2.0, 9.0)
    assert found.decode_tokens_per_second == Spread(5.0, 2.0, 10.0)
    assert found.prefill_tokens_per_second(40) == Spread(20.0, 20.0, 20.0)
    assert found.peak_bytes == 300
    assert found.bandwidth_share == pytest.approx(found.bytes_per_token * 10 / 1e6)


def test_bytes_per_token_are_the_matrices_the_norms_and_the_cache(folder: Path) -> None:
    hidden, inner, vocab, layers = 64, 96, 160, 2
    weights = layers * (hidden * (64 + 2 * 32) + hidden * 64 + 3 * hidden * inner) + hidden * vocab
    matrices = weights // 2 + weights // 32 * 4
    norms = (2 * layers + 1) * hidden * 4
    cache = layers * 2 * 2 * 16 * 4
    assert bytes_per_token(folder, 10) - bytes_per_token(folder, 9) == cache
    rest = bytes_per_token(folder, 0) - matrices - norms
    assert 0 <= rest < 200  # the constants of the shape computations


def test_narrow_scales_count_as_the_runtime_widens_them(
    folder: Path, make_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    words = ["quant=rtn", "quant.embedding.block_size=32", "quant.scale_type=fp16"]
    recipe = make_recipe(*words, "target.threads=1")
    recipe.output = str(tmp_path / "narrow")
    narrow = run_recipe(recipe, make_passes(PASSES))
    assert bytes_per_token(narrow, 10) == bytes_per_token(folder, 10)


@pytest.mark.slow
def test_folders_run_in_processes_of_their_own(folder: Path, tmp_path: Path) -> None:
    seen = []
    report = bench([folder], [4, 9], 3, 2, lambda done, total, name: seen.append((done, total)))
    (found,) = report.folders
    assert seen == [(0, 2), (1, 2)]
    assert found.decode_tokens_per_second.low > 0
    assert set(found.first_token_seconds) == {4, 9}
    assert found.peak_bytes is None or 10e6 < found.peak_bytes < 4e9
    values = json.loads(report.to_json())
    assert values["folders"][0]["folder"] == "model"
    assert len(table(report).splitlines()) == 5
    draw(report, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes()[1:4] == b"PNG"


def test_a_folder_that_does_not_run_is_an_error_with_the_runtimes_words(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ConvertError, match="Measuring model failed"):
        bench([folder], [4], 2, 1)


@pytest.mark.slow
def test_the_verb_prints_the_table_and_names_every_wrong_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report.json"
    words = [str(folder), "--prompt-lengths", "4", "--new-tokens", "2", "--rounds", "1"]
    assert run_verb("bench", [*words, "--json", str(output)]) == 0
    assert "| model |" in capsys.readouterr().out
    assert json.loads(output.read_text())["rounds"] == 1
    with pytest.raises(ConvertError) as caught:
        run_verb("bench", [str(tmp_path / "a"), str(tmp_path / "b"), str(folder)])
    assert len(caught.value.problems) == 2
    with pytest.raises(SystemExit):
        run_verb("bench", [str(folder), "--rounds", "0"])


def test_results_that_cannot_be_written_are_said_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.cli.bench.bench", None)
    words = ["--picture", "speed.txt", "--json", "none/speed.json"]
    with pytest.raises(ConvertError) as caught:
        run_verb("bench", [str(folder), str(folder / "missing"), *words])
    assert len(caught.value.problems) == 3
    assert "a file .png or .svg" in str(caught.value)


@pytest.mark.parametrize("words", [("quant=none",), ("quant=rtn",), ("quant=search",)])
def test_of_experts_those_of_a_token_are_read(words: tuple[str, ...]) -> None:
    graph = graph_of("mixtral", *words, *SMALL_BLOCKS)  # 2 of 5 experts
    ir_graph = graph.model.graph
    read = graph_bytes_per_token(ir_graph, 0, 32)
    for node in ir_graph:
        if node.op_type in ("MoE", "QMoE"):
            node.attributes["k"] = ir.AttrInt64("k", 5)
    experts = [value for name, value in ir_graph.initializers.items() if ".moe.experts." in name]
    size = sum(v.const_value.size for v in experts if v.const_value is not None)
    width = 4 if words == ("quant=none",) else None
    more = graph_bytes_per_token(ir_graph, 0, 32) - read
    if width is not None:
        assert more == pytest.approx(0.6 * size * width, rel=1e-6)
    else:
        weights = 3 * 5 * 3 * 96 * 112
        assert 0.6 * weights / 2 < more < 0.6 * weights
