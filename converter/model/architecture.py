"""The sizes and flags of a decoder, read from a checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from converter.errors import Problem, raise_if
from converter.model.config_file import CONFIG_FILE, ConfigFile
from converter.model.json_schema import shown, value_problems
from converter.model.rope import Rope, read_rope
from converter.model.row_order import HeadShape

FULL = "full_attention"
"""The only entry of `layer_types` that the decoder template knows."""
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
    problems = [
        *value_problems(ConfigFile, config, CONFIG_FILE),
        *_contradictions(config),
        *rope_problems,
        *_support_problems(config),
    ]
    raise_if(problems)
    given = {key: value for key, value in config.items() if value is not None}
    heads = given["num_attention_heads"]
    return Architecture(
        vocab_size=given["vocab_size"],
        hidden_size=given["hidden_size"],
        intermediate_size=given["intermediate_size"],
        num_hidden_layers=given["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=given.get("num_key_value_heads", heads),
        head_dim=given.get("head_dim", given["hidden_size"] // heads),
        max_position_embeddings=given.get("max_position_embeddings", 2048),
        rms_norm_eps=float(given.get("rms_norm_eps", 1e-6)),
        rope=rope,
        tie_word_embeddings=given.get("tie_word_embeddings", False),
    )


def _is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _contradictions(config: Mapping[str, Any]) -> Iterator[Problem]:
    heads, kv_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    hidden = config.get("hidden_size")
    if _is_size(heads) and _is_size(kv_heads) and heads % kv_heads:
        yield Problem(
            f"{CONFIG_FILE} has {shown(heads)} attention heads and {shown(kv_heads)} key-value "
            "heads.",
            "a number of attention heads that the key-value heads divide",
            f"correct num_attention_heads or num_key_value_heads in {CONFIG_FILE}",
        )
    if _is_size(heads) and _is_size(hidden) and config.get("head_dim") is None and hidden % heads:
        yield Problem(
            f"{CONFIG_FILE} has hidden_size {shown(hidden)} and {shown(heads)} attention heads.",
            "a hidden size that the heads divide, or an explicit head_dim",
            f"correct num_attention_heads in {CONFIG_FILE}",
        )


def _support_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    activation, window = config.get("hidden_act"), _window(config)
    if isinstance(activation, str) and activation not in ("silu", "swish"):
        yield Problem(
            f"{CONFIG_FILE} has hidden_act={shown(activation)}.",
            "'silu', the only activation of the decoder template",
            "choose a checkpoint with a SwiGLU feed-forward",
        )
    if window:
        yield Problem(
            f"{CONFIG_FILE} has {window}.",
            "full attention",
            "choose a checkpoint without sliding-window attention",
        )
    if config.get("is_causal") is False:
        yield Problem(
            f"{CONFIG_FILE} has is_causal=false.",
            "a decoder, in which each token reads those before it",
            "choose a checkpoint that generates text",
        )
    if config.get("partial_rotary_factor") not in (None, 1):
        yield Problem(
            f"{CONFIG_FILE} has partial_rotary_factor={shown(config['partial_rotary_factor'])}.",
            "1, or none: the decoder template rotates the whole head",
            "choose a checkpoint whose rotary embedding covers the whole head",
        )


def _window(config: Mapping[str, Any]) -> str:
    """The sliding window that transformers' class of this model applies, as the config states it.

    Mistral's has one of 4096 tokens unless the config says null, and no switch; Qwen2's is off
    unless `use_sliding_window` is true. `layer_types`, where a config has it, says it all.
    """
    kind, window = config.get("model_type"), config.get("sliding_window")
    layers = config.get("layer_types")
    if isinstance(layers, list):
        other = [item for item in layers if item != FULL]
        return f"layer_types with {shown(other[0])}" if other else ""
    if kind == "mistral" and "sliding_window" not in config:
        return "model_type 'mistral' and no sliding_window, which means 4096 tokens"
    switch = config.get("use_sliding_window")
    on = kind == "mistral" or (kind != "qwen2" if switch is None else switch)
    return f"sliding_window={shown(window)}" if window and on else ""
