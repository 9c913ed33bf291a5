"""How much each token and each output counts: squared gradients of the float model's own loss.

To second order, the KL divergence that a small change of a linear's outputs causes is half its
square in the Fisher information of these outputs. Kronecker-factored (K-FAC, arXiv 1503.05671),
the Fisher of a linear's weight needs the inputs' H with each token weighed by its squared output
gradient, and the mean squared gradient of each output. Gradients are those of labels drawn from
the model's own distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from converter.calibration.layer import STAGES, LayerStages, check_finite, check_weights
from converter.calibration.tokens import sequence_batches
from converter.errors import ConvertError
from converter.model.reference import Reference
from converter.model.tensor_kinds import BIAS, HEAD
from converter.progress import Advance
from converter.quantization.quantized_matrix import not_finite
from converter.weights.safetensors_file import open_safetensors, write_safetensors
from converter.weights.spill import Spill
from converter.weights.weight import TensorWeight

FILE = "fisher.safetensors"
LOGITS = 1 << 26
"""Logits that are computed at a time, unless one token has more."""


@dataclass(frozen=True)
class Fisher:
    """Statistics of the gradients, float32; stages are those of `converter.calibration.layer`.

    Attributes:
        tokens: by `layers.N.STAGE` or `lm_head`, one weight per token with a mean of 1,
            (sequences, sequence_length).
        rows: by the canonical name of a linear, the mean squared gradient of each output, (rows,):
            nats per token and squared unit of output, twice over.
    """

    tokens: Mapping[str, torch.Tensor]
    rows: Mapping[str, torch.Tensor]


def read_fisher(folder: Path) -> Fisher:
    """The statistics that `write_fisher` left in `folder`."""
    found = {name: weight.read() for name, weight in open_safetensors(folder / FILE).items()}
    parts: dict[str, dict[str, torch.Tensor]] = {"tokens": {}, "rows": {}}
    for name, tensor in found.items():
        kind, _, rest = name.partition("/")
        parts[kind][rest] = tensor
    return Fisher(parts["tokens"], parts["rows"])


def write_fisher(
    folder: Path, reference: Reference, ids: torch.Tensor, seed: int, advance: Advance
) -> None:
    """Run the float model forward and backward over `ids` (sequences, length), layer by layer.

    Two passes over the weights; hidden states of every layer lie in files of `folder` meanwhile.
    """
    layers = reference.arch.num_hidden_layers
    for name in ("norm", HEAD):
        weight = reference.weights[name]
        if not all(bool(torch.isfinite(weight.rows(*tile)).all()) for tile in weight.tiles()):
            raise ConvertError(not_finite(weight.label, weight.dtype))
    states = _forward(folder, reference, ids, advance)
    found: dict[str, torch.Tensor] = {}
    gradients = Spill(folder, *_shape(ids, reference))
    _head(reference, states[layers], gradients, torch.Generator().manual_seed(seed), found)
    for number in range(layers - 1, -1, -1):
        advance(2 * layers - number, 2 * layers, f"gradients, layer {number + 1}/{layers}")
        with reference.layer(number) as module:
            batches = _batches(ids, reference)
            _backward(reference, module, number, states[number], gradients, found, batches)
        states[number].close()
    lazy = {name: TensorWeight(tensor.contiguous()) for name, tensor in found.items()}
    write_safetensors(folder / FILE, lazy)


def _shape(ids: torch.Tensor, reference: Reference) -> tuple[int, tuple[int, ...]]:
    return ids.shape[0], (1, ids.shape[1], reference.arch.hidden_size)


def _batches(ids: torch.Tensor, reference: Reference) -> list[slice]:
    return sequence_batches(ids.shape, reference.arch.intermediate_size)


def _forward(
    folder: Path, reference: Reference, ids: torch.Tensor, advance: Advance
) -> list[Spill]:
    """Hidden states before each layer, and after the last one."""
    layers = reference.arch.num_hidden_layers
    states = [Spill(folder, *_shape(ids, reference), reference.dtype) for _ in range(layers + 1)]
    for index, row in enumerate(ids):
        states[0][index] = reference.embed(row[None])
        check_finite(states[0][index], "the embedding")
    for number in range(layers):
        advance(number, 2 * layers, f"float model, layer {number + 1}/{layers}")
        with reference.layer(number) as module:
            check_weights(module, reference, number)
            for batch in _batches(ids, reference):
                result = reference.run_layer(module, states[number][batch])
                check_finite(result, f"layer {number}")
                states[number + 1][batch] = result
    return states


def _head(
    reference: Reference,
    states: Spill,
    gradients: Spill,
    generator: torch.Generator,
    found: dict[str, torch.Tensor],
) -> None:
    """Gradients of the drawn labels' loss by the last hidden states, sequence by sequence."""
    head = reference.weights[HEAD].read().to(reference.dtype)
    bias = reference.weights.get(HEAD + BIAS)
    added = None if bias is None else bias.read().to(reference.dtype)
    tokens, rows = [], torch.zeros(reference.arch.vocab_size)
    together = max(1, LOGITS // reference.arch.vocab_size)
    for index in range(states.count):
        hidden = states[index].float()
        with torch.enable_grad():
            hidden.requires_grad_(True)
            normed = reference.head_input(hidden)
        parts: list[torch.Tensor] = []
        for some in normed.detach()[0].to(head.dtype).split(together):
            product = linear(some, head, added).float()
            difference, weights, importance = _labels(reference, product, generator)
            tokens.append(weights)
            rows += importance
            parts.append((difference.to(head.dtype) @ head).float())
        (gradients[index],) = torch.autograd.grad(normed, hidden, torch.cat(parts)[None])
    found[f"tokens/{HEAD}"] = _normal(torch.cat(tokens).view(states.count, -1))
    found[f"rows/{HEAD}"] = rows / (states.count * states.shape[1])


def _labels(
    reference: Reference, product: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the head's product (tokens, vocab_size): its loss gradient for drawn labels; the weight
    of each token; the expected square of each entry's gradient, summed over tokens.

    The slopes are those of the logits by the product, which a model may scale and cap.
    """
    with torch.enable_grad():
        product.requires_grad_(True)
        logits = reference.finished_logits(product)
    chances = logits.detach().softmax(-1)
    labels = torch.multinomial(chances, 1, generator=generator)
    spread = chances * (1 - chances)
    weights = 1 - chances.square().sum(-1)
    difference = chances.scatter_add_(1, labels, -torch.ones(labels.shape))
    if torch.equal(logits, product):
        return difference, weights, spread.sum(0)
    (slopes,) = torch.autograd.grad(logits, product, torch.ones_like(logits))
    spread *= slopes.square()
    return difference * slopes, spread.sum(1), spread.sum(0)


def _backward(
    reference: Reference,
    module: Any,
    number: int,
    states: Spill,
    gradients: Spill,
    found: dict[str, torch.Tensor],
    batches: Sequence[slice],
) -> None:
    """Carry the gradients to the layer's input; collect those of every linear's output."""
    stages = LayerStages(reference, module, number)
    tokens: dict[str, list[torch.Tensor]] = {stage: [] for stage in stages.stages}
    rows: dict[str, torch.Tensor] = {}
    for index in batches:
        gradients[index], by_part = stages.gradients(states[index], gradients[index])
        squares = {part: gradient.float().square() for part, gradient in by_part.items()}
        for stage in stages.stages:
            sums = [squares[part].sum(-1) for part in STAGES[stage] if part in squares]
            tokens[stage].append(torch.stack(sums).sum(0))
        for part, square in squares.items():
            rows[part] = rows.get(part, torch.zeros(square.shape[2])) + square.sum((0, 1))
    for stage, weights in tokens.items():
        found[f"tokens/layers.{number}.{stage}"] = _normal(torch.cat(weights))
    for part, total in rows.items():
        found[f"rows/layers.{number}.{part}"] = total / (states.count * states.shape[1])


def _normal(weights: torch.Tensor) -> torch.Tensor:
    """Weights with a mean of 1; all 1 where no gradient reaches the linear."""
    mean = weights.mean()
    return weights / mean if mean > 0 else torch.ones_like(weights)
