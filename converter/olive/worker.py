"""Runs inside a process of its own, started by `converter.olive.process`: the only user of Olive.

A process of its own keeps Olive's telemetry, logging setup, cache and crashes away from the
conversion. It reads a job (JSON) and writes an answer (JSON); what it prints is shown as progress.

Job `check`: `passes` (label, type, config), `accelerator` [device, execution provider]; answer
`problems`. Job `run`: also `model` (folder), `file`, `work` (empty folder); answer `model` (path of
the resulting .onnx). Job `measure`: `model` (folder), `metrics` (name to the file to measure),
`tokens` (rows of token ids); answer `metrics`. An answer `failed` says what ended any of them.
"""

from __future__ import annotations

import inspect
import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from converter.errors import Problem
from converter.graph.names import ATTENTION_MASK, INPUT_IDS, LOGITS, POSITION_IDS
from converter.providers import CPU
from converter.recipe.validation import nearest_names

EXTERNAL = {"save_as_external_data": True, "all_tensors_to_one_file": True}
"""What Olive is told about large tensors, unless the recipe says otherwise."""
LATENCY_TOKENS = 32


def main(path: str) -> None:
    """Do the job in the file `path` and write the answer beside it, as `path`.answer."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        answer = {"check": check, "run": run, "measure": measure}[job["kind"]](job)
    except Exception as error:
        traceback.print_exc()
        answer = {"failed": _said(error)}
    Path(path + ".answer").write_text(json.dumps(answer), encoding="utf-8")


def check(job: Mapping[str, Any]) -> dict[str, Any]:
    """What Olive's own schemas find wrong with the passes, as `Problem` fields."""
    accelerator = _accelerator(job)
    problems: list[Problem] = []
    for item in job["passes"]:
        found = _pass_problems(item, accelerator)
        problems += [problem.at(item["label"]) for problem in found]
    return {"problems": [asdict(problem) for problem in problems]}


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run the passes one after the other; the first that fails ends it."""
    from olive.model import ONNXModelHandler
    from olive.package_config import OlivePackageConfig
    from olive.passes.olive_pass import create_pass_from_dict

    package, accelerator = OlivePackageConfig.load_default_config(), _accelerator(job)
    model = ONNXModelHandler(job["model"], onnx_file_name=job["file"])
    for number, item in enumerate(job["passes"]):
        print(f"{number + 1}/{len(job['passes'])} {item['type']}", flush=True)
        try:
            kind = package.import_pass_module(item["type"])
            known = kind.get_config_class(accelerator, True)[1]
            config = {key: value for key, value in EXTERNAL.items() if key in known}
            olive_pass = create_pass_from_dict(
                kind, config | item["config"], True, accelerator_spec=accelerator
            )
            model = olive_pass.run(model, str(Path(job["work"]) / str(number)))
        except Exception as error:  # Olive's passes raise anything
            traceback.print_exc()
            return {"failed": f"{item['label']} ({item['type']}): {_said(error)}"}
    if not isinstance(model, ONNXModelHandler):
        return {"failed": f"the result is a {type(model).__name__}, not one ONNX model"}
    return {"model": str(model.model_path)}


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Each metric of its model, by Olive's own evaluator on the CPU."""
    from olive.evaluator.olive_evaluator import OnnxEvaluator
    from olive.model import ONNXModelHandler

    found: dict[str, float] = {}
    for name, file in job["metrics"].items():
        model = ONNXModelHandler(job["model"], onnx_file_name=file)
        metric = _metric(name, model, job["tokens"])
        given = OnnxEvaluator().evaluate(
            model, [metric], execution_providers=[CPU.onnxruntime_name]
        )
        found |= {key: float(result.value) for key, result in given.items()}
    return {"metrics": found}


# Checks


def _pass_problems(item: Mapping[str, Any], accelerator: Any) -> Iterator[Problem]:
    from olive.package_config import OlivePackageConfig

    package = OlivePackageConfig.load_default_config()
    name = item["type"]
    try:
        module = package.get_pass_module_config(name)
        missing = [name for name in module.module_dependencies if not _installed(name)]
        if missing:
            yield _missing(name, missing)
            return
        kind = package.import_pass_module(name)
    except ImportError as error:
        yield _missing(name, [error.name or str(error)])
        return
    taken = inspect.signature(kind._run_for_config).parameters["model"].annotation
    if getattr(taken, "__name__", str(taken)) not in ("ONNXModelHandler", "OliveModelHandler"):
        yield Problem(
            f"Olive's {name} takes {getattr(taken, '__name__', taken)}.",
            "a pass from one ONNX model to one ONNX model",
            f"remove {name} from the recipe",
        )
        return
    yield from _config_problems(name, kind, item["config"], accelerator)


