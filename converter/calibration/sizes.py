"""The sizes of a calibration, from headers alone: what its memory and its disk are counted in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from converter.calibration.calibrate import compute_dtype
from converter.calibration.layer import STAGES
from converter.calibration.tokens import held_back, sequence_batches
from converter.model.architecture import Architecture
from converter.model.decoder import Decoder
from converter.recipe.schema import Recipe


@dataclass(frozen=True)
class Sizes:
    """Counts of values, and bytes per value of weights and activations in the products.

    Attributes:
        tokens: all calibration tokens; `held` of them judge, `batch` run together, and a sequence
            has `length`.
        inputs: by stage (`converter.calibration.layer`), the columns that its linears read.
        layer: the values of one layer; `matrix` those of its largest matrix in the checkpoint.
    """

    arch: Architecture
    tokens: int
    held: int
    length: int
    batch: int
    inputs: dict[str, int]
    layer: int
    matrix: int
    itemsize: int


def calibration_sizes(recipe: Recipe, decoder: Decoder) -> Sizes:
    """The sizes for a recipe; a text too short for its tokens is a problem of its own."""
    arch, config = decoder.architecture, recipe.calibration
    length = config.sequence_length
    shape = torch.Size((max(1, config.tokens // length), length))
    held = held_back(shape[0])
    batches = sequence_batches(shape, arch.intermediate_size, held)
    mixed = arch.num_attention_heads * arch.head_dim
    columns = (arch.hidden_size, mixed, arch.hidden_size, arch.intermediate_size)
    layer = [w.numel for name, w in decoder.weights.items() if name.startswith("layers.0.")]
    return Sizes(
        arch,
        tokens=shape.numel(),
        held=held * length,
        length=length,
        batch=max(batch.stop - batch.start for batch in batches) * length,
        inputs=dict(zip(STAGES, columns, strict=True)),
        layer=sum(layer),
        matrix=max(layer),
        itemsize=compute_dtype(config, decoder).itemsize,
    )
