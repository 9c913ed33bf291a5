"""Rotary frequencies and caches, against transformers' rotary embedding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from converter.model.rope import Rope, read_rope

HEAD_DIM, LIMIT = 16, 32


def by_transformers(config: dict[str, Any], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, float32 (length, head_dim / 2): transformers gives both halves."""
    config = copy.deepcopy(config)  # transformers writes into it
    llama = LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=LIMIT, **config
    )
    rotary = LlamaRotaryEmbedding(llama)
    cos, sin = rotary(torch.zeros(1, length, 64), torch.arange(length)[None])
    return cos[0, :, : HEAD_DIM // 2], sin[0, :, : HEAD_DIM // 2]


@pytest.mark.parametrize("length", [8, LIMIT, LIMIT + 1, 3 * LIMIT])
@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize(
    "scaling",
    [None, {"rope_type": "linear", "factor": 3.0}, {"rope_type": "dynamic", "factor": 2.0}],
    ids=str,
)
def test_caches_are_transformers(scaling: dict[str, Any] | None, theta: float, length: int) -> None:
    config = {"rope_theta": theta, "rope_scaling": scaling}
    rope, problems = read_rope(config.get("rope_scaling"), config.get("rope_theta", 1e4))
    assert problems == []
    found = rope.caches(HEAD_DIM, length, LIMIT)
    for one, other in zip(found, by_transformers(config, length), strict=True):
        assert one.shape == (length, HEAD_DIM // 2) and one.dtype == torch.float32
        assert torch.allclose(one, other, atol=2e-5)


@given(st.integers(1, LIMIT), st.floats(1, 8))
@settings(max_examples=30)
def test_dynamic_scaling_starts_past_the_limit_and_grows(length: int, factor: float) -> None:
    rope = Rope(1e4, "dynamic", factor)
    assert rope.base(HEAD_DIM, length, LIMIT) == 1e4
    longer = [rope.base(HEAD_DIM, LIMIT + extra, LIMIT) for extra in (1, 10, 100)]
    assert 1e4 < longer[0] < longer[1] < longer[2]


def test_linear_scaling_stretches_positions() -> None:
    plain, linear = Rope(), Rope(scaling="linear", factor=4.0)
    cos, _ = linear.caches(HEAD_DIM, 40, LIMIT)
    assert torch.allclose(cos[::4], plain.caches(HEAD_DIM, 10, LIMIT)[0], atol=1e-6)


def test_the_slowest_pair_turns_by_the_base() -> None:
    frequencies = Rope(1e6).inverse_frequencies(HEAD_DIM, 8, LIMIT)
    expected = torch.tensor([1e6 ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2)])
    assert torch.allclose(frequencies, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, "type 'ntk'"),
        ({"rope_scaling": {"type": "llama3"}}, "factor None"),
        ({"rope_scaling": {"type": "default", "beta": 3}}, "beta=3"),
        ({"rope_theta": 0}, "rope_theta=0"),
        ({"rope_theta": True}, "rope_theta=True"),
        ({"rope_theta": "1e6"}, "rope_theta='1e6'"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor 0.5"),
        ({"rope_scaling": {"type": "linear", "factor": None}}, "factor None"),
        ({"rope_scaling": {"type": "dynamic"}}, "factor None"),
        ({"rope_scaling": {"type": ["dynamic"], "factor": 2.0}}, "type ['dynamic']"),
        ({"rope_theta": float("inf")}, "rope_theta=inf"),
        ({"rope_theta": 10**400}, "rope_theta="),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_a_problem(config: dict[str, Any], part: str) -> None:
    rope, problems = read_rope(config.get("rope_scaling"), config.get("rope_theta", 1e4))
    assert rope == Rope() and len(problems) == 1
    assert part in problems[0].found and problems[0].remedy


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": None, "rope_scaling": None},
        {"rope_scaling": {"type": None, "factor": None}},
        {"rope_scaling": {}},
    ],
    ids=str,
)
def test_null_is_the_default(config: dict[str, Any]) -> None:
    assert read_rope(config.get("rope_scaling"), config.get("rope_theta", 1e4)) == (Rope(), [])
