"""How large the keys and values of each layer become, measured on the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from converter.errors import ConvertError, Problem
from converter.model.architecture import Rotation
from converter.model.reference import Reference
from converter.progress import Advance


@dataclass(frozen=True)
class CacheRanges:
    """Largest magnitudes of a layer's cache, float32 (num_key_value_heads, head_dim) each."""

    key: torch.Tensor
    value: torch.Tensor


def cache_ranges(
    reference: Reference, token_ids: torch.Tensor, advance: Advance
) -> list[CacheRanges]:
    """The ranges of every layer on `token_ids`, int64 (sequences, tokens).

    They are of what transformers' class stores in its cache. RoPE turns pairs of channels by an
    angle that depends on the position. The pair's length bounds both at every position, so the
    keys' ranges hold beyond these tokens.
    """
    arch = reference.arch
    hidden = [reference.embed(row[None]) for row in token_ids]
    found = []
    for number in range(arch.num_hidden_layers):
        advance(number, arch.num_hidden_layers, f"layer {number + 1}")
        rotation = arch.rotation if arch.rotation.layers[number] else None
        with reference.layer(number) as module:
            largest = _Largest(rotation)
            hidden = [reference.run_layer(module, item, largest) for item in hidden]
        if not largest.key.dim():
            raise ConvertError(
                Problem(
                    f"Layer {number} of transformers' class stores no keys and values.",
                    "a layer that calls the method update of its cache",
                    "set target.kv_cache=float",
                )
            )
        found.append(CacheRanges(largest.key, largest.value))
    return found


class _Largest:
    """In the place of transformers' cache: each channel's largest magnitude in one layer."""

    def __init__(self, rotation: Rotation | None) -> None:
        self.key, self.value = torch.zeros(()), torch.zeros(())
        self._rotation = rotation

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Look at keys and values (batch, num_key_value_heads, tokens, head_dim)."""
        lengths = keys.float() if self._rotation is None else _turned(keys.float(), self._rotation)
        self.key = torch.maximum(self.key, lengths.abs().amax((0, 2)))
        self.value = torch.maximum(self.value, values.float().abs().amax((0, 2)))
        return keys, values


def _turned(keys: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """`keys` (…, head_dim) with the lengths of the rotated pairs in the places of both."""
    pairs, rest = keys[..., : rotation.columns], keys[..., rotation.columns :]
    if rotation.interleaved:
        pairs = torch.hypot(pairs[..., ::2], pairs[..., 1::2]).repeat_interleave(2, dim=-1)
    else:
        length = torch.hypot(*pairs.chunk(2, dim=-1))
        pairs = torch.cat([length, length], dim=-1)
    return torch.cat([pairs, rest], dim=-1)
