"""The table of `convert explain`."""

from __future__ import annotations

import json
from pathlib import Path

from converter.cli.explain import explanation

FORMATS = {"int4 block 32 asymmetric, a name that is longer than most": 26, "lm_head": 1}
RECIPE = "source: {}\nquant: {}\ntarget: {}\n"


def test_columns_do_not_run_together(tmp_path: Path) -> None:
    files = {name: {"size": 5, "blake3": "0" * 64} for name in ("a", "b" * 50)}
    lock = {"recipe": "x", "source": {"kind": "demo"}, "files": files}
    lock |= {"facts": {"formats": FORMATS, "verify": {"error": 0.00012345678}}}
    (tmp_path / "convert.lock.json").write_text(json.dumps(lock))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    lines = list(explanation(tmp_path))
    measured = lines[lines.index("measured:") + 1 :]
    assert [line.split("  ")[-1].strip() for line in measured] == ["26", "1", "0.000123457"]
    assert measured[0].startswith("  formats.int4 block 32 asymmetric, a name that is longer")
    places = {line.index("blake3") for line in lines if "blake3" in line}
    assert len(places) == 1


def test_a_folder_of_which_nothing_was_measured(tmp_path: Path) -> None:
    (tmp_path / "convert.lock.json").write_text(json.dumps({"files": {}, "source": {}}))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert list(explanation(tmp_path))[-1] == "measured:"
