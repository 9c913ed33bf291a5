"""Olive's settings as data: what a recipe hands over, and a recipe as an Olive workflow.

Nothing here imports Olive. Formats: Olive's workflow file (its documentation, "Olive options") and
the list of its passes, `olive/olive_config.json` in the package olive-ai.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem, first_line, raise_if
from converter.graph.names import EMBEDDING_NODE, HEAD_NODE, LOGITS, MODEL_FILE, quantized
from converter.providers import CPU
from converter.recipe.schema import LEFT_IN_FLOAT, OliveConfig, QuantConfig, Recipe
from converter.recipe.trust import OUTSIDE
from converter.recipe.validation import nearest_names
from converter.storage.user_path import user_path

MODULES = "olive.passes.onnx."
RENAMING = ("OnnxBlockWiseRtnQuantization", "OnnxHqqQuantization")
"""Passes that call the output of a node that they replace NAME_Q4, the graph's `logits` too."""
WORKFLOW_REFUSED = ("search_strategy", "data_configs", "packaging_config")
OWN_KEYS = ("type", "config", "host", "evaluator")
"""Keys of a pass in a workflow file; all others count as its settings."""


@dataclass(frozen=True)
class PlannedPass:
    """One Olive pass that a recipe asks for; `label` says where the recipe does."""

    label: str
    type: str
    config: Mapping[str, Any] = field(default_factory=dict)


def planned_passes(olive: OliveConfig) -> list[PlannedPass]:
    """The Olive passes of a recipe, in order.

    Raises:
        ConvertError: passes and a workflow are both given, or the workflow cannot be read.
    """
    if olive.workflow is None:
        return [
            PlannedPass(f"olive.passes[{number}]", item.type, item.config)
            for number, item in enumerate(olive.passes)
        ]
    if olive.passes:
        raise ConvertError(
            Problem(
                "The recipe has both olive.passes and olive.workflow.",
                "one of the two",
                "set olive.workflow=null, or olive.passes=[]",
            )
        )
    return read_workflow(user_path(olive.workflow))


