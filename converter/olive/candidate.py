"""The model that Olive made, as a folder beside the package, and what keeps it from its place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from converter.errors import ConvertError, Problem, first_line
from converter.graph.names import DATA_FILE, LOGITS, MODEL_FILE
from converter.output.genai_config import CONFIG_FILE

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def make_candidate(folder: Path, model: Path, scratch: Path) -> Path:
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
                f"What Olive returned is not an ONNX model: {first_line(error)}.",
                "model.onnx, with its external data beside it",
                "remove the pass that breaks it from the slot olive, or add olive=none",
            )
        ) from error
    for path in folder.iterdir():
        if path.is_file() and path.name not in (MODEL_FILE, DATA_FILE):
            os.symlink(path, candidate / path.name)
    return candidate


def take_place(folder: Path, candidate: Path) -> None:
    """Put the candidate's model in the place of the folder's."""
    for name in (DATA_FILE, MODEL_FILE):
        if (candidate / name).exists():
            os.replace(candidate / name, folder / name)
        else:  # everything is small enough to stand in the graph
            (folder / name).unlink(missing_ok=True)


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
    types = {str(value.dtype) for value in caches if value.name != LOGITS and _is_float(value)}
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


def _restore_order(graph: ir.Graph, before: ir.Graph) -> None:
    """Put inputs and outputs in the order of `before`; MatMulNBitsToQDQ moves the logits."""
    for mine, theirs in ((graph.inputs, before.inputs), (graph.outputs, before.outputs)):
        order = {value.name: place for place, value in enumerate(theirs)}
        mine[:] = sorted(mine, key=lambda value: order.get(value.name, len(order)))


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
