"""How large the keys and values of each layer become, measured on the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

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

    RoPE turns the pair of channels i and i + head_dim/2 by an angle that depends on the position.
    The pair's length bounds both at every position, so the keys' ranges hold beyond these tokens.
    """
    arch = reference.arch
    hidden = [reference.embed(row[None]) for row in token_ids]
    found = []
    for number in range(arch.num_hidden_layers):
        advance(number, arch.num_hidden_layers, f"layer {number + 1}")
        with reference.layer(number) as module:
            attention: Any = module.get_submodule("self_attn")
            key, value = _Largest(arch.head_dim, rotated=True), _Largest(arch.head_dim)
            attention.k_proj.register_forward_hook(key.look)
            attention.v_proj.register_forward_hook(value.look)
            hidden = [reference.run_layer(module, item) for item in hidden]
        found.append(CacheRanges(key.found, value.found))
    return found


class _Largest:
    """A forward hook on a projection of one sequence: each channel's largest magnitude."""

    def __init__(self, head_dim: int, rotated: bool = False) -> None:
        self.found = torch.zeros(())
        self._head_dim, self._rotated = head_dim, rotated

    def look(self, module: torch.nn.Module, given: Any, output: torch.Tensor) -> None:
        heads = output.detach().float().reshape(output.shape[1], -1, self._head_dim)
        if self._rotated:
            first, second = heads.chunk(2, dim=-1)
            length = torch.hypot(first, second)
            heads = torch.cat([length, length], dim=-1)
        self.found = torch.maximum(self.found, heads.abs().amax(0))
