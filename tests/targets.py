"""Every target in a recipe's words, and how near to the model its graph has to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from oracle import feeds

from converter.graph.cpu_model import full_logits_session
from converter.output.model_writer import write_model

TARGETS = ["cpu", "cuda", "dml", "webgpu", "nvtensorrtrtx"]
HALF = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2}
"""Relative error that rounding to the float type explains: its epsilon, a few layers deep."""
IDS = torch.tensor([[5, 9, 33, 2, 150, 77, 8, 120, 41, 3, 99]])
INT4 = ["quant=rtn", "quant.embedding.block_size=32"]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def logits(graph: Any, folder: Path) -> torch.Tensor:
    folder.mkdir(exist_ok=True)
    write_model(graph.model, folder)
    session = full_logits_session(folder, threads=1)
    (found,) = session.run(["logits"], feeds(session, IDS.numpy()))
    return torch.from_numpy(found).float()


def words_for(target: str, *quant: str) -> list[str]:
    embedding = ["quant.embedding.bits=16"] if quant and target in ("dml", "nvtensorrtrtx") else []
    return [f"target={target}", "graph.last_token_logits=true", *quant, *embedding]
