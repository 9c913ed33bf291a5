"""Measures every architecture and writes docs/measurements/architectures.md.

`python benchmarks/architectures.py` runs the families of tests/families.py, about ten seconds: a
tiny random model of transformers each, saved, found by itself, and run by onnxruntime.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from converter.recipe.architectures import architecture_of, descriptions
from converter.recipe.tree import MODEL, Tree, built_in_models
from converter.recipe.trust import ARCHITECTURE

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "measurements" / "architectures.md"
HEAD = """# Architectures

An architecture is one file of `recipes/architecture/`. `convert source.path=FOLDER` finds the one
for a checkpoint's config.json. [Convert your own model](../guide/own_model.md) says how to add one.

The error is the largest relative error of a position's logits against transformers' own model, in
fp32, on 40 tokens: all at once, and the last five from the cache. Weights, norms and biases are
random. Where an architecture has several variants, the worst is shown.
`python benchmarks/architectures.py` writes this page.
"""
HEADER = ("architecture", "what it has", "variants", "worst error", "models")
UNMEASURED = "see its own tests"


def main() -> None:
    """Measure and write the page."""
    sys.path.insert(0, str(ROOT / "tests"))
    from families import FAMILIES
    from parity import logit_error

    errors: dict[str, list[float]] = {}
    for name, family in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            errors.setdefault(family.architecture, []).append(logit_error(name, Path(folder)))
    counts = {name: len(found) for name, found in errors.items()}
    worst = {name: max(found) for name, found in errors.items()}
    rows = [
        (
            name,
            said,
            variants,
            f"{worst[name.strip('`')]:.0e}" if variants != "–" else UNMEASURED,
            m,
        )
        for name, said, variants, m in known_rows(counts)
    ]
    table = runpy.run_path(str(ROOT / "scripts" / "reference.py"))["table"]
    PAGE.write_text("\n".join([HEAD, *table(HEADER, rows)]) + "\n", encoding="utf-8")


def known_rows(counts: dict[str, int]) -> Iterator[tuple[str, str, str, str]]:
    """What the tree says of each architecture; `counts` are the variants that are measured."""
    meaning = runpy.run_path(str(ROOT / "scripts" / "reference.py"))["meaning"]
    models: dict[str | None, list[str]] = {}
    for model in built_in_models():
        config = Tree().piece(MODEL, model).merged().get("config")
        models.setdefault(architecture_of(config) if config else None, []).append(model)
    for item in descriptions():
        listed = ", ".join(models.get(item.name, []))
        variants = str(counts.get(item.name, "–"))
        yield f"`{item.name}`", meaning(ARCHITECTURE, item.name), variants, listed or "–"


if __name__ == "__main__":
    main()
