"""The measured ranges of keys and values, against those of transformers' whole model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import llama_of
from transformers import DynamicCache

from converter.model.cache_ranges import CacheRanges, cache_ranges
from converter.model.decoder import Decoder
from converter.model.reference import Reference

IDS = torch.arange(3, 43).view(2, 20)


@pytest.fixture
def decoder(build: Callable[..., Any]) -> Decoder:
    found: Decoder = build(until="layout")
    return found


def measured(decoder: Decoder, ids: torch.Tensor = IDS) -> list[CacheRanges]:
    reference = Reference(decoder)
    return cache_ranges(reference, ids, lambda done, total, detail: None)


def caches(decoder: Decoder) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values (2, kv heads, 20, head_dim) of each layer, as transformers caches them."""
    cache, model = DynamicCache(), llama_of(decoder.checkpoint)
    with torch.no_grad():
        model(IDS, past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def test_values_are_the_largest_that_transformers_caches(decoder: Decoder) -> None:
    for ranges, (_, values) in zip(measured(decoder), caches(decoder), strict=True):
        assert torch.allclose(ranges.value, values.abs().amax((0, 2)), atol=1e-5)


def test_keys_are_bounded_at_every_position(decoder: Decoder) -> None:
    half = decoder.architecture.head_dim // 2
    for ranges, (keys, _) in zip(measured(decoder), caches(decoder), strict=True):
        assert (keys.abs().amax((0, 2)) <= ranges.key + 1e-5).all()
        assert torch.equal(ranges.key[:, :half], ranges.key[:, half:])
        length = torch.hypot(keys[..., :half], keys[..., half:]).amax((0, 2))
        assert torch.allclose(ranges.key[:, :half], length, atol=1e-5)  # and no wider than that


def test_more_tokens_only_widen_the_ranges(decoder: Decoder) -> None:
    for one, both in zip(measured(decoder, IDS[:1]), measured(decoder), strict=True):
        assert (one.key <= both.key).all() and (one.value <= both.value).all()


def test_each_layer_is_told(decoder: Decoder) -> None:
    seen: list[tuple[int, int, str]] = []
    reference = Reference(decoder)
    cache_ranges(reference, IDS, lambda *told: seen.append(told))
    assert seen == [(0, 2, "layer 1"), (1, 2, "layer 2")]
