"""benchmark: measure the finished folder's speed and memory on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from converter.engine.engine import Pass, Run
from converter.errors import Problem
from converter.model.decoder import Decoder
from converter.output.package import Package
from converter.providers import is_available
from converter.recipe.schema import Recipe
from converter.runtime.session import missing_runtime
from converter.speed.benchmarking import Report, bench


class Benchmark(Pass[Package, Package]):
    """Load time, time to first token, decode speed, memory; changes nothing."""

    name = "benchmark"
    takes = Package
    gives = Package
    slot = "benchmark"
    guarantees = ("the folder is as it was before",)

    def __init__(self) -> None:
        self._summary = ""

    def enabled(self, recipe: Recipe) -> bool:
        return recipe.benchmark.enabled

    def requires(self, recipe: Recipe, decoder: Decoder | None) -> Iterable[Problem]:
        yield from missing_runtime("the recipe measures the result", "benchmark=none")

    def run(self, artifact: Package, run: Run) -> Package:
        provider, asked = run.recipe.target.execution_provider, run.recipe.benchmark
        if not is_available(provider):
            self._summary = f"not measured: the runtime here has no {provider} provider"
            return artifact
        report = bench(
            [artifact.folder],
            asked.prompt_lengths,
            asked.new_tokens,
            asked.rounds,
            run.progress.advance,
        )
        run.facts[self.name] = facts(report)
        self._summary = _shown(report)
        return artifact

    def summary(self, given: Package) -> str:
        return self._summary


def facts(report: Report) -> dict[str, Any]:
    """The report of one folder as plain containers, without the staging folder's name."""
    (measured,) = report.folders
    values = dataclasses.asdict(measured)
    del values["folder"]
    return {
        "bandwidth": report.bandwidth.median,
        "threads": report.threads,
        "rounds": report.rounds,
        "new_tokens": report.new_tokens,
        **values,
    }


def _shown(report: Report) -> str:
    (item,) = report.folders
    longest = max(item.first_token_seconds)
    prefill = item.prefill_tokens_per_second(longest).median
    return (
        f"decode {item.decode_tokens_per_second.median:.1f} tok/s, "
        f"prefill of {longest} {prefill:.0f} tok/s, load {item.load_seconds.median:.1f} s"
    )
