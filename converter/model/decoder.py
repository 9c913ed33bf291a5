"""The decoder in canonical terms: one name, one shape and one row order for every architecture.

`converter.model.tensor_kinds` lists the canonical names. A description may name fused tensors,
`qkv_proj` and `gate_up_proj`; the decoder has their parts.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch

from converter.errors import ConvertError, Problem, raise_if
from converter.model.architecture import Architecture
from converter.model.checkpoint import Checkpoint
from converter.model.expert_weights import (
    expert_name,
    published_experts,
    published_shape,
    row_order_problems,
    stacked_experts,
)
from converter.model.misfit import FLOATS, Expected, LayoutForm, misfit_problems
from converter.model.mxfp4_tensors import without_mxfp4
from converter.model.row_order import compile_row_order
from converter.model.tensor_kinds import (
    BIAS,
    DENSE,
    EMBEDDING,
    EXPERT_NUMBER,
    EXPERTS,
    FINAL_NORM,
    HEAD,
    LAYER_TENSORS,
    MIXTURE,
    MODEL_TENSORS,
    NORMS,
    canonical_shape,
    is_bias,
    is_whole_name,
    leaf,
)
from converter.prequantized.source import open_quantized, quantized_section
from converter.quantization.coded_weight import stored_forms
from converter.recipe.schema import LayoutConfig
from converter.recipe.validation import nearest_names
from converter.weights.weight import TensorWeight, Weight, concatenate_rows

FUSED = {"qkv_proj": ("q", "k", "v"), "q_proj": ("q",), "k_proj": ("k",), "v_proj": ("v",)}
"""Projections that carry attention heads in their rows, and which parts each holds."""
HALVES = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "shared_gate_up_proj": ("shared_gate_proj", "shared_up_proj"),
}
"""What a fused projection stacks."""


@dataclass(frozen=True)
class Decoder:
    """Canonical weights of a decoder, with its sizes."""

    architecture: Architecture
    weights: Mapping[str, Weight]
    checkpoint: Checkpoint
    ignored: tuple[str, ...] = field(default=())
    """Checkpoint tensors that carry nothing the graph needs."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    """The names and row orders by which the checkpoint was read."""
    notes: tuple[str, ...] = ()
    """What a quantized checkpoint states that has no effect."""
    stored: Mapping[str, int] = field(default_factory=dict)
    """How many of its tensors the checkpoint holds quantized, by the format."""
    stored_experts: str = ""
    """The format of experts that the checkpoint holds quantized."""


def published_shapes(layout: LayoutConfig, arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that a checkpoint of this layout holds, biases left out."""
    tied = arch.tie_word_embeddings
    return {
        name: published_shape(canonical, layout, arch)
        for canonical, name in published_names(layout, arch).items()
        if not is_bias(canonical) and not (tied and canonical == HEAD)
    }


def build_decoder(checkpoint: Checkpoint, layout: LayoutConfig, arch: Architecture) -> Decoder:
    """Map a checkpoint's tensors to canonical ones, in canonical row order.

    A head that is tied by config.json and differs from the embedding is kept, as transformers 5
    keeps it.

    Raises:
        ConvertError: what does not fit; see `converter.model.misfit`.
    """
    checkpoint = without_mxfp4(checkpoint)
    raise_if([*_name_problems(layout), *_block_problems(layout, arch), *row_order_problems(layout)])
    published = replace(checkpoint, tensors=_renamed(checkpoint.tensors, layout))
    checkpoint, notes = _dequantized(checkpoint, layout, arch)
    checkpoint = replace(checkpoint, tensors=_renamed(checkpoint.tensors, layout))
    arch = _untied(checkpoint.tensors, layout, arch)
    named = published_names(layout, arch)
    ignored = tuple(name for name in checkpoint.tensors if _is_ignored(name, layout, arch))
    raise_if(_ignored_problems(named, ignored, arch))
    raise_if(_tensor_problems(checkpoint, named, layout, arch))
    raise_if(_norm_problems(named, checkpoint.tensors, arch))
    found = {
        canonical: checkpoint.tensors[name]
        for canonical, name in named.items()
        if name in checkpoint.tensors and name not in ignored
    }
    weights = dict(_canonical_weights(found, layout, arch))
    weights |= dict(stacked_experts(found, layout, arch))
    weights |= dict(_norms_without_weights(layout, arch))
    if HEAD not in weights:
        weights[HEAD] = weights[EMBEDDING]
    stored = stored_forms(found.values())
    experts = stored_forms(weight for name, weight in found.items() if _is_expert(name))
    of_experts = " and ".join(experts)
    return Decoder(arch, weights, published, ignored, layout, notes, stored, of_experts)


