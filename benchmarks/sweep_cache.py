"""What the shared cache is worth: one sweep against its jobs one by one, each with an empty cache.

Prints both times (by the clock and of the processor), their ratio, and how many entries of each
kind were made. Twelve variants of a checkpoint, as benchmarks/smollm2.py writes one:

    python benchmarks/sweep_cache.py --work /tmp/sweep sweep=best_grid \
        recipe=internlm2_1_8b_cpu_int4 source.path=CHECKPOINT graph.context_length=512 \
        quant.embedding.block_size=null quant.block_size=16,32,64 verify=none \
        evaluate.max_chunks=8 calibration.text=TEXT calibration.tokens=32768

(128 does not divide that model's 576 columns, and the built-in text has 25,466 of its tokens.)

`--singles N` makes only N jobs one by one, evenly spaced over the sweep's, and scales their time
up; the output then says so. The sweep is always made whole.
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

from converter.cli.sweep import plan_sweep
from converter.storage.cache import Cache
from converter.sweeps.sweep import Job, read_rows

CONVERT = [sys.executable, "-m", "converter.cli.main"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a new folder for everything")
    parser.add_argument("--singles", type=int, help="make only so many jobs one by one, and scale")
    parser.add_argument("words", nargs="+", help="the sweep, as after `convert -m`")
    parsed = parser.parse_args()
    work: Path = parsed.work.resolve()
    work.mkdir(parents=True)
    plan = plan_sweep(parsed.words)
    keys = set(plan.jobs[0].settings)
    fixed = [word for word in plan.words if word.partition("=")[0] not in keys]

    jobs = _spread(plan.jobs, parsed.singles or len(plan.jobs))
    scale, single = len(plan.jobs) / len(jobs), [0.0, 0.0]
    for job in jobs:
        swept = [f"{key}={value}" for key, value in job.settings.items()]
        words = [*fixed, *swept, f"output={work / 'single' / job.label}"]
        spent = _timed(words, work / "caches" / job.label)
        single = [total + scale * part for total, part in zip(single, spent, strict=True)]
    together = _timed(
        ["-m", *parsed.words, f"output={work / 'sweep'}"], work / "caches" / "shared", check=False
    )  # a job that fails is a row, and counted below

    done = sum(row["status"] == "done" for row in read_rows(work / "sweep"))
    print(f"jobs:                       {len(plan.jobs)}, {done} done in the sweep")
    if scale > 1:
        print(f"one by one:                 {len(jobs)} jobs measured, times {scale:.2f}")
    for index, what in enumerate(("seconds", "processor seconds")):
        print(f"one by one, empty caches:   {single[index]:.1f} {what}")
        print(f"one sweep, one cache:       {together[index]:.1f} {what}")
        print(f"sweep / one by one:         {together[index] / single[index]:.2f}")
    for name, counts in (
        ("one by one", _made(work, [job.label for job in jobs])),
        ("sweep", _made(work, ["shared"])),
    ):
        print(f"entries made, {name}: " + ", ".join(f"{k} {v}" for k, v in sorted(counts.items())))
    return 0 if done == len(plan.jobs) else 1


def _spread(jobs: Sequence[Job], count: int) -> list[Job]:
    """`count` of the jobs, evenly spaced, at least one and at most all."""
    count = min(max(1, count), len(jobs))
    return [jobs[(2 * number + 1) * len(jobs) // (2 * count)] for number in range(count)]


def _timed(words: Sequence[str], cache: Path, check: bool = True) -> tuple[float, float]:
    """Seconds by the clock and of processor time; the latter bears other work on the machine."""
    start, before = time.perf_counter(), os.times()
    result = subprocess.run(
        [*CONVERT, *words],
        env={**os.environ, "CONVERT_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    if check and result.returncode:
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
