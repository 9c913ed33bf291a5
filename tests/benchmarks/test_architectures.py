"""The page of architectures against the tree; its errors are measured by the script alone."""

from __future__ import annotations

import runpy
from collections import Counter
from pathlib import Path

from families import FAMILIES

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks/architectures.py"))


def test_the_page_lists_what_the_tree_has() -> None:
    lines = SCRIPT["PAGE"].read_text(encoding="utf-8").splitlines()
    found = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    counts = Counter(family.architecture for family in FAMILIES.values())
    listed = [(*row[:3], row[4]) for row in found]
    assert listed == list(SCRIPT["known_rows"](counts)), "run `python benchmarks/architectures.py`"
    errors = [row[3] for row in found if row[3] != SCRIPT["UNMEASURED"]]
    assert len(errors) == len(counts) and all(float(error) < 1e-5 for error in errors)
