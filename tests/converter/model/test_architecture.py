"""The sizes of a decoder as config.json states them, against transformers' own reading."""

from __future__ import annotations

from typing import Any

import pytest
from published import published_config, published_names
from transformers import LlamaConfig

from converter.errors import ConvertError
from converter.model.architecture import SIZES, read_architecture

GOOD: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
}


def problems(**changes: Any) -> str:
    """What is said of `GOOD` with changes; a change to `...` leaves the key out."""
    config = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    with pytest.raises(ConvertError) as caught:
        read_architecture(config)
    return str(caught.value)


@pytest.mark.parametrize("name", published_names())
def test_published_configs_have_the_sizes_that_transformers_reads(name: str) -> None:
    config = published_config(name)
    arch = read_architecture(config)
    llama = LlamaConfig(**{key: config[key] for key in (*SIZES, "num_key_value_heads")})
    for key in (*SIZES, "num_key_value_heads", "head_dim"):
        assert getattr(arch, key) == getattr(llama, key), key
    assert arch.rms_norm_eps == config["rms_norm_eps"]
    assert arch.max_position_embeddings == config["max_position_embeddings"]
    assert arch.tie_word_embeddings is config.get("tie_word_embeddings", False)


def test_what_a_config_leaves_out_is_llamas_default() -> None:
    least = {key: GOOD[key] for key in SIZES}
    arch = read_architecture(least)
    assert arch.num_key_value_heads == arch.num_attention_heads == 4 and arch.head_dim == 16
    assert (arch.max_position_embeddings, arch.rms_norm_eps) == (2048, 1e-6)
    assert (arch.rope.theta, arch.rope.scaling, arch.tie_word_embeddings) == (1e4, "none", False)


def test_null_is_as_good_as_left_out() -> None:
    arch = read_architecture(GOOD | {"num_key_value_heads": None, "head_dim": None})
    assert (arch.num_key_value_heads, arch.head_dim) == (4, 16)


def test_a_stated_head_dim_wins() -> None:
    arch = read_architecture(GOOD | {"head_dim": 32, "num_attention_heads": 6})
    heads = arch.heads
    assert (heads.num_attention_heads, heads.num_key_value_heads, heads.head_dim) == (6, 2, 32)


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", [0, -1, 1.5, "64", True, None, ...])
def test_a_size_that_is_none_is_named_with_what_it_is(key: str, value: Any) -> None:
    text = problems(**{key: value})
    assert (f"no {key}" if value is ... else f"{key}={value!r}") in text
    assert "a positive whole number" in text


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, ["6 attention heads and 4"]),
        (
            {"num_attention_heads": 7, "num_key_value_heads": 7},
            ["hidden_size 64 and 7"],
        ),
        ({"hidden_act": "gelu"}, ["hidden_act='gelu'", "'silu'"]),
        ({"sliding_window": 4096}, ["sliding_window=4096", "full attention"]),
        ({"rope_theta": "x", "vocab_size": 0}, ["rope_theta='x'", "vocab_size=0"]),
    ],
    ids=str,
)
def test_all_contradictions_are_said_at_once(changes: dict[str, Any], parts: list[str]) -> None:
    text = problems(**changes)
    assert all(part in text for part in parts)


def test_a_sliding_window_that_is_not_used_is_no_problem() -> None:
    assert read_architecture(GOOD | {"sliding_window": 4096, "use_sliding_window": False})
    assert read_architecture(GOOD | {"sliding_window": None, "hidden_act": "swish"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "mistral"}, "means 4096"),
        ({"model_type": "mistral", "sliding_window": 8, "use_sliding_window": False}, "window=8"),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "qwen2", "sliding_window": 8}, None),
        ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True}, "window=8"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"] * 2}, None),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"is_causal": False}, "is_causal"),
        ({"is_causal": True}, None),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 1.0}, None),
    ],
    ids=str,
)
def test_attention_is_what_transformers_class_of_the_model_does(
    changes: dict[str, Any], said: str | None
) -> None:
    if said is None:
        assert read_architecture(GOOD | changes)
    else:
        assert said in problems(**changes)


@pytest.mark.parametrize(
    ("key", "default"), [("max_position_embeddings", 2048), ("rms_norm_eps", 1e-6)]
)
def test_null_takes_the_default(key: str, default: float) -> None:
    assert getattr(read_architecture(GOOD | {key: None}), key) == default
