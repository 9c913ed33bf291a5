"""A decoder as numbers: what a description says, filled in from a checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

import torch

from converter.errors import Problem, raise_if
from converter.model.config_file import CONFIG_FILE, ConfigFile
from converter.model.config_view import language_config, unread_problems, view_config
from converter.model.description import Description, Values
from converter.model.experts import Experts, read_experts
from converter.model.json_schema import shown, value_problems
from converter.model.rope import Rope, read_rope
from converter.model.row_order import HeadShape

SLIDING, FULL = "sliding_attention", "full_attention"
"""Entries of `layer_types` for layers with a window and without one."""
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""transformers' names of activations, and the kinds that they are."""
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class Norm:
    """RMSNorm or LayerNorm."""

    type: Literal["rms", "layer"] = "rms"
    eps: float = 1e-6
    offset: float = 0.0
    """Added to the stored weight."""


@dataclass(frozen=True)
class QueryScale:
    """Queries at position p are multiplied with 1 + slope · log(1 + floor(p / length))."""

    slope: float
    length: int

    def table(self, positions: int) -> torch.Tensor:
        """The factors of so many positions, float32 (positions, 1)."""
        place = torch.arange(positions, dtype=torch.float32)
        return (1 + self.slope * torch.log1p(torch.floor(place / self.length)))[:, None]


@dataclass(frozen=True)
class Attention:
    """How scores are made, and which keys each layer's queries see."""

    scale: float
    softcap: float = 0.0
    """0 means none."""
    qk_norm: Literal["none", "head", "projection"] = "none"
    qk_norm_after_rope: bool = False
    query_scale: QueryScale | None = None
    """How queries grow with their position, where they do."""
    windows: tuple[int | None, ...] = ()
    """Keys that a query sees, itself included, a layer; None means all before it."""


@dataclass(frozen=True)
class Rotation:
    """Which columns of which layers are rotated."""

    columns: int
    """Rotated columns at the start of a head."""
    interleaved: bool = False
    layers: tuple[bool, ...] = ()
    """Whether each layer rotates."""
    local: Rope | None = None
    """The frequencies of layers with a window, where they have their own."""


@dataclass(frozen=True)
class Multipliers:
    """Constants that activations are multiplied with."""

    embedding: float = 1.0
    residual: float = 1.0
    logits: float = 1.0


