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


SHORT = [1.0 + number / 8 for number in range(HEAD_DIM // 2)]
LONG = [1.0 + number for number in range(HEAD_DIM // 2)]
SCALED: list[dict[str, Any]] = [
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5},
    {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.3},
    {"rope_type": "yarn", "factor": 4.0, "truncate": False},
    {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG},
    {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "factor": 4.0},
]


@pytest.mark.parametrize("length", [8, 16, 17, 32])
@pytest.mark.parametrize("section", SCALED, ids=str)
def test_scaled_caches_are_transformers(section: dict[str, Any], length: int) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    section = section | {"original_max_position_embeddings": 16, "rope_theta": 1e4}
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=LIMIT,
        rope_parameters=copy.deepcopy(section),
    )
    inverse, scale = ROPE_INIT_FUNCTIONS[section["rope_type"]](config, "cpu", seq_len=length)
    angles = torch.outer(torch.arange(length).float(), inverse)
    rope, problems = read_rope(section, 1e4)
    assert problems == []
    cos, sin = (cache[-length:] for cache in rope.caches(HEAD_DIM, length, LIMIT))
    assert torch.allclose(cos, angles.cos() * scale, atol=2e-5)
    assert torch.allclose(sin, angles.sin() * scale, atol=2e-5)


def test_longrope_has_the_rows_of_short_sequences_in_front() -> None:
    section = SCALED[-1] | {"original_max_position_embeddings": 16}
    rope, _ = read_rope(section, 1e4)
    assert (rope.switch(16, LIMIT), rope.switch(17, LIMIT)) == (None, 16)
    short, long = rope.caches(HEAD_DIM, 16, LIMIT)[0], rope.caches(HEAD_DIM, 20, LIMIT)[0]
    assert short.shape[0] == 16 and long.shape[0] == 36
    assert torch.equal(long[:16], short) and not torch.allclose(long[16:32], short)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"rope_type": "longrope", "short_factor": SHORT}, "long_factor=None"),
        ({"rope_type": "longrope", "short_factor": SHORT, "long_factor": [1, "x"]}, "long_factor"),
        ({"rope_type": "yarn", "factor": 2.0, "beta_fast": "x"}, "beta_fast='x'"),
        ({"rope_type": "yarn", "factor": 2.0, "mystery_beta": 0.1}, "mystery_beta"),
        ({"rope_type": "linear", "factor": 2.0, "mrope_section": [1]}, "mrope_section"),
        ({"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": -1}, "=-1"),
    ],
    ids=str,
)
def test_keys_of_a_section_are_read_or_refused(section: dict[str, Any], said: str) -> None:
    rope, problems = read_rope(section, 1e4)
    assert rope == Rope() and said in problems[0].found
