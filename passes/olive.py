"""olive: hand the packaged model to Olive, and take back only what is still the same model.

Olive runs in a process of its own, on files below the staging folder. Its result replaces the
model when its inputs and outputs are those of genai_config.json, onnxruntime-genai loads it, and
its next-token distributions stay within `olive.max_kld` of those of the folder before Olive, which
`verify` has compared with the reference: two comparisons, each with its own stated tolerance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from converter.engine.contract import Done, Pass, Run
from converter.errors import ConvertError, Problem, raise_if
from converter.graph.cpu_model import full_logits_model
from converter.graph.names import MODEL_FILE
from converter.model.decoder import Decoder
from converter.olive.agreement import Agreement, compare, raise_if_different
from converter.olive.candidate import interface_problems, make_candidate, take_place
from converter.olive.config import PlannedPass, plan_problems, planned_passes
from converter.olive.evaluation import evaluation_rows
from converter.olive.process import (
    check_passes,
    installation_problem,
    measure,
    olive_version,
    run_passes,
)
from converter.output.package import Package
from converter.progress import format_bytes
from converter.recipe.schema import Recipe
from converter.runtime.session import missing_runtime

FULL_LOGITS = "full_logits.onnx"
"""Stands beside the data file while Olive measures: onnx refuses data behind links."""


class Olive(Pass[Package, Package]):
    """Runs named Olive passes, or those of an Olive workflow file, on the packaged model."""

    name = "olive"
    slot = "olive"
    guarantees = (
        "inputs and outputs are named, typed and shaped as genai_config.json and onnxruntime-genai "
        "need them",
        "onnxruntime-genai loads the folder, and its next-token distributions are within "
        "olive.max_kld of those before Olive",
        "after a failure nothing is published, and an older output is untouched",
        "Olive sends no telemetry, uses no network and leaves no file outside of the folder",
    )

    def enabled(self, recipe: Recipe) -> bool:
        return bool(recipe.olive.passes or recipe.olive.workflow or recipe.olive.evaluate)

    def requires(self, recipe: Recipe, decoder: Decoder | None) -> Iterable[Problem]:
        yield from missing_runtime("the result of Olive must be loaded", "olive=none")
        missing = installation_problem()
        if missing is not None:
            yield missing
            return
        try:
            passes = planned_passes(recipe.olive)
            problems = list(plan_problems(passes, recipe))
            unknown = {problem.where for problem in problems}
            rest = [item for item in passes if item.label not in unknown]
            if rest:
                problems += check_passes(rest, recipe.target.execution_provider)
            yield from problems
        except ConvertError as error:
            yield from error.problems

    def run(self, artifact: Package, run: Run) -> Done[Package]:
        passes = planned_passes(run.recipe.olive)
        same: Agreement | None = None
        with TemporaryDirectory(dir=artifact.folder, prefix=".olive-") as name:
            if passes:
                candidate = _hand_over(artifact, passes, run, Path(name))
                raise_if(interface_problems(artifact.folder, candidate))
                same = compare(artifact, candidate, run.recipe)
                raise_if_different(same, run.recipe)
                take_place(artifact.folder, candidate)
            metrics = _measure(artifact, run, Path(name)) if run.recipe.olive.evaluate else {}
        _record(passes, run)
        nbytes = sum(path.stat().st_size for path in artifact.folder.iterdir())
        facts = metrics | (dataclasses.asdict(same) if same else {})
        summary = f"{format_bytes(nbytes)}{f', {same}' if same else ''}"
        return Done(dataclasses.replace(artifact, nbytes=nbytes), facts, summary)


def _record(passes: Sequence[PlannedPass], run: Run) -> None:
    """Note in the lock file which passes ran, and of which Olive."""
    run.staging.lock.setdefault("versions", {})["olive-ai"] = olive_version()
    run.staging.lock["olive"] = [
        {"type": item.type, "config": dict(item.config)} for item in passes
    ]


def _hand_over(package: Package, passes: Sequence[PlannedPass], run: Run, scratch: Path) -> Path:
    """The package's folder with the model that Olive made of it, below `scratch`."""
    recipe, say = run.recipe, _teller(run)
    provider, timeout = recipe.target.execution_provider, recipe.olive.timeout
    made = run_passes(passes, provider, package.folder, scratch, timeout, say)
    return make_candidate(package.folder, made, scratch)


def _measure(package: Package, run: Run, scratch: Path) -> dict[str, float]:
    olive, full = run.recipe.olive, package.folder / FULL_LOGITS
    files: dict[str, str] = {
        name: FULL_LOGITS if name == "perplexity" else MODEL_FILE for name in olive.evaluate
    }
    rows = evaluation_rows(package.folder) if "perplexity" in files else []
    try:
        if rows:
            full.write_bytes(full_logits_model(package.folder))
        return measure(package.folder, files, rows, scratch, olive.timeout, _teller(run))
    finally:
        full.unlink(missing_ok=True)


def _teller(run: Run) -> Callable[[str], None]:
    return lambda line: run.progress.message(f"  olive: {line}")