@dataclass(frozen=True)
class Architecture:
    """The blocks and sizes of a decoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    norm: Norm
    attention: Attention
    rope: Rope
    rotation: Rotation
    activation: str = "silu"
    """silu, gelu, gelu_tanh, relu or relu2."""
    parallel: bool = False
    """Whether attention and feed-forward read the same residual stream."""
    multipliers: Multipliers = field(default_factory=Multipliers)
    logits_softcap: float = 0.0
    """0 means none."""
    tie_word_embeddings: bool = False
    experts: Experts | None = None
    """None where every layer has one feed-forward block."""

    @property
    def heads(self) -> HeadShape:
        return HeadShape(self.num_attention_heads, self.num_key_value_heads, self.head_dim)


def read_architecture(config: Mapping[str, Any], description: Description) -> Architecture:
    """Fill a description's values in from config.json.

    Args:
        config: as the checkpoint has it.
        description: the recipe, or another holder of its sections `layout` and `graph`.

    Raises:
        ConvertError: lists every missing, ill-typed or contradictory value, and every key of
            config.json that the description does not read though it has an effect.
    """
    _refuse_unreadable(config, description)
    view = view_config(config, description.layout)
    values = Values(view.values)
    graph = description.graph
    sizes = {name: values.size(f"graph.sizes.{name}", getattr(graph.sizes, name)) for name in SIZES}
    raise_if(values.problems)
    layers, head_dim = sizes["num_hidden_layers"], sizes["head_dim"]
    windows = _windows(values, graph.attention, layers)
    rope, local = _ropes(values, graph.rope, windows)
    activation = _activation(values, graph.feed_forward.activation)
    architecture = Architecture(
        **sizes,
        norm=Norm(
            graph.norm.type,
            values.number("graph.norm.eps", graph.norm.eps, 1e-6),
            values.number("graph.norm.offset", graph.norm.offset, 0.0),
        ),
        attention=_attention(values, graph.attention, head_dim, windows),
        rope=rope,
        rotation=_rotation(values, graph.rope, head_dim, windows, local),
        activation=activation,
        parallel=bool(values.value("graph.parallel", graph.parallel)),
        multipliers=Multipliers(
            *(
                values.number(f"graph.multipliers.{name}", getattr(graph.multipliers, name), 1.0)
                for name in ("embedding", "residual", "logits")
            )
        ),
        logits_softcap=values.number("graph.logits_softcap", graph.logits_softcap, 0.0),
        tie_word_embeddings=values.value("", "config.tie_word_embeddings") is True,
        experts=read_experts(values, description, layers, activation),
    )
    raise_if(
        [
            *values.problems,
            *_contradictions(architecture),
            *unread_problems(config, view, description.layout, values.read),
        ]
    )
    return architecture


def _refuse_unreadable(config: Mapping[str, Any], description: Description) -> None:
    """Raise what can be said of config.json as it stands, before anything is calculated."""
    config = language_config(config) if description.layout.reference == "config" else config
    problems = [*value_problems(ConfigFile, config, CONFIG_FILE), *_impossible(config)]
    if problems:
        values, rope = Values(config), description.graph.rope
        section = values.value("graph.rope.scaling", rope.scaling)
        problems += read_rope(section, values.value("graph.rope.theta", rope.theta))[1]
    raise_if(problems)


def _impossible(config: Mapping[str, Any]) -> Iterator[Problem]:
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
    if config.get("is_causal") is False:
        yield Problem(
            f"{CONFIG_FILE} has is_causal=false.",
            "a decoder, in which each token reads those before it",
            "choose a checkpoint that generates text",
        )


def _windows(values: Values, attention: Any, layers: int) -> tuple[int | None, ...]:
    window = values.value("graph.attention.window", attention.window)
    kinds = values.value("graph.attention.window_layers", attention.window_layers)
    unused = window == 0 and isinstance(kinds, list) and {*kinds} == {FULL}
    if window is None or unused:  # Qwen2-MoE writes 0 where no layer has a window
        return (None,) * layers
    if not _is_size(window):
        values.refuse("graph.attention.window", window, "a positive number of tokens, or null")
        return (None,) * layers
    if kinds == "all":
        return (window,) * layers
    if not _is_list(kinds, layers, str):
        expected = f"all, or a list of {layers} names, one a layer"
        values.refuse("graph.attention.window_layers", kinds, expected)
        return (None,) * layers
    known = {SLIDING: window, FULL: None}
    for other in dict.fromkeys(kind for kind in kinds if kind not in known):
        values.refuse("graph.attention.window_layers", other, " or ".join(known))
    return tuple(known.get(kind) for kind in kinds)


def _attention(
    values: Values, attention: Any, head_dim: int, windows: tuple[int | None, ...]
) -> Attention:
    return Attention(
        values.number("graph.attention.scale", attention.scale, head_dim**-0.5),
        values.number("graph.attention.softcap", attention.softcap, 0.0),
        attention.qk_norm,
        attention.qk_norm_after_rope,
        _query_scale(values, attention),
        windows,
    )


def _rotation(
    values: Values, rope: Any, head_dim: int, windows: tuple[int | None, ...], local: Rope | None
) -> Rotation:
    share = values.number("graph.rope.partial", rope.partial, 1.0)
    rotated = _rotated(values, rope, windows)
    return Rotation(int(head_dim * share), rope.interleaved, rotated, local)


def _query_scale(values: Values, attention: Any) -> QueryScale | None:
    slope = values.number("graph.attention.query_scale_slope", attention.query_scale_slope, 0.0)
    key = "graph.attention.query_scale_length"
    length = values.value(key, attention.query_scale_length)
    if not slope:
        return None
    if not _is_size(length):
        values.refuse(key, length, "a positive number of positions")
        return None
    return QueryScale(slope, length)


def _rotated(values: Values, rope: Any, windows: tuple[int | None, ...]) -> tuple[bool, ...]:
    layers = values.value("graph.rope.layers", rope.layers)
    sliding = tuple(window is not None for window in windows)
    named = {
        "all": (True,) * len(windows),
        "rope": (True,) * len(windows),
        "none": (False,) * len(windows),
        "nope": (False,) * len(windows),
        "sliding": sliding,
        "sliding_or_all": sliding if any(sliding) else (True,) * len(windows),
    }
    if isinstance(layers, str) and layers in named:
        return named[layers]
    if _is_list(layers, len(windows), int):
        return tuple(bool(layer) for layer in layers)
    expected = f"{', '.join(named)}, or a list of {len(windows)} zeros and ones"
    values.refuse("graph.rope.layers", layers, expected)
    return named["all"]


def _ropes(values: Values, rope: Any, windows: tuple[int | None, ...]) -> tuple[Rope, Rope | None]:
    found, problems = read_rope(
        values.value("graph.rope.scaling", rope.scaling),
        values.value("graph.rope.theta", rope.theta),
        values.value("", "config.original_max_position_embeddings"),
    )
    values.problems += problems
    theta = values.value("graph.rope.local_theta", rope.local_theta)
    if theta is None or not any(windows):
        return found, None
    scaling = values.value("graph.rope.local_scaling", rope.local_scaling)
    local, problems = read_rope(scaling, theta, None)
    values.problems += problems
    return found, local


def _activation(values: Values, text: Any) -> str:
    name = values.value("graph.feed_forward.activation", text)
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    values.refuse("graph.feed_forward.activation", name, f"one of {', '.join(ACTIVATIONS)}")
    return "silu"


def _is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_list(value: Any, length: int, kind: type) -> TypeGuard[list[Any]]:
    return (
        isinstance(value, (list, tuple))
        and len(value) == length
        and all(isinstance(item, kind) for item in value)
    )


def _contradictions(arch: Architecture) -> Iterator[Problem]:
    if arch.num_attention_heads % arch.num_key_value_heads:
        yield Problem(
            f"{CONFIG_FILE} gives {arch.num_attention_heads} attention heads and "
            f"{arch.num_key_value_heads} key-value heads.",
            "a number of attention heads that the key-value heads divide",
            f"correct {CONFIG_FILE}, or graph.sizes in the recipe",
        )
    columns = arch.rotation.columns
    if columns % 2 or not 0 < columns <= arch.head_dim:
        yield Problem(
            f"Of a head's {arch.head_dim} columns, {columns} are rotated.",
            "an even number of them",
            f"correct partial_rotary_factor in {CONFIG_FILE}, or graph.rope.partial",
        )