def _is_expert(canonical: str) -> bool:
    return leaf(canonical).removesuffix(BIAS) in EXPERTS


def _dequantized(
    checkpoint: Checkpoint, layout: LayoutConfig, arch: Architecture
) -> tuple[Checkpoint, tuple[str, ...]]:
    """The checkpoint as a float one, and what it states that has no effect."""
    key = quantized_section(checkpoint.config)
    if key is None:
        return checkpoint, ()
    opened = open_quantized(checkpoint.config, checkpoint.tensors, published_shapes(layout, arch))
    raise_if(opened.problems)
    config = {name: value for name, value in checkpoint.config.items() if name != key}
    return replace(checkpoint, config=config, tensors=opened.weights), tuple(opened.notes)


def _renamed(tensors: Mapping[str, Weight], layout: LayoutConfig) -> dict[str, Weight]:
    """The tensors with the starts of names that the layout has; the longest that fits counts."""
    pairs = [entry.partition("=")[::2] for entry in layout.prefixes]
    pairs.sort(key=lambda pair: -len(pair[0]))
    found = {}
    for name, weight in tensors.items():
        start, own = next((pair for pair in pairs if name.startswith(pair[0])), ("", ""))
        renamed = own + name.removeprefix(start)
        found[name if renamed in tensors else renamed] = weight
    return found


def _name_problems(layout: LayoutConfig) -> Iterator[Problem]:
    for section, known in (("tensors", MODEL_TENSORS), ("layer_tensors", LAYER_TENSORS)):
        for name in getattr(layout, section):
            if name.removesuffix(BIAS) not in known:
                near = nearest_names(name, known) or list(known)[:3]
                yield Problem(
                    f"layout.{section} names {name!r}, which is no tensor of a decoder.",
                    f"one of {', '.join(known)}, with {BIAS} behind it for a bias",
                    f"write layout.{section}.{near[0]}=…",
                    key=(f"layout.{section}.{name}",),
                )


NEEDED = (
    ((EMBEDDING,), (FINAL_NORM,), (HEAD,)),
    (
        ("q_proj", "qkv_proj"),
        ("k_proj", "qkv_proj"),
        ("v_proj", "qkv_proj"),
        ("o_proj",),
    ),
)
"""Tensors outside and inside of the layers that every decoder has, under one of their names."""
NEEDED_DENSE = (("up_proj", "gate_up_proj"), ("down_proj",))
NEEDED_EXPERTS = (
    ("expert_gate_proj", "expert_gate_up_proj"),
    ("expert_up_proj", "expert_gate_up_proj"),
    ("expert_down_proj",),
)
NEEDED_SHARED = (
    ("shared_gate_proj", "shared_gate_up_proj"),
    ("shared_up_proj", "shared_gate_up_proj"),
    ("shared_down_proj",),
)
"""The same of layers without and with experts, and of an expert for all tokens."""


def _block_problems(layout: LayoutConfig, arch: Architecture) -> Iterator[Problem]:
    """Blocks of the graph whose tensors the description does not name, and the other way round."""
    for section, all_needed in zip(("tensors", "layer_tensors"), NEEDED, strict=True):
        named = {name for name, value in getattr(layout, section).items() if value is not None}
        for names in all_needed:
            if not named & {*names}:
                yield _unnamed(section, names[0], "every decoder has it")
    inside = {name for name, value in layout.layer_tensors.items() if value is not None}
    for needed, why in _feed_forward_needs(inside, arch):
        if not inside & {*needed}:
            yield _unnamed("layer_tensors", needed[0], why)
    if arch.experts is None and inside & MIXTURE:
        yield _unnamed("layer_tensors", "router", "a description with experts has one")
    wanted, key = arch.attention.qk_norm != "none", "graph.attention.qk_norm"
    for name in ("q_norm", "k_norm"):
        if wanted and name not in inside:
            yield _unnamed("layer_tensors", name, f"{key} asks for it")
        elif name in inside and not wanted:
            yield Problem(
                f"layout.layer_tensors names {name}, and {key} makes no use of it.",
                "a description whose tensors all have a place in the graph",
                f"set {key}, or set layout.layer_tensors.{name}=null",
                key=(f"layout.layer_tensors.{name}", key),
            )


