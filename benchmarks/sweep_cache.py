"""What the shared cache is worth: one sweep against its jobs one by one, each with an empty cache.

Prints both times (by the clock and of the processor), their ratio, and how many entries of each
kind were made. Example:

    python benchmarks/sweep_cache.py --work /tmp/sweep recipe=demo quant=gptq,awq \
        quant.block_size=32,64 evaluate=standard
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from converter.cache import Cache
from converter.cli.sweep import make_plan
from converter.sweeps.sweep import read_rows

CONVERT = [sys.executable, "-m", "converter.cli.main"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a new folder for everything")
    parser.add_argument("words", nargs="+", help="the sweep, as after `convert -m`")
    parsed = parser.parse_args()
    work: Path = parsed.work.resolve()
    work.mkdir(parents=True)
    plan = make_plan(parsed.words)
    keys = set(plan.jobs[0].settings)
    fixed = [word for word in parsed.words if word.partition("=")[0] not in keys]

    single = [0.0, 0.0]
    for job in plan.jobs:
        swept = [f"{key}={value}" for key, value in job.settings.items()]
        words = [*fixed, *swept, f"output={work / 'single' / job.label}"]
        spent = _timed(words, work / "caches" / job.label)
        single = [total + part for total, part in zip(single, spent, strict=True)]
    together = _timed(["-m", *parsed.words, f"output={work / 'sweep'}"], work / "caches" / "shared")

    done = sum(row["status"] == "done" for row in read_rows(work / "sweep"))
    print(f"jobs:                       {len(plan.jobs)}, {done} done in the sweep")
    for index, what in enumerate(("seconds", "processor seconds")):
        print(f"one by one, empty caches:   {single[index]:.1f} {what}")
        print(f"one sweep, one cache:       {together[index]:.1f} {what}")
        print(f"sweep / one by one:         {together[index] / single[index]:.2f}")
    for name, counts in (
        ("one by one", _made(work, [job.label for job in plan.jobs])),
        ("sweep", _made(work, ["shared"])),
    ):
        print(f"entries made, {name}: " + ", ".join(f"{k} {v}" for k, v in sorted(counts.items())))
    return 0 if done == len(plan.jobs) else 1


def _timed(words: Sequence[str], cache: Path) -> tuple[float, float]:
    """Seconds by the clock and of processor time; the latter bears other work on the machine."""
    start, before = time.perf_counter(), os.times()
    result = subprocess.run(
        [*CONVERT, *words],
        env={**os.environ, "CONVERT_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        print(result.stderr, file=sys.stderr)
        raise SystemExit(f"convert {' '.join(words)} failed")
    after = os.times()
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    return time.perf_counter() - start, used


def _made(work: Path, caches: Sequence[str]) -> Counter[str]:
    """Entries by pass and kind; finished layers count as one kind."""
    found: Counter[str] = Counter()
    for name in caches:
        for entry in Cache(work / "caches" / name).entries():
            kind = str(entry.key.get("entry", "reference")).partition(".")[0]
            found[f"{entry.key.get('pass')}/{kind}"] += 1
    return found


if __name__ == "__main__":
    sys.exit(main())
