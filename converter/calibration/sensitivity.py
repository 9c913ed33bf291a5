"""What each format would cost each matrix, in nats of KL divergence: for mixed precision.

One walk over the float layers. The loss of a rounded matrix is half the square of its output
errors in the Fisher information, Kronecker-factored (see `converter.calibration.fisher`): each
row's error in the weighted H, times that output's mean squared gradient. Errors are measured on a
sample of rows, rounded by the recipe's own scheme without the refinement.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import rms_norm

from converter.cache import Cache
from converter.calibration.fisher import HEAD, Fisher
from converter.calibration.inputs import Inputs, restored
from converter.calibration.layer import STAGES, LayerStages
from converter.calibration.parallel import on_cores
from converter.calibration.rounding import Scheme, round_sample
from converter.calibration.spill import Spill
from converter.calibration.tokens import CalibrationTokens
from converter.model.reference import Reference
from converter.quantization.formats import Matrix, candidate_formats
from converter.quantization.rtn import BlockFormat
from converter.weights.weight import concatenate_rows

SAMPLE_ROWS = 128
FILE = "losses.json"

Advance = Callable[[int, int, str], None]


def measure_losses(
    folder: Path,
    reference: Reference,
    matrices: Sequence[Matrix],
    scheme: Scheme,
    tokens: CalibrationTokens,
    fisher: Fisher,
    cache: Cache,
    advance: Advance,
) -> None:
    """Write the loss of every candidate format of every matrix to `folder`."""
    arch, losses = reference.arch, dict[str, list[float]]()
    count, length = tokens.ids.shape
    hidden = Spill(cache.folder, count, (1, length, arch.hidden_size))
    for index, row in enumerate(tokens.ids):
        hidden[index] = reference.embed(row[None]).float()
    with torch.no_grad():
        for number in range(arch.num_hidden_layers):
            layers = arch.num_hidden_layers
            advance(number, layers + 1, f"losses of the formats, layer {number + 1}/{layers}")
            with reference.layer(number) as module:
                stages = LayerStages(reference, module, number)
                batches = tokens.batches(arch.intermediate_size)
                inputs = _layer_inputs(stages, number, hidden, fisher, batches)
            for matrix in matrices:
                stage = _stage(matrix, number)
                if stage is not None:
                    losses[matrix.name] = _losses(
                        reference, matrix, inputs[stage], scheme, fisher, hidden
                    )
        last = [m for m in matrices if m.name == HEAD and candidate_formats(m, scheme.quant)]
        for matrix in last:
            head = _head_inputs(reference, hidden, fisher)
            losses[HEAD] = _losses(reference, matrix, head, scheme, fisher, hidden)
    (folder / FILE).write_text(json.dumps(losses), encoding="utf-8")


def read_losses(folder: Path) -> dict[str, list[float]]:
    """By matrix, the loss of each of its candidate formats, in their order."""
    found: dict[str, list[float]] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return found


def _stage(matrix: Matrix, number: int) -> str | None:
    prefix, _, kind = matrix.parts[0].rpartition(".")
    if prefix != f"layers.{number}":
        return None
    return next(stage for stage, parts in STAGES.items() if kind in parts)


def _layer_inputs(
    stages: LayerStages, number: int, hidden: Spill, fisher: Fisher, batches: Sequence[slice]
) -> dict[str, Inputs]:
    """Weighted statistics of the float layer's stages; `hidden` becomes the layer's result."""
    found: dict[str, Inputs] = {}
    for index in batches:
        states, hidden[index] = stages.run(hidden[index])
        for stage, state in states.items():
            inputs = found.setdefault(stage, Inputs(state.shape[-1]))
            inputs.add(state, fisher.tokens[f"layers.{number}.{stage}"][index])
    return found


def _head_inputs(reference: Reference, hidden: Spill, fisher: Fisher) -> Inputs:
    arch, inputs = reference.arch, Inputs(reference.arch.hidden_size)
    norm = reference.weights["norm"].read().float()
    for index in range(hidden.count):
        normed = rms_norm(hidden[index], (arch.hidden_size,), norm, arch.rms_norm_eps)
        inputs.add(normed, fisher.tokens[HEAD][index])
    return inputs


def _losses(
    reference: Reference,
    matrix: Matrix,
    inputs: Inputs,
    scheme: Scheme,
    fisher: Fisher,
    hidden: Spill,
) -> list[float]:
    weight = concatenate_rows([reference.weights[part] for part in matrix.parts])
    count = min(SAMPLE_ROWS, matrix.rows)
    index = torch.arange(count) * matrix.rows // count
    sample = weight.permute_rows(index).read().float()
    gradients = torch.cat([fisher.rows[part] for part in matrix.parts])[index]
    tokens = hidden.count * hidden.shape[1]
    scheme = replace(scheme, quant=replace(scheme.quant, refine=False))
    if scheme.quant.round == "gptq":
        inputs.factor()  # on all cores, before each has work of its own

    def loss(form: BlockFormat) -> float:
        return _loss(sample, form, inputs, scheme, gradients) * matrix.rows / count / tokens

    return on_cores(loss, candidate_formats(matrix, scheme.quant))


def _loss(
    sample: torch.Tensor,
    form: BlockFormat,
    inputs: Inputs,
    scheme: Scheme,
    gradients: torch.Tensor,
) -> float:
    codes = round_sample(sample, form, inputs, scheme)
    change = sample - restored(codes, form, sample.shape[1])
    errors = ((change @ inputs.hessian) * change).sum(1)
    return 0.5 * float((errors * gradients).sum(dtype=torch.float64))
