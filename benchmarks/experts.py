"""Memory and time of converting a model with experts, far larger than the memory it may take.

    python benchmarks/experts.py [--recipe mixtral_8x7b_cpu_int4] [--layers 7] [--work FOLDER]

Writes a synthetic checkpoint of the model's published width (bf16, sharded) and converts it to
int4, with and without verification, in processes of their own. It prints what `convert plan` says
of the peak beside what is found: the resident memory of the whole process. Mixtral's 7 layers take
21 GB of the disk, and each folder up to 6 GB more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from conversion import Measured, measure, measure_process

from converter.cli.compose import compose_recipe
from converter.engine.plan import make_plan
from converter.engine.registry import make_passes

VARIANTS = {
    "rounded to nearest": ["quant=rtn", "verify=none"],
    "searched": ["quant=search", "verify=none"],
    "rounded to nearest, verified": ["quant=rtn"],
}


def planned_peak(words: list[str]) -> int:
    """Bytes that `convert plan` states for the words of a conversion."""
    recipe = compose_recipe(words)
    return make_plan(recipe, make_passes(recipe.passes)).peak_memory


def run(recipe: str, layers: int, work: Path) -> Iterator[tuple[int, Measured]]:
    """The planned peak and what was measured of each variant, after writing the checkpoint."""
    folder, convert = work / "checkpoint", [sys.executable, "-m", "converter.cli.main"]
    written = Measured("the checkpoint, in bf16", 0, 0, 0)
    if not folder.exists():
        sizes = f"model.config.num_hidden_layers={layers}"
        command = [*convert, "synth", str(folder), f"recipe={recipe}", sizes]
        written = measure_process("writing the checkpoint", command, work / "synth.log")
    yield 0, replace(written, size=sum(path.stat().st_size for path in folder.iterdir()))
    for name, words in VARIANTS.items():
        output = work / "result"
        everything = [f"recipe={recipe}", f"source.path='{folder}'", f"output='{output}'", *words]
        planned = planned_peak(everything)
        yield planned, measure(name, [*convert, *everything], output)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="mixtral_8x7b_cpu_int4")
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--work", type=Path, help="folder to keep the checkpoint in")
    arguments = parser.parse_args()
    print("| step | seconds | planned peak | peak memory | folder |")
    print("|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        for planned, found in run(arguments.recipe, arguments.layers, work):
            said = (f"{size / 1e9:.2f} GB" if size else "–" for size in (planned, found.peak))
            print(
                f"| {found.name} | {round(found.seconds) or '–'} | {' | '.join(said)} "
                f"| {found.size / 1e9:.2f} GB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
