"""olive: hand the packaged model to Olive, and take back only what is still the same model.

Olive runs in a process of its own, on files below the staging folder. Its result replaces the
model when its inputs and outputs are those of genai_config.json, onnxruntime-genai loads it, and
its next-token distributions stay within `olive.max_kld` of those of the folder before Olive, which
`verify` has compared with the reference: two comparisons, each with its own stated tolerance.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir
import torch

from converter.engine.artifacts import Package
from converter.engine.engine import Pass, Run
from converter.errors import ConvertError, Problem, raise_if
from converter.graph.cpu_model import full_logits_model
from converter.model.decoder import Decoder
from converter.olive.config import PlannedPass, plan_problems, planned_passes
from converter.olive.process import (
    check_passes,
    installation_problem,
    measure,
    olive_version,
    run_passes,
)
from converter.output.model_writer import DATA_FILE, MODEL_FILE
from converter.progress import format_bytes
from converter.recipe.schema import Recipe
from converter.runtime.session import missing_runtime
from converter.text.texts import BUILTIN, evaluation_chunks, load_text
from passes.verify import cpu_copy, generate, prompt_tokens

CONFIG_FILE = "genai_config.json"
FULL_LOGITS = "full_logits.onnx"
"""Stands beside the data file while Olive measures: onnx refuses data behind links."""
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
EVALUATION_TOKENS, EVALUATION_CHUNKS = 128, 4
"""Built-in text for Olive's perplexity: the same tokens for every model with one tokenizer."""


@dataclass(frozen=True)
class Agreement:
    """How a model's next-token distributions compare with another's on the same tokens."""

    mean_kld: float
    """Mean KL divergence of the second from the first, in nats."""
    same_tokens: int
    """Steps whose most likely token is the same."""
    steps: int

    def __str__(self) -> str:
        return f"{self.same_tokens} of {self.steps} tokens the same, KL {self.mean_kld:.1e}"


class Olive(Pass[Package, Package]):
    """Runs named Olive passes, or those of an Olive workflow file, on the packaged model."""

    name = "olive"
    takes = Package
    gives = Package
    slot = "olive"
    guarantees = (
        "inputs and outputs are named, typed and shaped as genai_config.json and onnxruntime-genai "
        "need them",
        "onnxruntime-genai loads the folder, and its next-token distributions are within "
        "olive.max_kld of those before Olive",
        "after a failure nothing is published, and an older output is untouched",
        "Olive sends no telemetry, uses no network and leaves no file outside of the folder",
    )

    def __init__(self) -> None:
        self._agreement: Agreement | None = None

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
            unknown = {problem.found.partition(":")[0] for problem in problems}
            rest = [item for item in passes if item.label not in unknown]
            if rest:
                problems += check_passes(rest, recipe.target.execution_provider)
            yield from problems
        except ConvertError as error:
            yield from error.problems

    def run(self, artifact: Package, run: Run) -> Package:
        passes = planned_passes(run.recipe.olive)
        with TemporaryDirectory(dir=artifact.folder, prefix=".olive-") as name:
            if passes:
                candidate = _hand_over(artifact, passes, run, Path(name))
                raise_if(interface_problems(artifact.folder, candidate))
                self._agreement = compare(artifact, candidate, run.recipe)
                _raise_if_different(self._agreement, run.recipe)
                _replace(artifact.folder, candidate)
            metrics = _measure(artifact, run, Path(name)) if run.recipe.olive.evaluate else {}
        self._record(passes, metrics, run)
        nbytes = sum(path.stat().st_size for path in artifact.folder.iterdir())
        return dataclasses.replace(artifact, nbytes=nbytes)

    def summary(self, given: Package) -> str:
        same = f", {self._agreement}" if self._agreement else ""
        return f"{format_bytes(given.nbytes)}{same}"

    def _record(
        self, passes: Sequence[PlannedPass], metrics: Mapping[str, float], run: Run
    ) -> None:
        version = olive_version()
        run.staging.lock.setdefault("versions", {})["olive-ai"] = version
        run.staging.lock["olive"] = [
            {"type": item.type, "config": dict(item.config)} for item in passes
        ]
        facts: dict[str, Any] = dict(metrics)
        if self._agreement is not None:
            facts |= dataclasses.asdict(self._agreement)
        run.facts[self.name] = facts


