"""How much each token and each output counts: squared gradients of the float model's own loss.

To second order, the KL divergence that a small change of a linear's outputs causes is half its
square in the Fisher information of these outputs. Kronecker-factored (K-FAC, arXiv 1503.05671),
the Fisher of a linear's weight needs the inputs' H with each token weighed by its squared output
gradient, and the mean squared gradient of each output. Gradients are those of labels drawn from
the model's own distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from converter.calibration.layer import STAGES, LayerStages, check_finite, check_weights
from converter.calibration.tokens import sequence_batches
from converter.errors import ConvertError
from converter.model.reference import Reference
from converter.model.tensor_kinds import HEAD
from converter.progress import Advance
from converter.quantization.quantized_matrix import not_finite
from converter.weights.safetensors_file import open_safetensors, write_safetensors
from converter.weights.spill import Spill
from converter.weights.weight import TensorWeight

FILE = "fisher.safetensors"


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
    arch = reference.arch
    head = reference.weights["lm_head"].read().to(reference.dtype)
    tokens, rows = [], torch.zeros(arch.vocab_size)
    for index in range(states.count):
        hidden = states[index].float()
        with torch.enable_grad():
            hidden.requires_grad_(True)
            normed = reference.last_norm(hidden)
        logits = (normed.detach()[0].to(head.dtype) @ head.T).float()
        difference, weights, importance = _labels(logits, generator)
        tokens.append(weights)
        rows += importance
        by_normed = (difference.to(head.dtype) @ head).float()[None]
        (gradients[index],) = torch.autograd.grad(normed, hidden, by_normed)
    found[f"tokens/{HEAD}"] = _normal(torch.stack(tokens))
    found[f"rows/{HEAD}"] = rows / (states.count * states.shape[1])


def _labels(
    logits: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss gradient by the logits for drawn labels; weight per token; p(1-p) summed per entry."""
    chances = logits.softmax(-1)
    labels = torch.multinomial(chances, 1, generator=generator)
    importance = (chances * (1 - chances)).sum(0)
    weights = 1 - chances.square().sum(-1)
    return chances.scatter_add_(1, labels, -torch.ones(labels.shape)), weights, importance


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
    tokens: dict[str, list[torch.Tensor]] = {stage: [] for stage in STAGES}
    rows: dict[str, torch.Tensor] = {}
    for index in batches:
        hidden = states[index].float().requires_grad_(True)
        with torch.enable_grad(), _Outputs(stages) as outputs:
            context = stages.output_input(stages.attention_input(hidden))
            outputs["o_proj"] = middle = stages.after_attention(hidden, context)
            product = stages.down_input(stages.feed_forward_input(middle))
            # The layer's result itself is not needed: its gradient goes to both of its terms.
            last = gradients[index]
            below, *others = torch.autograd.grad(
                [middle, product],
                [hidden, *outputs.values()],
                [last, stages.down_gradient(last).to(product.dtype)],
            )
        gradients[index] = below
        found_gradients = {"down_proj": last, **dict(zip(outputs, others, strict=True))}
        squares = {n: g.float().square() for n, g in found_gradients.items()}
        for stage, parts in STAGES.items():
            tokens[stage].append(torch.stack([squares[part].sum(-1) for part in parts]).sum(0))
        for part, square in squares.items():
            rows[part] = rows.get(part, torch.zeros(square.shape[2])) + square.sum((0, 1))
    for stage, weights in tokens.items():
        found[f"tokens/layers.{number}.{stage}"] = _normal(torch.cat(weights))
    for part, total in rows.items():
        found[f"rows/layers.{number}.{part}"] = total / (states.count * states.shape[1])


class _Outputs:
    """Collects the outputs of the linears inside transformers' modules while they run."""

    def __init__(self, stages: LayerStages) -> None:
        self.found: dict[str, torch.Tensor] = {}
        self._hooks = [
            linear.register_forward_hook(self._hook(name))
            for name, linear in stages.linears().items()
        ]

    def _hook(self, name: str) -> Callable[[Any, Any, torch.Tensor], None]:
        def keep(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            self.found[name] = output

        return keep

    def __enter__(self) -> dict[str, torch.Tensor]:
        return self.found

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _normal(weights: torch.Tensor) -> torch.Tensor:
    """Weights with a mean of 1; all 1 where no gradient reaches the linear."""
    mean = weights.mean()
    return weights / mean if mean > 0 else torch.ones_like(weights)
