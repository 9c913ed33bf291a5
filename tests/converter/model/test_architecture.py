"""The sizes of a decoder as config.json states them, against transformers' own reading."""

from __future__ import annotations

from typing import Any

import pytest
from descriptions import architecture
from published import published_config, published_names
from transformers import LlamaConfig

from converter.errors import ConvertError

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


SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


def problems(**changes: Any) -> str:
    """What is said of `GOOD` with changes; a change to `...` leaves the key out."""
    config = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    with pytest.raises(ConvertError) as caught:
        architecture(config)
    return str(caught.value)


@pytest.mark.parametrize("name", published_names())
def test_published_configs_have_the_sizes_that_transformers_reads(name: str) -> None:
    config = published_config(name)
    arch = architecture(config)
    llama = LlamaConfig(**{key: config[key] for key in (*SIZES, "num_key_value_heads")})
    for key in (*SIZES, "num_key_value_heads", "head_dim"):
        assert getattr(arch, key) == getattr(llama, key), key
    assert arch.norm.eps == config["rms_norm_eps"]
    assert arch.max_position_embeddings == config["max_position_embeddings"]
    assert arch.tie_word_embeddings is config.get("tie_word_embeddings", False)


def test_what_a_config_leaves_out_is_llamas_default() -> None:
    least = {key: GOOD[key] for key in SIZES}
    arch = architecture(least)
    assert arch.num_key_value_heads == arch.num_attention_heads == 4 and arch.head_dim == 16
    assert (arch.max_position_embeddings, arch.norm.eps) == (2048, 1e-6)
    assert (arch.rope.theta, arch.rope.scaling, arch.tie_word_embeddings) == (1e4, "none", False)


def test_null_is_as_good_as_left_out() -> None:
    arch = architecture(GOOD | {"num_key_value_heads": None, "head_dim": None})
    assert (arch.num_key_value_heads, arch.head_dim) == (4, 16)


def test_a_stated_head_dim_wins() -> None:
    arch = architecture(GOOD | {"head_dim": 32, "num_attention_heads": 6})
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
        ({"hidden_act": "swiglu"}, ["'swiglu'", "silu, swish"]),
        ({"sliding_window": 4096}, ["sliding_window=4096", "does not read"]),
        ({"rope_theta": "x", "vocab_size": 0}, ["rope_theta='x'", "vocab_size=0"]),
    ],
    ids=str,
)
def test_all_contradictions_are_said_at_once(changes: dict[str, Any], parts: list[str]) -> None:
    text = problems(**changes)
    assert all(part in text for part in parts)


@pytest.mark.parametrize(
    ("name", "changes", "windows"),
    [
        ("mistral", {"model_type": "mistral"}, (4096, 4096)),
        ("mistral", {"model_type": "mistral", "sliding_window": 8}, (8, 8)),
        ("mistral", {"model_type": "mistral", "sliding_window": None}, (None, None)),
        ("qwen2", {"model_type": "qwen2", "sliding_window": 8}, (None, None)),
        (
            "qwen2",
            {
                "model_type": "qwen2",
                "sliding_window": 8,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            (None, 8),
        ),
        ("internlm2", {}, (None, None)),
    ],
    ids=str,
)
def test_windows_are_those_of_transformers_class(
    name: str, changes: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    assert architecture(GOOD | changes, name).attention.windows == windows


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("internlm2", {"sliding_window": 8}, "sliding_window=8"),
        ("internlm2", {"embedding_multiplier": 12.0}, "embedding_multiplier=12.0"),
        ("internlm2", {"is_causal": False}, "is_causal"),
        ("internlm2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"model_type": "granite", "residual_multiplier": 0.2}, "residual_multiplier=0.2"),
        ("llama", {"model_type": "no_such_type"}, "no_such_type"),
    ],
    ids=str,
)
def test_a_key_with_an_effect_that_nothing_reads_is_refused(
    name: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConvertError, match=said):
        architecture(GOOD | changes, name)


def test_a_key_that_transformers_class_ignores_has_no_effect() -> None:
    assert architecture(GOOD | {"model_type": "llama", "made_by": "a trainer"}, "llama")


@pytest.mark.parametrize(("key", "default"), [("max_position_embeddings", 2048), ("head_dim", 16)])
def test_null_takes_the_default(key: str, default: float) -> None:
    assert getattr(architecture(GOOD | {key: None}), key) == default