def read_workflow(path: Path) -> list[PlannedPass]:
    """The passes of an Olive workflow file; its input model, systems and cache play no part.

    Raises:
        ConvertError: the file cannot be read, or its result depends on more than its passes.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        found = f"Cannot read {path}: {first_line(error)}."
        raise ConvertError(Problem(found, "an Olive workflow", "correct olive.workflow")) from error
    passes = values.get("passes") if isinstance(values, Mapping) else None
    if not isinstance(passes, Mapping) or not passes:
        raise ConvertError(
            Problem(f"{path} has no passes.", "passes: {name: {type: …}}", "add them to the file")
        )
    raise_if(_workflow_problems(path, values, passes))
    items = [(name, item[0] if isinstance(item, list) else item) for name, item in passes.items()]
    return [_from_workflow(f"{path.name}, pass {name!r}", item) for name, item in items]


def _workflow_problems(
    path: Path, values: Mapping[str, Any], passes: Mapping[str, Any]
) -> Iterator[Problem]:
    engine = values.get("engine")
    settings = {**values, **(engine if isinstance(engine, Mapping) else {})}
    for key in WORKFLOW_REFUSED:
        if settings.get(key):
            yield Problem(
                f"{path.name} has {key}.",
                "passes with fixed settings: their result must depend on the recipe alone",
                f"remove {key}, and write the settings that it found into the passes",
            )
    for name, item in passes.items():
        one = item[0] if isinstance(item, list) and len(item) == 1 else item
        if not isinstance(one, Mapping) or not isinstance(one.get("type"), str):
            yield Problem(
                f"The pass {name!r} is not one pass with a type.",
                "{type: NAME, setting: value, …}; a list of alternatives is a search",
                "leave the one alternative that you want",
                where=path.name,
            )


def _from_workflow(label: str, item: Mapping[str, Any]) -> PlannedPass:
    config = dict(item.get("config") or {})
    config |= {key: value for key, value in item.items() if key not in OWN_KEYS}
    return PlannedPass(label, item["type"], config)


def olive_passes() -> dict[str, str]:
    """Names of all passes of the installed Olive, with their modules; empty without Olive."""
    spec = find_spec("olive")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "olive_config.json"
        if path.is_file():
            known = json.loads(path.read_text(encoding="utf-8"))["passes"]
            return {name: item["module_path"] for name, item in known.items()}
    return {}


def plan_problems(passes: Sequence[PlannedPass], recipe: Recipe) -> Iterator[Problem]:
    """What can be said of the passes without starting Olive: names, reach, known breakage."""
    known = olive_passes()
    for number, item in enumerate(passes):
        yield from _type_problems(item, known)
        for key in item.config:
            if OUTSIDE.search(key) or key in ("user_script", "script_dir"):
                yield Problem(
                    f"{key} reaches outside of the recipe.",
                    "settings that run, read and write nothing but the model",
                    f"remove {key}; code of your own belongs in a pass of your own "
                    "(docs/guide/own_pass.md)",
                    where=item.label,
                )
        yield from _breakage(item, passes[number + 1 :], recipe)


def _type_problems(item: PlannedPass, known: Mapping[str, str]) -> Iterator[Problem]:
    lower = {name.lower(): name for name in known}
    found = lower.get(item.type.lower())
    if found is None:
        usable = [name for name, module in known.items() if module.startswith(MODULES)]
        near = nearest_names(item.type, usable)
        yield Problem(
            f"Olive has no pass {item.type!r}.",
            f"one of its ONNX passes, such as {', '.join(near or usable[:4])}",
            f"write type: {(near or usable)[0]}",
            where=item.label,
        )
    elif not known[found].startswith(MODULES):
        yield Problem(
            f"Olive's {found} does not work on an ONNX model.",
            "a pass from one ONNX model to one ONNX model",
            f"remove {found} from the recipe",
            where=item.label,
        )


def _breakage(item: PlannedPass, later: Sequence[PlannedPass], recipe: Recipe) -> Iterator[Problem]:
    """Passes that report success and leave a folder that onnxruntime-genai cannot load."""
    name = next((name for name in RENAMING if name.lower() == item.type.lower()), None)
    if name is None or _head_is_quantized(recipe.quant) or _spares_head(item.config):
        return
    if any(_renames_back(other) for other in later):
        return
    renamed = quantized(LOGITS, item.config.get("bits", 4))
    yield Problem(
        f"Olive's {name} renames the output `logits` to `{renamed}`, "
        "and onnxruntime-genai finds no logits then.",
        f"{HEAD_NODE} left out, or the output renamed back",
        f"add config.nodes_to_exclude: [{HEAD_NODE}], or a following GraphSurgeries pass with "
        f"surgeries: [{{surgeon: RenameOutputs, old_names: [{renamed}], new_names: [logits]}}]",
        where=item.label,
    )


def _head_is_quantized(quant: QuantConfig) -> bool:
    return quant.round != "none" and quant.lm_head.bits != LEFT_IN_FLOAT


def _spares_head(config: Mapping[str, Any]) -> bool:
    included = config.get("nodes_to_include")
    return HEAD_NODE in (config.get("nodes_to_exclude") or ()) or bool(
        included and HEAD_NODE not in included
    )


def _renames_back(item: PlannedPass) -> bool:
    surgeries = item.config.get("surgeries")
    return isinstance(surgeries, list) and any(
        isinstance(surgery, Mapping) and LOGITS in (surgery.get("new_names") or ())
        for surgery in surgeries
    )


# A recipe as a workflow of Olive


@dataclass(frozen=True)
class Workflow:
    """An Olive workflow, and in words: how to make its input, and what it cannot say."""

    values: dict[str, Any]
    input_overrides: tuple[str, ...]
    """What to add to the recipe's command line for the folder that the workflow starts from."""
    unsaid: tuple[str, ...]


