"""benchmark: measure the finished folder's speed and memory on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from converter.engine.contract import Done, Pass, Run
from converter.errors import Problem
from converter.model.decoder import Decoder
from converter.output.package import Package
from converter.providers import is_available
from converter.recipe.guest_slots import own_settings
from converter.recipe.schema import Recipe
from converter.runtime.session import missing_runtime
from converter.speed.benchmarking import Report, bench
from passes.benchmark_settings import BenchmarkSettings


class Benchmark(Pass[Package, Package]):
    """Load time, time to first token, decode speed, memory; changes nothing."""

    name = "benchmark"
    slot = "benchmark"
    guarantees = ("the folder is as it was before",)

    def enabled(self, recipe: Recipe) -> bool:
        return own_settings(recipe, BenchmarkSettings).enabled

    def requires(self, recipe: Recipe, decoder: Decoder | None) -> Iterable[Problem]:
        yield from missing_runtime("the recipe measures the result", "benchmark=none")
        asked = own_settings(recipe, BenchmarkSettings)
        lengths = asked.prompt_lengths
        if not lengths or min(lengths) < 1 or asked.new_tokens < 2 or asked.rounds < 1:
            yield Problem(
                f"benchmark.prompt_lengths={lengths}, new_tokens={asked.new_tokens}, "
                f"rounds={asked.rounds}.",
                "prompts of a token and more, at least 2 new tokens and 1 round",
                "choose benchmark=standard and change less",
            )

    def run(self, artifact: Package, run: Run) -> Done[Package]:
        provider = run.recipe.target.execution_provider
        asked = own_settings(run.recipe, BenchmarkSettings)
        if not is_available(provider):
            missing = f"not measured: the runtime here has no {provider} provider"
            return Done(artifact, summary=missing)
        report = bench(
            [artifact.folder],
            asked.prompt_lengths,
            asked.new_tokens,
            asked.rounds,
            run.progress.advance,
        )
        return Done(artifact, facts(report), _shown(report))


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
