"""The process that is measured: what it imports, what it prints, what the numbers mean."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime_genai")

from converter.speed import benchmark_worker
from converter.speed.benchmark_worker import bandwidth, peak_bytes


def work(folder: Path, **changes: object) -> dict[str, object]:
    values = {"prompt_lengths": [4, 24], "new_tokens": 5, "threads": 1}
    return {"folder": str(folder), **values, **changes}


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_worker, "BUFFER_BYTES", 1 << 22)


def test_each_prompt_has_a_first_token_and_the_shortest_is_gone_on_with(demo_folder: Path) -> None:
    found = benchmark_worker.measure(str(demo_folder), [4, 24], 5, 1)
    assert set(found) == {"load", "first_token", "token", "peak", "bandwidth"}
    assert list(found["first_token"]) == ["4", "24"]
    assert len(found["token"]) >= 4
    times = [found["load"], *found["first_token"].values(), *found["token"]]
    assert all(0 < seconds < 60 for seconds in times)
    assert found["peak"] > 10**7


@pytest.mark.slow
def test_the_process_prints_one_line_and_imports_little(demo_folder: Path) -> None:
    code = (
        "import sys; from converter.speed import benchmark_worker as b; b.BUFFER_BYTES = 1 << 22;"
        "b.main(); print([m for m in ('torch', 'onnx', 'transformers') if m in sys.modules])"
    )
    words = [sys.executable, "-c", code, json.dumps(work(demo_folder))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    line, imported = done.stdout.splitlines()
    assert json.loads(line)["peak"] > 10**7 and imported == "[]"


@pytest.mark.parametrize("vocab_size", [100, 1024, 92544])
def test_prompts_have_no_special_token_and_differ(vocab_size: int) -> None:
    ids = benchmark_worker._prompt(vocab_size, 64)
    assert len(ids) == 64 and min(ids) >= 3 and max(ids) < vocab_size
    assert len(set(ids)) > 32


def test_bandwidth_is_that_of_a_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert 1e8 < bandwidth(1) < 1e13


def test_the_peak_is_in_bytes() -> None:
    peak = peak_bytes()
    assert peak is None or 10**7 < peak < 10**12