def workflow_of(recipe: Recipe, folder: Path, files: Iterable[str], output: str) -> Workflow:
    """The recipe as an Olive workflow that starts from `folder`, a conversion of ours.

    Args:
        recipe: a complete recipe.
        folder: the input, made by the recipe with `input_overrides`.
        files: names of the files in it that go along with the model.
        output: folder that the workflow writes.

    Raises:
        ConvertError: the recipe has nothing for Olive to do.
    """
    quantizes = recipe.quant.round == "rtn" and not recipe.quant.calibrated
    steps = list(rtn_passes(recipe)) if quantizes else []
    steps += planned_passes(recipe.olive)
    if not steps:
        raise ConvertError(
            Problem(
                f"The recipe {recipe.name} has nothing that Olive could do.",
                "quant=rtn, or passes in the slot olive",
                "choose another recipe, or add olive=kquant",
            )
        )
    overrides = ["olive=none", *(["quant=none"] if quantizes else [])]
    values = {
        "input_model": {
            "type": "ONNXModel",
            "model_path": str(folder),
            "onnx_file_name": MODEL_FILE,
            "model_attributes": {"additional_files": [str(folder / name) for name in files]},
        },
        "systems": {
            "local": {
                "type": "LocalSystem",
                "accelerators": [
                    {"device": CPU.device, "execution_providers": [CPU.onnxruntime_name]}
                ],
            }
        },
        "target": "local",
        "passes": {
            f"{number:02d}_{step.type}": {"type": step.type, **step.config}
            for number, step in enumerate(steps, 1)
        },
        "evaluate_input_model": False,
        "output_dir": output,
    }
    return Workflow(values, tuple(overrides), tuple(_unsaid(recipe)))


def rtn_passes(recipe: Recipe) -> Iterator[PlannedPass]:
    """The recipe's rounding to nearest, as passes of Olive."""
    quant, renamed = recipe.quant, ""
    level = recipe.accuracy_level
    own = {HEAD_NODE: quant.lm_head, EMBEDDING_NODE: quant.embedding}
    forms = {
        node: (
            part.bits or quant.bits,
            part.block_size or quant.block_size,
            quant.symmetric if part.symmetric is None else part.symmetric,
        )
        for node, part in own.items()
    }
    main = (quant.bits, quant.block_size, quant.symmetric)
    apart = [node for node, form in forms.items() if node == EMBEDDING_NODE or form != main]
    for node in apart:
        if forms[node][0] != LEFT_IN_FLOAT:
            yield _rtn(forms[node], level, {"nodes_to_include": [node]}, axis=1)
    yield _rtn(main, level, {"nodes_to_exclude": apart})
    if forms[HEAD_NODE][0] != LEFT_IN_FLOAT:
        renamed = quantized(LOGITS, forms[HEAD_NODE][0])
        surgery = {"surgeon": "RenameOutputs", "old_names": [renamed], "new_names": [LOGITS]}
        yield PlannedPass("quant", "GraphSurgeries", {"surgeries": [surgery]})


def _rtn(
    form: tuple[int, int, bool], level: int, nodes: Mapping[str, list[str]], axis: int = 0
) -> PlannedPass:
    bits, block_size, symmetric = form
    config = {"bits": bits, "block_size": block_size, "is_symmetric": symmetric, "axis": axis}
    return PlannedPass("quant", RENAMING[0], {**config, "accuracy_level": level, **nodes})


def _unsaid(recipe: Recipe) -> Iterator[str]:
    yield "reading the checkpoint, the graph and the tokenizer: the input folder holds them"
    if recipe.quant.round == "rtn" and not recipe.quant.calibrated:
        if recipe.quant.embedding.bits != LEFT_IN_FLOAT:
            yield "ties in the embedding: Olive rounds half to even, convert away from zero"
        float_type = recipe.target.float_type
        if float_type != "fp32":
            yield f"rounding from the checkpoint's values: Olive sees them in {float_type}"
    elif recipe.quant.round != "none":
        yield "the recipe's quantization: the input folder is quantized already"
    if recipe.olive.evaluate:
        yield f"olive.evaluate={','.join(recipe.olive.evaluate)}: it uses convert's text"
    yield "the checks of the result: verify, and the comparison of slot olive"