def _config_problems(
    name: str, kind: Any, config: Mapping[str, Any], accelerator: Any
) -> Iterator[Problem]:
    from pydantic import ValidationError

    schema, known = kind.get_config_class(accelerator, True)
    unknown = [key for key in config if key not in known]
    for key in unknown:
        near = nearest_names(key, known)
        yield Problem(
            f"Olive's {name} has no setting {key!r}.",
            f"one of {', '.join(near or known)}",
            f"write {near[0]}" if near else f"remove {key}",
        )
    kept = {key: value for key, value in config.items() if key in known}
    try:
        schema.model_validate(kept)
        kind.generate_config(accelerator, dict(kept), disable_search=True)
    except ValidationError as error:
        wrong = {str(detail["loc"][0]): detail for detail in reversed(error.errors())}
        for key, detail in wrong.items():
            lacking = detail["type"] == "missing"
            yield Problem(
                f"Olive's {name} lacks the setting {key}."
                if lacking
                else f"{key}={kept.get(key)!r} for Olive's {name}.",
                "a value for it"
                if lacking
                else str(detail["msg"]).removeprefix("Input should be "),
                f"set {key}: {known[key].description or 'see the documentation of Olive'}",
            )
    except (ValueError, AssertionError) as error:
        yield Problem(
            f"Olive's {name} refuses its settings: {_said(error)}.",
            "settings that it accepts",
            f"correct them as the error says, or remove {name} from the recipe",
        )
    for number, surgery in enumerate(kept.get("surgeries") or ()):
        for problem in _surgery_problems(surgery):
            yield problem.at(f"surgery {number}")


def _surgery_problems(surgery: Any) -> Iterator[Problem]:
    from olive.passes.onnx.graph_surgeries import GraphSurgeries, Surgeon

    names = {kind.__name__: kind for kind in Surgeon.registry.values()}
    surgeon = str(surgery.get("surgeon", "")) if isinstance(surgery, Mapping) else ""
    if surgeon.lower() not in Surgeon.registry:
        near = nearest_names(surgeon, names)
        yield Problem(
            f"Olive has no surgeon {surgeon!r}.",
            f"the name of one of its {len(names)} surgeons",
            f"write {near[0]}"
            if near
            else f"choose one of them, such as {', '.join(sorted(names)[:4])}",
        )
        return
    required, optional = GraphSurgeries.get_surgeon_parameters(Surgeon.registry[surgeon.lower()])
    given = set(surgery) - {"surgeon"}
    for key in sorted(given - {*required, *optional}):
        near = nearest_names(key, [*required, *optional])
        yield Problem(
            f"{surgeon} has no parameter {key!r}.",
            f"one of {', '.join([*required, *optional]) or 'none'}",
            f"write {near[0]}" if near else f"remove {key}",
        )
    for key in sorted(set(required) - given):
        yield Problem(f"{surgeon} lacks the parameter {key!r}.", "a value for it", f"set {key}")


def _missing(name: str, packages: Sequence[str]) -> Problem:
    return Problem(
        f"Olive's {name} needs {', '.join(packages)}.",
        "everything installed that the pass imports",
        f"pip install {' '.join(packages)}",
    )


# Olive's evaluator


def _metric(name: str, model: Any, tokens: Sequence[Sequence[int]]) -> Any:
    from olive.data.config import DataConfig
    from olive.evaluator.metric import Metric

    if name == "size_on_disk":
        return Metric(name=name, type="size_on_disk", sub_types=[{"name": "bytes"}])
    rows = [list(range(2, 2 + LATENCY_TOKENS))] if name == "latency" else tokens
    _register_components([_feed(model.io_config, row) for row in rows])
    data = DataConfig(
        name=f"convert_{name}",
        type="DataContainer",
        load_dataset_config={"type": "convert_feeds"},
        pre_process_data_config={"type": "skip_pre_process"},
        post_process_data_config={"type": "convert_logits"},
        dataloader_config={"type": "no_auto_batch_dataloader"},
    )
    if name == "latency":
        return Metric(
            name=name,
            type="latency",
            sub_types=[{"name": "avg"}, {"name": "p90"}],
            data_config=data,
        )
    return Metric(name=name, type="accuracy", sub_types=[{"name": "perplexity"}], data_config=data)


def _register_components(feeds: list[Any]) -> None:
    """Teach Olive's data registry our token rows, and which output holds the logits."""
    from olive.data.registry import Registry

    Registry.register_dataset("convert_feeds")(lambda **_: feeds)
    Registry.register_post_process("convert_logits")(lambda outputs, **_: outputs[LOGITS])


def _feed(io: Mapping[str, Any], row: Sequence[int]) -> tuple[dict[str, Any], Any]:
    """Inputs of one prefill without a past, and the tokens themselves as labels."""
    import torch

    ids = torch.tensor([list(row)])
    feeds: dict[str, Any] = {
        INPUT_IDS: ids,
        ATTENTION_MASK: torch.ones_like(ids),
        POSITION_IDS: torch.arange(len(row))[None],
    }
    for name, shape, kind in zip(
        io["input_names"], io["input_shapes"], io["input_types"], strict=True
    ):
        if name not in feeds:
            feeds[name] = torch.zeros(1, shape[1], 0, shape[3], dtype=getattr(torch, kind))
    return {name: feeds[name] for name in io["input_names"]}, ids


# What both need


def _accelerator(job: Mapping[str, Any]) -> Any:
    from olive.hardware import AcceleratorSpec

    device, provider = job["accelerator"]
    return AcceleratorSpec(accelerator_type=device, execution_provider=provider)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}".rstrip(".")


if __name__ == "__main__":
    main(sys.argv[1])
