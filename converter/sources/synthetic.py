"""Seeded random weights of any size, in the published form of a layout, made as they are read.

A block of rows depends only on the seed, the tensor's name and the block's number, so the values
do not change with the order or the size of the reads.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch

from converter.errors import ConvertError, Problem
from converter.model.architecture import read_architecture
from converter.model.checkpoint import Checkpoint
from converter.model.decoder import published_shapes
from converter.recipe.schema import Recipe
from converter.weights.safetensors_file import write_safetensors
from converter.weights.weight import ComputedWeight, Weight

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
BLOCK_VALUES = 1 << 19
SHARD_BYTES = 2_000_000_000


def open_synthetic(recipe: Recipe) -> Checkpoint:
    """A checkpoint with the sizes of `model.config` and random weights.

    Matrices are normal with standard deviation 1/sqrt(columns), norms lie around 1, so that
    activations keep their size through any depth.

    Raises:
        ConvertError: `model.config` is empty or contradictory.
    """
    source, model = recipe.source, recipe.model
    if not model.config:
        raise ConvertError(
            Problem(
                "source=synthetic, and the recipe's model states no config.",
                "the sizes of the model that the random weights stand for",
                "choose a model, such as model=internlm2_1_8b",
            )
        )
    arch = read_architecture(model.config, recipe)
    dtype = DTYPES[source.dtype]
    tensors: dict[str, Weight] = {
        name: random_weight(source.seed, name, shape, dtype)
        for name, shape in published_shapes(recipe.layout, arch).items()
    }
    origin = {"kind": "synthetic", "seed": source.seed, "dtype": source.dtype}
    return Checkpoint(dict(model.config), tensors, origin)


def random_weight(seed: int, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Weight:
    """A lazy tensor of seeded normal values; see `open_synthetic`."""
    columns = shape[-1] if len(shape) > 1 else 1
    block = max(1, BLOCK_VALUES // math.prod(shape[1:]))

    def make(number: int) -> torch.Tensor:
        digest = hashlib.sha256(f"{seed}/{name}/{number}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        rows = min(block, shape[0] - number * block)
        values = torch.empty(rows, *shape[1:]).normal_(generator=generator)
        return (values.mul_(columns**-0.5) if len(shape) > 1 else values * 0.1 + 1).to(dtype)

    def compute(start: int, stop: int) -> torch.Tensor:
        numbers = range(start // block, (stop - 1) // block + 1)
        made = torch.cat([make(number) for number in numbers])
        first = numbers[0] * block
        return made[start - first : stop - first].clone()

    return ComputedWeight(shape, dtype, compute, f"synthetic {name}")


def write_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint as sharded safetensors with index and config.json, tile by tile."""
    shards: list[dict[str, Weight]] = [{}]
    for name, weight in checkpoint.tensors.items():
        held = sum(other.nbytes for other in shards[-1].values())
        if held and held + weight.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = weight
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(weight.nbytes for weight in checkpoint.tensors.values())
    _write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )
    _write_json(folder / "config.json", dict(checkpoint.config))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