def interface_problems(before: Path, after: Path) -> Iterator[Problem]:
    """What keeps onnxruntime-genai from using the model in the folder `after`.

    Names come from genai_config.json, types and fixed dimensions from the model in `before`.
    """
    config = json.loads((before / CONFIG_FILE).read_text(encoding="utf-8"))
    old, new = (ir.load(folder / MODEL_FILE).graph for folder in (before, after))
    for kind, was, now in (
        ("inputs", old.inputs, new.inputs),
        ("outputs", old.outputs, new.outputs),
    ):
        named = config_names(config, kind)
        values = {str(value.name): value for value in now}
        originals = {str(value.name): value for value in was}
        extra = sorted(values.keys() - named) if kind == "inputs" else []
        for name in [*sorted(named - values.keys()), *extra]:
            yield _misnamed(kind, name, sorted(values.keys() - named))
        for name in sorted(named & values.keys() & originals.keys()):
            yield from _changed(kind, originals[name], values[name])
    caches = [*new.inputs, *new.outputs]
    types = {str(value.dtype) for value in caches if value.name != "logits" and _is_float(value)}
    if len(types) > 1:
        yield Problem(
            f"After Olive the past and present caches have the types {', '.join(sorted(types))}.",
            "one type: onnxruntime-genai uses a present value as the next past value",
            "let the passes convert all of them, or none",
        )


def config_names(config: Mapping[str, Any], kind: str) -> set[str]:
    """Names that genai_config.json gives to the model's `inputs` or `outputs`."""
    decoder = config["model"]["decoder"]
    names: set[str] = set()
    for pattern in decoder[kind].values():
        layers = range(decoder["num_hidden_layers"]) if "%d" in pattern else range(1)
        names |= {pattern.replace("%d", str(layer)) for layer in layers}
    return names


def compare(package: Package, candidate: Path, recipe: Recipe) -> Agreement:
    """The candidate's next-token distributions against the package's, on the package's tokens.

    Raises:
        ConvertError: onnxruntime-genai cannot load or run the candidate.
    """
    with TemporaryDirectory(dir=candidate.parent) as name:
        places = [Path(name) / part for part in ("before", "after")]
        for place in places:
            place.mkdir()
        before = cpu_copy(package.folder, places[0])
        prompt = prompt_tokens(package, recipe, before)
        tokens, expected = generate(before, prompt, recipe.verify.new_tokens)
        after = cpu_copy(candidate, places[1])
        try:
            found = forced_logits(after, tokens[:-1], len(prompt))
        except Exception as error:  # onnxruntime-genai raises its own kinds
            reason = " ".join(str(error).split())[:400]
            raise ConvertError(
                Problem(
                    f"onnxruntime-genai cannot run what Olive returned: {reason}",
                    "a folder that loads and generates",
                    "remove the pass that breaks it from the slot olive, or add olive=none",
                )
            ) from error
    return agreement(expected, found)


def agreement(expected: torch.Tensor, found: torch.Tensor) -> Agreement:
    """Compare logits of shape (steps, vocab_size)."""
    ours, theirs = (logits.double().log_softmax(-1) for logits in (expected, found))
    kld = (ours.exp() * (ours - theirs)).sum(-1).mean()
    same = int((expected.argmax(-1) == found.argmax(-1)).sum())
    return Agreement(float(kld), same, len(expected))


def forced_logits(folder: Path, tokens: Sequence[int], prompt: int) -> torch.Tensor:
    """float32 logits (steps, vocab_size) after `prompt` tokens and after each later one."""
    import numpy as np
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(tokens) + 1, do_sample=False)
    generator = og.Generator(model, parameters)
    steps = []
    for part in (tokens[:prompt], *([token] for token in tokens[prompt:])):
        generator.append_tokens(np.asarray(part, dtype=np.int32))
        last = np.asarray(generator.get_output("logits"))[0, -1]
        steps.append(torch.from_numpy(last.astype(np.float32)))
    return torch.stack(steps)


def _hand_over(package: Package, passes: Sequence[PlannedPass], run: Run, scratch: Path) -> Path:
    """The package's folder with the model that Olive made of it, below `scratch`."""
    recipe, say = run.recipe, _teller(run)
    provider, timeout = recipe.target.execution_provider, recipe.olive.timeout
    made = run_passes(passes, provider, package.folder, scratch, timeout, say)
    return _candidate(package.folder, made, scratch)


def _measure(package: Package, run: Run, scratch: Path) -> dict[str, float]:
    olive, full = run.recipe.olive, package.folder / FULL_LOGITS
    files: dict[str, str] = {
        name: FULL_LOGITS if name == "perplexity" else MODEL_FILE for name in olive.evaluate
    }
    rows = _evaluation_rows(package, scratch) if "perplexity" in files else []
    try:
        if rows:
            full.write_bytes(full_logits_model(package.folder))
        return measure(package.folder, files, rows, scratch, olive.timeout, _teller(run))
    finally:
        full.unlink(missing_ok=True)


