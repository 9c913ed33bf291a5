"""The sizes and flags of a decoder, read from a checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from converter.errors import Problem, raise_if
from converter.model.rope import Rope, read_rope
from converter.model.row_order import HeadShape

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


@dataclass(frozen=True)
class Architecture:
    """A decoder of the Llama family: RMSNorm, grouped-query attention with RoPE, SwiGLU."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: Rope
    tie_word_embeddings: bool

    @property
    def heads(self) -> HeadShape:
        return HeadShape(self.num_attention_heads, self.num_key_value_heads, self.head_dim)


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read config.json's keys under the names that the Llama family uses.

    Raises:
        ConvertError: lists every missing, ill-typed or contradictory value.
    """
    rope, rope_problems = read_rope(config)
    problems = [*_size_problems(config), *rope_problems, *_support_problems(config)]
    raise_if(problems)
    heads = config["num_attention_heads"]
    return Architecture(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        max_position_embeddings=config.get("max_position_embeddings", 2048),
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope=rope,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _size_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    optional = [
        key
        for key in ("num_key_value_heads", "head_dim", "max_position_embeddings")
        if config.get(key) is not None
    ]
    for key in (*SIZES, *optional):
        if not _is_size(config.get(key)):
            found = f"{key}={config[key]!r}" if key in config else f"no {key}"
            yield Problem(
                f"config.json has {found}.", "a positive whole number", "correct config.json"
            )
    heads, kv_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    hidden = config.get("hidden_size")
    if _is_size(heads) and _is_size(kv_heads) and heads % kv_heads:  # type: ignore[operator]
        yield Problem(
            f"config.json has {heads} attention heads and {kv_heads} key-value heads.",
            "a number of attention heads that the key-value heads divide",
            "correct num_attention_heads or num_key_value_heads in config.json",
        )
    if _is_size(heads) and _is_size(hidden) and config.get("head_dim") is None and hidden % heads:  # type: ignore[operator]
        yield Problem(
            f"config.json has hidden_size {hidden} and {heads} attention heads.",
            "a hidden size that the heads divide, or an explicit head_dim",
            "correct num_attention_heads in config.json",
        )


def _support_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        yield Problem(
            f"config.json has hidden_act={activation!r}.",
            "'silu', the only activation of the decoder template",
            "choose a checkpoint with a SwiGLU feed-forward",
        )
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        yield Problem(
            f"config.json has sliding_window={config['sliding_window']!r}.",
            "full attention",
            "choose a checkpoint without sliding-window attention",
        )
