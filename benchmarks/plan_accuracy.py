"""What `convert plan` predicts, against the conversion that follows.

    python benchmarks/plan_accuracy.py [--recipe NAME …] [--work FOLDER] [key=value …]

Plans each recipe on synthetic weights, converts it in a process of its own, and prints size and
peak resident memory, planned and found. Each result is deleted before the next one is made.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RECIPES = ("internlm2_1_8b_cpu_int4", "internlm2_7b_cpu_int4", "internlm2_20b_cpu_int4")
PLAN = """
import sys
from converter.cli.compose import compose_recipe
from converter.pass_registry import make_passes
from converter.plan import make_plan
recipe = compose_recipe(sys.argv[1:])
plan = make_plan(recipe, make_passes(recipe.passes))
assert not plan.problems, plan.problems
print(plan.output_bytes, plan.peak_memory)
"""


@dataclass(frozen=True)
class Case:
    """Bytes of the folder and of resident memory at the peak, planned and found."""

    recipe: str
    planned_size: int
    size: int
    planned_peak: int
    peak: int


def compare(recipe: str, overrides: Sequence[str], work: Path) -> Case:
    """Plan and convert one recipe; both in processes of their own."""
    output = work / recipe
    words = [f"recipe={recipe}", "source=synthetic", f"output='{output}'", *overrides]
    planned_size, planned_peak = map(int, _run(["-c", PLAN, *words], work)[0].split())
    _, peak = _run(["-m", "converter.cli.main", *words], work)
    size = sum(path.stat().st_size for path in output.iterdir())
    shutil.rmtree(output)
    return Case(recipe, planned_size, size, planned_peak, peak)


def _run(arguments: Sequence[str], work: Path) -> tuple[str, int]:
    """Standard output of a Python process, and its peak resident bytes."""
    log = work / "output"
    with log.open("w+") as stream:
        process = os.posix_spawn(
            sys.executable,
            [sys.executable, *arguments],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, stream.fileno(), 1)],
        )
        _, status, usage = os.wait4(process, 0)
        if status:
            raise SystemExit(f"{' '.join(arguments[-4:])} failed with status {status}")
        stream.seek(0)
        peak = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
        return stream.read(), peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", action="append", help="default: the three int4 sizes")
    parser.add_argument("--work", type=Path, help="folder on a disk with room for the results")
    parser.add_argument("overrides", nargs="*", help="such as verify=none")
    parsed = parser.parse_args()
    print("| recipe | size, planned | found | off | peak memory, planned | found | off |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=parsed.work) as name:
        for recipe in parsed.recipe or RECIPES:
            case = compare(recipe, parsed.overrides, Path(name))
            print(_row(case), flush=True)


def _row(case: Case) -> str:
    cells = [case.recipe]
    for planned, found in ((case.planned_size, case.size), (case.planned_peak, case.peak)):
        cells += [f"{planned / 1e9:.3f} GB", f"{found / 1e9:.3f} GB", f"{planned / found - 1:+.1%}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