def _teller(run: Run) -> Callable[[str], None]:
    return lambda line: run.progress.message(f"  olive: {line}")


def _evaluation_rows(package: Package, scratch: Path) -> list[list[int]]:
    """Rows of equal length: the built-in evaluation text in the package's tokens."""
    import onnxruntime_genai as og

    if not (package.folder / "tokenizer.json").is_file():
        raise ConvertError(
            Problem(
                "olive.evaluate asks for perplexity, and the folder has no tokenizer.",
                "a source with a tokenizer, to turn text into tokens",
                "remove perplexity from olive.evaluate",
            )
        )
    with TemporaryDirectory(dir=scratch) as name:
        tokenizer = og.Tokenizer(og.Model(str(cpu_copy(package.folder, Path(name)))))
        chunks = evaluation_chunks(
            load_text(BUILTIN, half="evaluation"),
            tokenizer.encode,
            n_ctx=EVALUATION_TOKENS,
            max_chunks=EVALUATION_CHUNKS,
        )
    rows: list[list[int]] = chunks.input_ids.tolist()
    return rows


def _candidate(folder: Path, model: Path, scratch: Path) -> Path:
    """A folder like the package, with Olive's model under the names that ours has."""
    candidate = scratch / "candidate"
    candidate.mkdir()
    try:
        made = ir.load(model)
        _restore_order(made.graph, ir.load(folder / MODEL_FILE).graph)
        ir.save(made, candidate / MODEL_FILE, external_data=DATA_FILE)
    except Exception as error:  # protobuf, onnx_ir and the file system each raise their own
        raise ConvertError(
            Problem(
                f"What Olive returned is not an ONNX model: {' '.join(str(error).split())[:300]}",
                "model.onnx, with its external data beside it",
                "remove the pass that breaks it from the slot olive, or add olive=none",
            )
        ) from error
    for path in folder.iterdir():
        if path.is_file() and path.name not in (MODEL_FILE, DATA_FILE):
            os.symlink(path, candidate / path.name)
    return candidate


def _restore_order(graph: ir.Graph, before: ir.Graph) -> None:
    """Put inputs and outputs in the order of `before`; MatMulNBitsToQDQ moves the logits."""
    for mine, theirs in ((graph.inputs, before.inputs), (graph.outputs, before.outputs)):
        order = {value.name: place for place, value in enumerate(theirs)}
        mine[:] = sorted(mine, key=lambda value: order.get(value.name, len(order)))


def _replace(folder: Path, candidate: Path) -> None:
    for name in (DATA_FILE, MODEL_FILE):
        if (candidate / name).exists():
            os.replace(candidate / name, folder / name)
        else:  # everything is small enough to stand in the graph
            (folder / name).unlink(missing_ok=True)


def _raise_if_different(found: Agreement, recipe: Recipe) -> None:
    if not found.mean_kld <= recipe.olive.max_kld:  # NaN is a failure
        raise ConvertError(
            Problem(
                f"After Olive the model differs: {found}.",
                f"a mean KL divergence of at most {recipe.olive.max_kld:g} nats",
                f"choose milder settings, or accept it: olive.max_kld={2 * found.mean_kld:.1g}",
            )
        )


def _misnamed(kind: str, name: str, unknown: Sequence[str]) -> Problem:
    if name in unknown:
        found = f"After Olive the model has the {kind[:-1]} {name}, which nothing feeds."
    else:
        others = f"; it has {', '.join(unknown)} instead" if unknown else ""
        found = f"After Olive the model lacks the {kind[:-1]} {name}{others}."
    return Problem(
        found,
        f"the {kind} that {CONFIG_FILE} names",
        "rename it back with a GraphSurgeries pass (RenameInputs, RenameOutputs), or remove the "
        "pass that renames it",
    )


def _changed(kind: str, before: ir.Value, after: ir.Value) -> Iterator[Problem]:
    floats = _is_float(before) and _is_float(after)
    if before.dtype != after.dtype and not floats:
        yield Problem(
            f"After Olive the {kind[:-1]} {after.name} has the type {after.dtype}.",
            f"{before.dtype}, as before",
            "remove the pass that converts it",
        )
    old, new = (list(value.shape) if value.shape is not None else [] for value in (before, after))
    fixed = zip(old, new, strict=False)
    if len(old) != len(new) or any(isinstance(b, int) and a != b for a, b in fixed):
        yield Problem(
            f"After Olive the {kind[:-1]} {after.name} has the shape {after.shape}.",
            f"{before.shape}, as before",
            "remove the pass that fixes or reorders its dimensions",
        )


def _is_float(value: ir.Value) -> bool:
    return value.dtype in FLOATS
