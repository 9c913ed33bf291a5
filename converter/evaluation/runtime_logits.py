"""Logits of a converted folder, computed by onnxruntime on the CPU as the folder ships.

Weights, kernels and their accuracy level are the folder's own; only the last-token node in front
of lm_head is left out (converter/graph/cpu_model.py), and nothing is written into the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import ConvertError, Problem, first_line
from converter.graph.cpu_model import full_logits_session
from converter.graph.names import ATTENTION_MASK, INPUT_IDS, LOGITS, MODEL_FILE, POSITION_IDS

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
    session = _open(folder, threads)
    for row in input_ids:
        (logits,) = session.run([LOGITS], model_inputs(session, row))
        yield logits[0, positions].astype(np.float32)


def model_inputs(session: Any, token_ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """What a session takes to read `token_ids`, int64 [n], from the start: an empty cache."""
    count = len(token_ids)
    known = {
        INPUT_IDS: token_ids,
        ATTENTION_MASK: np.ones(count, dtype=np.int64),
        POSITION_IDS: np.arange(count),
    }
    inputs: dict[str, NDArray[Any]] = {}
    for item in session.get_inputs():
        if item.name in known:
            inputs[item.name] = np.asarray(known[item.name], dtype=np.int64)[None]
        else:
            heads, size = item.shape[1], item.shape[3]
            inputs[item.name] = np.zeros((1, heads, 0, size), dtype=_CACHE_TYPES[item.type])
    return inputs


def _open(folder: Path, threads: int | None) -> Any:
    if not (folder / MODEL_FILE).is_file():
        raise ConvertError(
            Problem(
                f"{folder} has no {MODEL_FILE}.",
                "a folder that `convert recipe=NAME` wrote",
                "correct the path, or convert the model first",
            )
        )
    try:
        return full_logits_session(folder, threads or 0)
    except Exception as error:  # onnxruntime's exceptions share no other base class
        raise ConvertError(
            Problem(
                f"onnxruntime cannot load {folder / MODEL_FILE} on the CPU: {first_line(error)}.",
                "a graph whose operators have CPU kernels, and its data beside it",
                "convert again; if that does not help, report this",
            )
        ) from error
