"""A sweep's folder as jobs leave it, with figures made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from converter.sweeps import sweep
from converter.sweeps.sweep import Job, SweepPlan

FIGURES = [(300, 0.10, 20.0), (200, 0.20, 30.0), (100, 0.40, 25.0), (250, 0.30, 10.0)]
"""Bytes, KL divergence, tokens per second; the last job is worse than the second in all three."""


def publish(folder: Path, size: int, facts: dict[str, Any]) -> None:
    folder.mkdir()
    lock = {
        "files": {
            "a": {"size": size - 50},
            "b": {"size": 50},
            "recipe.yaml": {"size": 7 + size % 7},
        },
        "facts": facts,
        "seconds": {"load": 1.0, "package": 2.5},
    }
    (folder / "convert.lock.json").write_text(json.dumps(lock))


def write_sweep(folder: Path) -> Path:
    """Four finished jobs, one that failed and one that did not run."""
    jobs = []
    for number, (size, kld, speed) in enumerate(FIGURES):
        settings = {"quant": "rtn", "quant.block_size": str(16 << number)}
        jobs.append(Job(number, sweep.job_label(number, settings), settings, {}))
        facts = {"evaluate": {"mean_kld": kld}, "benchmark": {"decode_tokens_per_second": speed}}
        publish(folder / jobs[-1].label, size, facts)
    failed = Job(4, "04-failed", {"quant": "<b>|x"}, {})
    sweep.write_plan(folder, SweepPlan(["recipe=demo"], [*jobs, failed, Job(5, "05-left", {}, {})]))
    sweep.write_failure(folder, failed, "out of <memory> | and luck")
    return folder
