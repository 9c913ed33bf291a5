"""A newcomer's path, word for word as the documentation gives it, with the demo model."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("onnxruntime_genai") is None, reason="onnxruntime-genai is not installed"
    ),
]


def convert(folder: Path, line: str, *more: str) -> str:
    """Run `convert …` and give what it printed."""
    result = subprocess.run(
        [sys.executable, "-m", "converter.cli.main", *line.split(), *more],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "CONVERT_CACHE": str(folder / ".cache"), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_list_show_plan_convert_chat_sweep_pick(tmp_path: Path) -> None:
    assert "internlm2_7b_chat_cuda_int4" in convert(tmp_path, "list")
    assert "int4 rtn" in convert(tmp_path, "list demo")
    assert "recipes/quant/rtn.yaml" in convert(tmp_path, "show demo")
    assert "quantize" in convert(tmp_path, "plan recipe=demo")
    assert list(tmp_path.iterdir()) == []  # nothing so far has written anything

    assert convert(tmp_path, "recipe=demo").strip() == str(tmp_path / "demo")
    said = convert(tmp_path, "chat demo --max-new-tokens 12 --prompt", "Tell me a story.")
    assert len(said.strip()) > 10
    assert "model.onnx.data" in convert(tmp_path, "explain demo")
    assert "The same" in convert(tmp_path, "reproduce demo")

    words = "-m recipe=demo quant.block_size=32,128 quant.bits=4,8 evaluate=standard"
    few = ["evaluate.max_chunks=2", "evaluate.n_ctx=128", "verify=none"]
    sweep = Path(convert(tmp_path, words, *few).strip())
    picture = ET.parse(sweep / "summary.svg")
    places = {(c.get("cx"), c.get("cy")) for c in picture.findall(".//{*}circle")}
    assert len(places) == 4  # four jobs in four places
    best = convert(tmp_path, f"pick {sweep} --max-size 1.15MB --by kld").splitlines()[-1]
    assert best == str(sweep / "00-block_size-32-bits-4")
    best = convert(tmp_path, f"pick {sweep} --by kld").splitlines()[-1]
    assert "bits-8" in best and (Path(best) / "genai_config.json").is_file()

    assert convert(tmp_path, "new mine --from demo").strip() == "mine.yaml"
    assert "no problem" in convert(tmp_path, "check ./mine.yaml")
    assert "same" in convert(tmp_path, "diff demo ./mine.yaml")
