"""Logits of a converted folder, computed by onnxruntime on the CPU as the folder ships.

The weights, the kernels and their accuracy level are the folder's own. A graph that keeps only
each prompt's last token in front of lm_head is run without that node; nothing is written for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import ConvertError, Problem

if TYPE_CHECKING:
    import onnx_ir as ir

LOGITS = "logits"
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
"""onnxruntime's session option: where the data of a model given as bytes lies."""
_SELECTING = ("Gather", "GatherND", "Slice", "Squeeze", "Unsqueeze", "Reshape")
"""Operators by which a graph keeps the last token."""
_AFTER_HEAD = ("Cast", "Add", "Mul", "Div", "Tanh")
"""What may stand between lm_head and the logits."""
_CACHE_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
}


def folder_logits(
    folder: Path,
    input_ids: NDArray[np.int64],
    positions: slice = slice(None),
    threads: int | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Logits float32 [T, vocab_size] at `positions` of each row of `input_ids`, int64 [n, n_ctx].

    Every row starts from an empty cache. `threads` None means all cores.

    Raises:
        ConvertError: the folder holds no model, or onnxruntime cannot run it on the CPU.
    """
    session = open_session(folder, threads)
    for row in input_ids:
        (logits,) = session.run([LOGITS], model_inputs(session, row))
        yield logits[0, positions].astype(np.float32)


def open_session(folder: Path, threads: int | None = None) -> Any:
    """An onnxruntime session that gives the logits of every token; see `folder_logits`."""
    import onnxruntime

    path = _model_path(folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    model: str | bytes = str(path)
    content = full_logits_model(path)
    if content is not None:
        options.add_session_config_entry(_EXTERNAL_FOLDER, str(folder))
        model = content
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no other base class
        raise ConvertError(
            Problem(
                f"onnxruntime cannot load {path} on the CPU: {_first_line(error)}",
                "a graph whose operators have CPU kernels",
                "evaluate the same recipe with target.float_type=fp16 or fp32",
            )
        ) from error


def full_logits_model(path: Path) -> bytes | None:
    """The model without its last-token node, weights still in their file; None if it has none."""
    import onnx_ir as ir
    import onnx_ir.passes.common as ir_passes

    model = ir.load(path)
    logits = next(value for value in model.graph.outputs if value.name == LOGITS)
    head = _head(logits)
    hidden = head.inputs[0]
    while (maker := hidden.producer() if hidden else None) and maker.op_type in _SELECTING:
        hidden = maker.inputs[0]
    if hidden is head.inputs[0]:
        return None
    head.replace_input_with(0, hidden)
    logits.shape = ir.Shape([None, None, logits.shape[-1] if logits.shape else None])
    ir_passes.RemoveUnusedNodesPass()(model)
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def model_inputs(session: Any, token_ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """What a session takes to read `token_ids`, int64 [n], from the start: an empty cache."""
    count = len(token_ids)
    known = {
        "input_ids": token_ids,
        "attention_mask": np.ones(count, dtype=np.int64),
        "position_ids": np.arange(count),
    }
    inputs: dict[str, NDArray[Any]] = {}
    for item in session.get_inputs():
        if item.name in known:
            inputs[item.name] = np.asarray(known[item.name], dtype=np.int64)[None]
        else:
            heads, size = item.shape[1], item.shape[3]
            inputs[item.name] = np.zeros((1, heads, 0, size), dtype=_CACHE_TYPES[item.type])
    return inputs


def _head(logits: ir.Value) -> ir.Node:
    """The node that multiplies with lm_head."""
    node = logits.producer()
    while node is not None and node.op_type in _AFTER_HEAD and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None:
        raise ValueError(f"{LOGITS} is not made by any node of the graph")
    return node


def _model_path(folder: Path) -> Path:
    try:
        config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        path = folder / str(config["model"]["decoder"]["filename"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConvertError(_not_a_folder(folder, f"genai_config.json: {error}")) from None
    if not path.is_file():
        raise ConvertError(_not_a_folder(folder, f"{path.name} is missing"))
    return path


def _not_a_folder(folder: Path, reason: str) -> Problem:
    return Problem(
        f"{folder} is not a converted model ({reason}).",
        "a folder that `convert recipe=NAME` wrote",
        "correct the path, or convert the model first",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
