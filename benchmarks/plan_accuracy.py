"""What `convert plan` predicts, against the conversion that follows.

    python benchmarks/plan_accuracy.py [--recipe NAME …] [--work FOLDER] [key=value …]
    python benchmarks/plan_accuracy.py --calibrated [--only WORD …] [--work FOLDER] [key=value …]

Plans each recipe on synthetic weights, converts it in a process of its own, and prints size and
peak resident memory, planned and found. Each result is deleted before the next one is made.

With --calibrated the cases are schemes that calibrate and an evaluation: of the demo model, and of
checkpoints with the published width and a few layers of random weights, read from the disk as real
ones are. They have the demo model's tokenizer, and so its way with the built-in text.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CALIBRATED = (
    ("demo", 5, 1024, "quant=search"),
    ("demo", 5, 1024, "quant=awq"),
    ("demo", 5, 1024, "quant=best"),
    ("internlm2_1_8b_cpu_int4", 2, 92544, "quant=awq"),
    ("internlm2_1_8b_cpu_int4", 2, 92544, "quant=best"),
    ("internlm2_1_8b_cpu_int4", 2, 4096, "quant=best quant.bits_per_weight=4.5"),
    ("internlm2_1_8b_cpu_int4", 2, 4096, "quant=best calibration.inputs=float"),
    ("internlm2_1_8b_cpu_int4", 2, 92544, "evaluate=standard"),
    ("internlm2_7b_cpu_int4", 1, 2048, "quant=best"),
)
"""Recipe, layers, vocabulary, and what the case is about."""
DEMO = Path(__file__).parent.parent / "converter" / "data" / "demo"
TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
RECIPES = ("internlm2_1_8b_cpu_int4", "internlm2_7b_cpu_int4", "internlm2_20b_cpu_int4")
PLAN = """
import sys
from converter.cli.compose import compose_recipe
from converter.engine.registry import make_passes
from converter.engine.plan import make_plan
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
    """Plan and convert one recipe on synthetic weights."""
    return _compare(recipe, [f"recipe={recipe}", "source=synthetic", *overrides], work)


def compare_calibrated(
    recipe: str, layers: int, vocabulary: int, about: str, overrides: Sequence[str], work: Path
) -> Case:
    """Plan and convert one of `CALIBRATED`; the cache lies in `work` and is empty before."""
    words, label = [f"recipe={recipe}", *about.split(), "verify=none"], f"{recipe} {about}"
    source = work / "checkpoint"
    if recipe != "demo":
        _write_checkpoint(source, recipe, layers, vocabulary, work)
        words.append(f"source.path='{source}'")
        label += f", {layers} layers, vocabulary {vocabulary}"
    os.environ["CONVERT_CACHE"] = str(work / "cache")
    case = _compare(label, [*words, *overrides], work)
    for folder in (source, work / "cache"):
        shutil.rmtree(folder, ignore_errors=True)
    return case


def _write_checkpoint(folder: Path, recipe: str, layers: int, vocabulary: int, work: Path) -> None:
    sizes = f"model.config.num_hidden_layers={layers}", f"model.config.vocab_size={vocabulary}"
    _run(["-m", "converter.cli.main", "synth", str(folder), f"recipe={recipe}", *sizes], work)
    for name in TOKENIZER:
        shutil.copy(DEMO / name, folder / name)


def _compare(label: str, words: Sequence[str], work: Path) -> Case:
    """Both in processes of their own."""
    output = work / "result"
    words = [*words, f"output='{output}'"]
    planned_size, planned_peak = map(int, _run(["-c", PLAN, *words], work)[0].split())
    _, peak = _run(["-m", "converter.cli.main", *words], work)
    size = sum(path.stat().st_size for path in output.iterdir() if path.is_file())
    shutil.rmtree(output)
    return Case(label, planned_size, size, planned_peak, peak)


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
    parser.add_argument("--calibrated", action="store_true", help="calibration and evaluation")
    parser.add_argument("--only", action="append", help="cases with this word, such as demo")
    parser.add_argument("--work", type=Path, help="folder on a disk with room for the results")
    parser.add_argument("overrides", nargs="*", help="such as verify=none")
    parsed = parser.parse_args()
    print("| recipe | size, planned | found | off | peak memory, planned | found | off |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=parsed.work) as name:
        for case in _cases(parsed, Path(name)):
            print(_row(case), flush=True)


def _cases(parsed: argparse.Namespace, work: Path) -> Iterator[Case]:
    if not parsed.calibrated:
        for recipe in parsed.recipe or RECIPES:
            yield compare(recipe, parsed.overrides, work)
        return
    for case in CALIBRATED:
        if all(word in f"{case[0]} {case[-1]}" for word in parsed.only or ()):
            yield compare_calibrated(*case, parsed.overrides, work)


def _row(case: Case) -> str:
    cells = [case.recipe]
    for planned, found in ((case.planned_size, case.size), (case.planned_peak, case.peak)):
        cells += [f"{planned / 1e9:.3f} GB", f"{found / 1e9:.3f} GB", f"{planned / found - 1:+.1%}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