def _feed_forward_needs(
    inside: set[str], arch: Architecture
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Names of which a layer's feed-forward needs one, and why."""
    layers = arch.experts.layers if arch.experts else (False,)
    if not all(layers):
        yield from ((names, "layers without experts have it") for names in NEEDED_DENSE)
    if any(layers):
        yield from ((names, "layers with experts have it") for names in NEEDED_EXPERTS)
    shared = [name for name in inside if name.startswith("shared_")]
    if any(layers) and shared:
        yield from ((names, f"{shared[0]} is named") for names in NEEDED_SHARED)


def _unnamed(section: str, name: str, why: str) -> Problem:
    return Problem(
        f"layout.{section} does not name {name}: {why}.",
        "the name that the checkpoint has for it",
        f"set layout.{section}.{name}=…",
        key=(f"layout.{section}.{name}",),
    )


def _ignored_problems(
    named: Mapping[str, str], ignored: Iterable[str], arch: Architecture
) -> Iterator[Problem]:
    """Tensors that a description names and ignores; a tied head is meant to be."""
    places = {name: canonical for canonical, name in named.items()}
    for name in ignored:
        canonical = places.get(name)
        if canonical is not None and not (canonical == HEAD and arch.tie_word_embeddings):
            yield Problem(
                f"layout.ignored leaves out {name}, which is the decoder's {canonical}.",
                "patterns of buffers only",
                "set layout.ignored to patterns that fit no tensor with a place",
                key=("layout.ignored",),
            )
            return


def _norm_problems(
    named: Mapping[str, str], tensors: Mapping[str, Weight], arch: Architecture
) -> Iterator[Problem]:
    """A bias of a norm that has none by its definition."""
    for canonical, name in named.items():
        kind = leaf(canonical)
        biased = is_bias(kind) and kind.removesuffix(BIAS) in NORMS and name in tensors
        if biased and arch.norm.type == "rms":
            yield Problem(
                f"The checkpoint has {name}, and graph.norm.type is rms.",
                "LayerNorm, or a norm without a bias",
                "choose the architecture of this model, or set graph.norm.type=layer",
                key=("graph.norm.type",),
            )
            return


def _untied(
    tensors: Mapping[str, Weight], layout: LayoutConfig, arch: Architecture
) -> Architecture:
    """The architecture with a head of its own where the weights hold another than the embedding."""
    names = published_names(layout, arch)
    embedding, head = (tensors.get(names.get(name, "")) for name in (EMBEDDING, HEAD))
    if arch.tie_word_embeddings and embedding and head and _differ(embedding, head):
        return replace(arch, tie_word_embeddings=False)
    return arch


def _differ(one: Weight, other: Weight) -> bool:
    """Whether two tensors hold different values; unknown for those that are not fetched yet."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return True
    if one.dtype not in FLOATS:
        return False
    with contextlib.suppress(ConvertError):
        return any(not torch.equal(one.rows(*rows), other.rows(*rows)) for rows in one.tiles())
    return False


def published_names(layout: LayoutConfig, arch: Architecture) -> dict[str, str]:
    """Canonical name to the checkpoint's, biases included, whether it holds them or not."""
    names = dict(_with_endings(layout.tensors.items()))
    inside = dict(_with_endings(layout.layer_tensors.items()))
    for layer in range(arch.num_hidden_layers):
        prefix = layout.layer_prefix.replace("{layer}", str(layer))
        for canonical, name in inside.items():
            if _is_of_layer(canonical, layer, arch):
                names |= _layer_names(f"layers.{layer}.", canonical, prefix + name, arch)
    return names


def _is_of_layer(canonical: str, layer: int, arch: Architecture) -> bool:
    """Whether a layer has a tensor: its feed-forward block is one, or experts."""
    kind, mixed = canonical.removesuffix(BIAS), arch.experts and arch.experts.layers[layer]
    return kind not in (DENSE if mixed else MIXTURE)


def _layer_names(layer: str, canonical: str, name: str, arch: Architecture) -> dict[str, str]:
    """Canonical names of a layer's tensor, or of that of each expert, to the checkpoint's."""
    if EXPERT_NUMBER not in name or arch.experts is None:
        return {layer + canonical: name}
    return {
        expert_name(layer, number, canonical): name.replace(EXPERT_NUMBER, str(number))
        for number in range(arch.experts.count)
    }


def _with_endings(named: Iterable[tuple[str, str | None]]) -> Iterator[tuple[str, str]]:
    """Names of parameters; a module's stands for its weight and its bias."""
    for canonical, name in named:
        if not name:
            continue
        if is_whole_name(canonical, name):
            yield canonical, name
        else:
            yield canonical, f"{name}.weight"
            yield canonical + BIAS, f"{name}.bias"


def _is_ignored(name: str, layout: LayoutConfig, arch: Architecture) -> bool:
    tied_head = arch.tie_word_embeddings and name == dict(
        _with_endings(layout.tensors.items())
    ).get(HEAD)
    return tied_head or any(fnmatch.fnmatchcase(name, pattern) for pattern in layout.ignored)


def _tensor_problems(
    checkpoint: Checkpoint, named: Mapping[str, str], layout: LayoutConfig, arch: Architecture
) -> Iterator[Problem]:
    required = _required(named, checkpoint.tensors, arch, bool(checkpoint.config.get("bias")))
    expected = {
        name: Expected(canonical, published_shape(canonical, layout, arch), canonical in required)
        for canonical, name in named.items()
    }
    outside = {name: value for name, value in layout.tensors.items() if value}
    form = LayoutForm(expected, layout.layer_prefix, outside, arch.num_hidden_layers)
    return misfit_problems(
        checkpoint.config, checkpoint.tensors, form, lambda name: _is_ignored(name, layout, arch)
    )


def _required(
    named: Mapping[str, str], tensors: Mapping[str, Weight], arch: Architecture, bias: bool
) -> set[str]:
    """Canonical names that must exist: a bias that one layer has, all layers must have."""
    biased = {
        leaf(canonical)
        for canonical, name in named.items()
        if is_bias(canonical) and (name in tensors or (bias and _of_attention(canonical)))
    }
    return {
        canonical
        for canonical in named
        if (not is_bias(canonical) or leaf(canonical) in biased)
        and not (canonical == HEAD and arch.tie_word_embeddings)
    }


def _of_attention(canonical: str) -> bool:
    kind = leaf(canonical).removesuffix(BIAS)
    return kind in FUSED or kind == "o_proj"


def _norms_without_weights(
    layout: LayoutConfig, arch: Architecture
) -> Iterator[tuple[str, Weight]]:
    """Ones for the norms that a description names with an empty name."""
    for canonical, name in layout.tensors.items():
        if name == "" and canonical in NORMS:
            yield canonical, TensorWeight(torch.ones(canonical_shape(canonical, arch)), canonical)
    for canonical, name in layout.layer_tensors.items():
        if name == "" and canonical in NORMS:
            ones = TensorWeight(torch.ones(canonical_shape(canonical, arch)), canonical)
            yield from ((f"layers.{n}.{canonical}", ones) for n in range(arch.num_hidden_layers))


def _canonical_weights(
    found: Mapping[str, Weight], layout: LayoutConfig, arch: Architecture
) -> Iterator[tuple[str, Weight]]:
    orders = {kind: _row_order(kind, layout, arch) for kind in FUSED}
    for canonical, weight in found.items():
        prefix, _, name = canonical.rpartition(".")
        prefix = prefix + "." if prefix else ""
        suffix = BIAS if is_bias(name) else ""
        kind = name.removesuffix(BIAS)
        if kind in FUSED:
            order, offset = orders[kind], 0
            for part in FUSED[kind]:
                rows = arch.heads.part_rows(part)
                index = order[offset : offset + rows]
                yield f"{prefix}{part}_proj{suffix}", weight.permute_rows(index)
                offset += rows
        elif kind in HALVES:
            half = weight.shape[0] // 2
            for name, start in zip(HALVES[kind], (0, half), strict=True):
                index = torch.arange(start, start + half)
                yield f"{prefix}{name}{suffix}", weight.permute_rows(index)
        elif kind not in EXPERTS:
            yield canonical, weight


def published_weights(decoder: Decoder, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Canonical `weights` of a decoder under the checkpoint's names, in its row orders.

    Undoes what `build_decoder` does, so that other values, such as rounded ones, can stand in the
    checkpoint's places. A head that is the embedding is left out.
    """
    layout, arch, found = decoder.layout, decoder.architecture, dict[str, Weight]()
    for canonical, name in published_names(layout, arch).items():
        prefix, _, kind = canonical.rpartition(".")
        if kind.removesuffix(BIAS) in EXPERTS and arch.experts is not None:
            own = published_experts(canonical, weights, layout, arch.experts)
            found |= {} if own is None else {name: own}
            continue
        suffix, kind = (BIAS if is_bias(kind) else ""), kind.removesuffix(BIAS)
        prefix = prefix + "." if prefix else ""
        parts = [canonical]
        if kind in FUSED:
            parts = [f"{prefix}{part}_proj{suffix}" for part in FUSED[kind]]
        elif kind in HALVES:
            parts = [f"{prefix}{part}{suffix}" for part in HALVES[kind]]
        tied = canonical == HEAD and weights[HEAD] is weights[EMBEDDING]
        if tied or parts[0] not in weights:
            continue
        weight = concatenate_rows([weights[part] for part in parts])
        if kind in FUSED:
            weight = weight.permute_rows(torch.argsort(_row_order(kind, layout, arch)))
        found[name] = weight
    return found


@dataclass(frozen=True)
class Place:
    """A tensor of the checkpoint by its name; `rows`, int64, where it is some rows of that."""

    name: str
    rows: torch.Tensor | None = None


def published_places(layout: LayoutConfig, arch: Architecture) -> dict[str, Place]:
    """Where a layer's canonical tensors are, whether the checkpoint holds them or not.

    Names are canonical ones without `layers.0.`, such as `q_proj_bias`; those of fused tensors are
    of their parts. The checkpoint's are those of layer 0, also for what only other layers have.
    """
    found: dict[str, Place] = {}
    seen: set[str] = set()
    for canonical, name in published_names(layout, arch).items():
        prefix, _, kind = canonical.rpartition(".")
        if not re.fullmatch(r"layers\.\d+", prefix):
            continue
        number = prefix.partition(".")[2]
        start = layout.layer_prefix.replace("{layer}", number)
        name = layout.layer_prefix.replace("{layer}", "0") + name.removeprefix(start)
        if kind in seen:
            continue
        seen.add(kind)
        suffix, kind = (BIAS if is_bias(kind) else ""), kind.removesuffix(BIAS)
        if kind in FUSED:
            order, offset = _row_order(kind, layout, arch), 0
            for part in FUSED[kind]:
                count = arch.heads.part_rows(part)
                rows = order[offset : offset + count]
                found[f"{part}_proj{suffix}"] = Place(name, rows)
                offset += count
        elif kind in HALVES:
            half = canonical_shape(HALVES[kind][0], arch)[0]
            for part, start_row in zip(HALVES[kind], (0, half), strict=True):
                found[part + suffix] = Place(name, torch.arange(start_row, start_row + half))
        else:
            found[kind + suffix] = Place(name)
    return found


def _row_order(kind: str, layout: LayoutConfig, arch: Architecture) -> torch.Tensor:
    parts = FUSED[kind]
    separate = "kv_head group head_dim" if parts == ("q",) else "kv_head head_dim"
    together = "[q: kv_head group | k: kv_head | v: kv_head] head_dim"
    default = separate if len(parts) == 1 else together
    return compile_row_order(layout.row_order.get(kind, default), arch.heads, parts)
