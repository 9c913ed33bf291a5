"""What each format would cost each matrix, in nats of KL divergence: for mixed precision.

One walk over the float layers. The loss of a rounded matrix is half the square of its output
errors in the Fisher information, Kronecker-factored (see `converter.calibration.fisher`): each
row's error in the weighted H, times that output's mean squared gradient. Errors are measured on a
sample of rows, rounded by the recipe's own scheme without the refinement.

At accuracy level 4 the runtime rounds activations too, to int8 in the matrix's own blocks, so that
a block size has an error of its own, whatever the bits. It is taken as noise that is independent
from input to input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from converter.calibration.fisher import Fisher
from converter.calibration.inputs import Inputs, restored, weighted
from converter.calibration.layer import STAGES, LayerStages
from converter.calibration.parallel import on_cores
from converter.calibration.rounding import Scheme, round_sample, spaced_rows
from converter.calibration.tokens import CalibrationTokens
from converter.graph.formats import CANDIDATES, candidate_formats
from converter.graph.matrices import Matrix
from converter.model.reference import Reference
from converter.model.tensor_kinds import HEAD
from converter.progress import Advance
from converter.quantization.rtn import BlockFormat
from converter.storage.cache import Cache
from converter.weights.spill import Spill
from converter.weights.weight import concatenate_rows

SAMPLE_ROWS = 128
FILE = "losses.json"
NOISE_BATCHES = 4
"""The rounding of activations is measured on one batch in so many."""


@dataclass
class Stage:
    """What is gathered of the inputs that some linears share.

    Attributes:
        inputs: their weighted H.
        noise: by block size, the weighted mean square of each input's rounding to int8, float32
            (columns,), per token; empty where the runtime does not round activations.
    """

    inputs: Inputs
    noise: dict[int, torch.Tensor] = field(default_factory=dict)
    _measured: int = 0

    def add(self, state: torch.Tensor, weights: torch.Tensor, sizes: Sequence[int]) -> None:
        """Add inputs (…, columns), each token with its weight; `sizes` are blocks to round in."""
        self.inputs.add(state, weights)
        if not sizes:
            return
        before, tokens = self._measured, weights.numel()
        self._measured += tokens
        for size in sizes:
            mean = activation_noise(weighted(state, weights), size)
            old = self.noise.get(size, torch.zeros_like(mean))
            self.noise[size] = (old * before + mean * tokens) / self._measured


def activation_noise(inputs: torch.Tensor, block_size: int) -> torch.Tensor:
    """Mean square of the rounding to int8 of float32 (tokens, columns), (columns,).

    As MLAS does at accuracy level 4: in blocks along the columns, by the largest magnitude / 127.
    """
    tokens, columns = inputs.shape
    padded = torch.nn.functional.pad(inputs, (0, -columns % block_size))
    blocks = padded.view(tokens, -1, block_size)
    scales = blocks.abs().amax(-1, keepdim=True).div_(127).clamp_(min=1e-30)
    rounded = (blocks / scales).round_().mul_(scales)
    return rounded.sub_(blocks).square_().mean(0).flatten()[:columns]


def measure_losses(
    folder: Path,
    reference: Reference,
    matrices: Sequence[Matrix],
    scheme: Scheme,
    tokens: CalibrationTokens,
    fisher: Fisher,
    cache: Cache,
    advance: Advance,
    rounds_activations: bool = False,
) -> None:
    """Write the loss of every candidate format of every matrix to `folder`.

    `rounds_activations` says whether the folder's kernels do, to int8.
    """
    sizes = sorted({form.block_size for form in CANDIDATES}) if rounds_activations else []
    arch, losses = reference.arch, dict[str, list[float]]()
    hidden = tokens.embedded(reference, cache.folder)
    with torch.no_grad():
        for number in range(arch.num_hidden_layers):
            layers = arch.num_hidden_layers
            advance(number, layers + 1, f"losses of the formats, layer {number + 1}/{layers}")
            with reference.layer(number) as module:
                stages = LayerStages(reference, module, number)
                batches = tokens.batches(arch.intermediate_size)
                found = _layer_stages(stages, number, hidden, fisher, batches, sizes)
            for matrix in matrices:
                stage = _stage(matrix, number)
                if stage is not None:
                    losses[matrix.name] = _losses(
                        reference, matrix, found[stage], scheme, fisher, hidden
                    )
        last = [m for m in matrices if m.name == HEAD and candidate_formats(m, scheme.quant)]
        for matrix in last:
            head = _head_stage(reference, hidden, fisher, sizes)
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


def _layer_stages(
    stages: LayerStages,
    number: int,
    hidden: Spill,
    fisher: Fisher,
    batches: Sequence[slice],
    sizes: Sequence[int],
) -> dict[str, Stage]:
    """Statistics of the float layer's stages; `hidden` becomes the layer's result."""
    found: dict[str, Stage] = {}
    for place, index in enumerate(batches):
        states, hidden[index] = stages.run(hidden[index])
        for name, state in states.items():
            if name not in found:
                found[name] = Stage(Inputs(state.shape[-1]))
            weights = fisher.tokens[f"layers.{number}.{name}"][index]
            found[name].add(state, weights, () if place % NOISE_BATCHES else sizes)
    return found


def _head_stage(reference: Reference, hidden: Spill, fisher: Fisher, sizes: Sequence[int]) -> Stage:
    stage = Stage(Inputs(reference.arch.hidden_size))
    for index in range(hidden.count):
        normed = reference.head_input(hidden[index])
        stage.add(normed, fisher.tokens[HEAD][index], () if index % NOISE_BATCHES else sizes)
    return stage


def _losses(
    reference: Reference,
    matrix: Matrix,
    stage: Stage,
    scheme: Scheme,
    fisher: Fisher,
    hidden: Spill,
) -> list[float]:
    weight = concatenate_rows([reference.weights[part] for part in matrix.parts])
    index = spaced_rows(matrix.rows, SAMPLE_ROWS)
    sample = weight.permute_rows(index).read().float()
    gradients = torch.cat([fisher.rows[part] for part in matrix.parts])[index]
    tokens = hidden.count * hidden.shape[1]
    scheme = replace(scheme, quant=replace(scheme.quant, refine=False))
    if scheme.quant.round == "gptq":
        stage.inputs.factor()  # on all cores, before each has work of its own

    def loss(form: BlockFormat) -> float:
        weights = _loss(sample, form, stage.inputs, scheme, gradients) / tokens
        return (
            (weights + _noise_loss(sample, form, stage.noise, gradients)) * matrix.rows / len(index)
        )

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


def _noise_loss(
    sample: torch.Tensor,
    form: BlockFormat,
    noise: Mapping[int, torch.Tensor],
    gradients: torch.Tensor,
) -> float:
    """Loss per token of rounding the activations in the format's blocks."""
    if form.block_size not in noise:
        return 0.0
    errors = sample.square() @ noise[form.block_size]
    return 0.5 * float((errors * gradients).sum(dtype=torch.float64))
