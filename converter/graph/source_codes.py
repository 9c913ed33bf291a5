"""Which matrices of the graph keep the codes that the checkpoint holds them in, and why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from converter.errors import Problem
from converter.graph.matrices import graph_matrices, matrix_format, matrix_parts
from converter.graph.tensors import FLOAT_TYPES
from converter.model.decoder import Decoder
from converter.model.tensor_kinds import EMBEDDING, EXPERTS_DOWN, EXPERTS_GATE_UP, HEAD, leaf
from converter.quantization.coded_weight import CodedWeight, StoredWeight, stack_codes
from converter.recipe.schema import Recipe

KEPT, IN_FLOAT = "kept", "the recipe leaves them in float"
_EXACT = {torch.float32: (torch.float16, torch.bfloat16)}
"""Types of scales that each float type holds exactly, besides itself."""


_OWN_COLUMNS = {"o_proj", "down_proj", "shared_down_proj", EXPERTS_GATE_UP, EXPERTS_DOWN, HEAD}
"""Matrices that `indivisible` names; what it does not name reads hidden states."""


@dataclass(frozen=True)
class Decision:
    """What becomes of a matrix that the source holds quantized: its codes, or why they go."""

    stored: str
    codes: CodedWeight | None = None
    reason: str = ""
    scales: str = ""
    """Type that the scales are rounded to, where the graph's cannot hold their own."""

    @property
    def fate(self) -> str:
        """What becomes of it, in words behind `are`."""
        if self.codes:
            return f"{KEPT} with scales rounded to {self.scales}" if self.scales else KEPT
        done = "dequantized" if self.reason == IN_FLOAT else "rounded again"
        return f"{done}: {self.reason}"


def kept_codes(matrix: str, recipe: Recipe, decoder: Decoder) -> CodedWeight | None:
    """The source's codes (rows, columns) of a matrix of the graph, where the recipe keeps them."""
    found = decide(matrix, recipe, decoder)
    return found.codes if found else None


def decide(matrix: str, recipe: Recipe, decoder: Decoder) -> Decision | None:
    """What becomes of a matrix of the graph; None for one that the source holds in float."""
    parts = [decoder.weights[part] for part in matrix_parts(matrix)]
    stored = [part for part in parts if isinstance(part, StoredWeight)]
    if not stored:
        return _of_experts(matrix, recipe, decoder)
    names = " and ".join(dict.fromkeys(part.stored for part in stored))
    quant = recipe.quant
    form = matrix_format(matrix, quant) if quant.round != "none" else None
    coded = [part for part in stored if isinstance(part, CodedWeight)]
    reason = ""
    if form is None:
        reason = IN_FLOAT
    elif quant.source == "requantize":
        reason = "quant.source=requantize"
    elif len(coded) < len(stored):
        reason = next(part.obstacle for part in stored if not isinstance(part, CodedWeight))
    elif len(coded) < len(parts) or not all(coded[0].alike(part) for part in coded[1:]):
        reason = "what it stacks has several formats"
    elif coded[0].form.bits > form.bits:
        reason = f"the recipe asks for {form.bits} bits"
    elif recipe.target.quantized_weights != "MatMulNBits" and not coded[0].form.symmetric:
        reason = f"{recipe.target.quantized_weights} takes no zero points here"
    if reason:
        return Decision(names, None, reason)
    codes = stack_codes(coded)
    scales = kept_scale_type(codes, recipe)
    rounded = "" if scales == codes.scale_dtype else str(scales).removeprefix("torch.")
    return Decision(names, codes, scales="" if scales == torch.float32 else rounded)


def _of_experts(matrix: str, recipe: Recipe, decoder: Decoder) -> Decision | None:
    """What becomes of the experts of a layer, which are one matrix of the graph.

    Checkpoints with experts hold all of them quantized, or none (`Decoder.stored_experts`).
    """
    if leaf(matrix) not in (EXPERTS_GATE_UP, EXPERTS_DOWN) or not decoder.stored_experts:
        return None
    rounds = recipe.quant.round != "none" and matrix_format(matrix, recipe.quant) is not None
    reason = "experts are stacked in an order of their own" if rounds else IN_FLOAT
    return Decision(decoder.stored_experts, None, reason)


def kept_scale_type(codes: CodedWeight, recipe: Recipe) -> torch.dtype:
    """Type in which kept scales are stored: their own where the graph's type holds it exactly."""
    graph = FLOAT_TYPES[recipe.target.float_type]
    return codes.scale_dtype if codes.scale_dtype in _EXACT.get(graph, ()) else graph


def decisions(recipe: Recipe, decoder: Decoder) -> dict[str, Decision]:
    """What becomes of each matrix of the graph that the source holds quantized."""
    names = [matrix.name for matrix in graph_matrices(recipe, decoder)]
    if decoder.weights[HEAD] is not decoder.weights[EMBEDDING]:
        names = [EMBEDDING, *names]
    found = {name: decide(name, recipe, decoder) for name in names}
    return {name: decision for name, decision in found.items() if decision}


def kept_kinds(recipe: Recipe, decoder: Decoder) -> set[str]:
    """Kinds of matrices of which every one keeps the source's codes, as `indivisible` takes them:
    `q_proj` stands for all that read hidden states."""
    found = decisions(recipe, decoder)
    names = [matrix.name for matrix in graph_matrices(recipe, decoder)]
    lost = {kind for name in names if not _is_kept(found.get(name)) for kind in _kinds(name)}
    table = {EMBEDDING} if _is_kept(decide(EMBEDDING, recipe, decoder)) else set()
    return ({kind for name in names for kind in _kinds(name)} - lost) | table


def _is_kept(decision: Decision | None) -> bool:
    return decision is not None and decision.codes is not None


def _kinds(matrix: str) -> Iterator[str]:
    for part in matrix_parts(matrix):
        kind = leaf(part)
        yield kind if kind in _OWN_COLUMNS else "q_proj"


def source_facts(recipe: Recipe, decoder: Decoder) -> dict[str, Any]:
    """Counts of the graph's matrices by what becomes of the source's codes; empty without any."""
    counted: dict[str, Counter[str]] = {}
    for decision in decisions(recipe, decoder).values():
        counted.setdefault(decision.stored, Counter())[decision.fate] += 1
    return {stored: dict(counts) for stored, counts in counted.items()}


def source_notes(recipe: Recipe, decoder: Decoder) -> Iterator[str]:
    """The same counts as sentences."""
    for stored, counts in source_facts(recipe, decoder).items():
        said = "; ".join(_fate(fate, count) for fate, count in counts.items())
        yield f"The checkpoint holds matrices in {stored}: {said}."


def _fate(fate: str, count: int) -> str:
    kept, _, rounded = fate.partition(f"{KEPT} with ")
    if fate == KEPT:
        return f"{count} of the graph keep their codes and scales"
    return f"{count} of the graph keep their codes, {rounded}" if rounded else f"{count} are {kept}"


def calibration_problems(recipe: Recipe, decoder: Decoder) -> Iterator[Problem]:
    """The problem of a scheme that rounds by activations what the recipe keeps as it is."""
    if not recipe.quant.calibrated:
        return
    kept = Counter(item.stored for item in decisions(recipe, decoder).values() if item.codes)
    if kept:
        found = ", ".join(f"{count} in {stored}" for stored, count in kept.items())
        yield Problem(
            f"The checkpoint holds matrices that are already quantized ({found}), and the recipe "
            "calibrates.",
            "a scheme that leaves the checkpoint's codes as they are, or leave to round them again",
            "add quant=rtn to keep the codes, or set quant.source=requantize",
            key=("quant.source", "quant.round"),
        )
