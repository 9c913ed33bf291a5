"""Attention and feed-forward of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from converter.graph.builder import GraphBuilder
from converter.graph.form import GraphForm
from converter.graph.names import CACHED, layer_path, layer_weight, norm_path, past, present
from converter.graph.norms import Norms
from converter.model.tensor_kinds import SINKS

GELU_CUBE, GELU_ROOT = 0.044715, 0.7978845608028654
"""Of GELU's tanh form (arXiv 1606.08415): x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""


HEAD_SINK = 11
"""Place of `head_sink` among GroupQueryAttention's inputs."""


@dataclass(frozen=True)
class RotaryCaches:
    """cos and sin of one set of frequencies, and the positions to look them up at."""

    cos: ir.Value
    sin: ir.Value
    positions: ir.Value | None


@dataclass(frozen=True)
class AttentionInputs:
    """Values that every layer's attention shares."""

    last: ir.Value
    """Place of each prompt's last token, int64 (batch_size)."""
    total: ir.Value
    """Tokens of the longest sequence with its past, int64."""
    seqlens_k: ir.Value
    """`last` as int32, which GroupQueryAttention takes."""
    total_length: ir.Value
    """`total` as int32."""
    rotary: RotaryCaches
    local_rotary: RotaryCaches
    """For layers with a window; most architectures have one set for all."""
    query_scale: ir.Value | None = None
    """What queries are multiplied with, (batch, tokens, 1); None where they are not."""


class AttentionBlock:
    """Grouped-query attention between its input's norm and its output projection."""

    def __init__(
        self, builder: GraphBuilder, norms: Norms, form: GraphForm, shared: AttentionInputs
    ) -> None:
        self._builder, self._norms, self._form, self._shared = builder, norms, form, shared
        self._arch = builder.arch

    def mix(self, layer: int, hidden: ir.Value) -> ir.Value:
        """What attention mixes from (batch, tokens, hidden): the input of o_proj."""
        arch, name, builder = self._arch, f"{layer_path(layer)}/attn", self._builder
        rotary = self._rotary(layer)
        caches = [
            builder.input(past(layer, kind), builder.dtype, *self._cache("past_sequence_length"))
            for kind in CACHED
        ]
        inside = self._form.rotates_inside and rotary is not None
        inputs: list[ir.Value | None] = [
            *self._queries_keys_values(layer, hidden, rotary),
            *caches,
            self._shared.seqlens_k,
            self._shared.total_length,
        ]
        if inside and rotary is not None:
            inputs += [rotary.cos, rotary.sin]
        inputs += self._sinks(layer, HEAD_SINK - len(inputs))
        window, softcap = arch.attention.windows[layer], arch.attention.softcap
        optional: dict[str, float] = {} if window is None else {"local_window_size": window}
        optional |= {"softcap": softcap} if softcap else {}
        outputs = builder.ops(
            "GroupQueryAttention",
            inputs,
            f"{name}/GroupQueryAttention",
            3,
            num_heads=arch.num_attention_heads,
            kv_num_heads=arch.num_key_value_heads,
            scale=arch.attention.scale,
            do_rotary=int(inside),
            rotary_interleaved=int(inside and arch.rotation.interleaved),
            **optional,
        )
        for kind, value in zip(CACHED, outputs[1:], strict=True):
            builder.output(value, present(layer, kind), *self._cache("total_sequence_length"))
        return outputs[0]

    def _sinks(self, layer: int, gap: int) -> list[ir.Value | None]:
        """The logits of a key that adds nothing, one a head, behind `gap` inputs left out."""
        builder, canonical = self._builder, f"layers.{layer}.{SINKS}"
        if canonical not in builder.decoder.weights:
            return []
        weight = builder.decoder.weights[canonical].cast(builder.float_type)
        return [*[None] * gap, builder.initializer(layer_weight(layer, f"attn.{SINKS}"), weight)]

    def _cache(self, length: str) -> tuple[int | str, ...]:
        return ("batch_size", self._arch.num_key_value_heads, length, self._arch.head_dim)

    def _rotary(self, layer: int) -> RotaryCaches | None:
        """The caches of a layer; None where it does not rotate."""
        if not self._arch.rotation.layers[layer]:
            return None
        windowed = self._arch.attention.windows[layer] is not None
        return self._shared.local_rotary if windowed else self._shared.rotary

    def _queries_keys_values(
        self, layer: int, hidden: ir.Value, rotary: RotaryCaches | None
    ) -> list[ir.Value | None]:
        builder, arch = self._builder, self._arch
        here, name = f"layers.{layer}.", f"{layer_path(layer)}/attn"
        parts = ["q_proj", "k_proj", "v_proj"]
        if self._form.packs_qkv:
            canonical = [here + part for part in parts]
            packed = builder.multiply(canonical, here + "qkv_proj", f"{name}/qkv_proj", hidden)
            return [packed, None, None]
        query, key, value = (
            builder.linear(here + part, f"{name}/{part}", hidden) for part in parts
        )
        if self._shared.query_scale is not None:
            query = builder.op("Mul", [query, self._shared.query_scale], f"{name}/q_scale/Mul")
        later = arch.attention.qk_norm_after_rope
        if not later:
            query, key = self._normed(layer, query, key)
        if rotary is not None and not self._form.rotates_inside:
            query = self._rotate(query, f"{name}/q_rotary", arch.num_attention_heads, rotary)
            key = self._rotate(key, f"{name}/k_rotary", arch.num_key_value_heads, rotary)
        if later:
            query, key = self._normed(layer, query, key)
        return [query, key, value]

    def _normed(self, layer: int, query: ir.Value, key: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Queries and keys behind their norms, where the architecture has some."""
        arch, found = self._arch, []
        if arch.attention.qk_norm == "none":
            return query, key
        counts = (arch.num_attention_heads, arch.num_key_value_heads)
        for kind, value, heads in zip(("q_norm", "k_norm"), (query, key), counts, strict=True):
            canonical, name = f"layers.{layer}.{kind}", norm_path(layer, kind)
            if arch.attention.qk_norm == "head":
                found.append(self._norms.of_heads(canonical, name, value, heads))
            else:
                found.append(self._norms.alone(canonical, name, value))
        return found[0], found[1]

    def _rotate(self, value: ir.Value, name: str, num_heads: int, rotary: RotaryCaches) -> ir.Value:
        rotation = self._arch.rotation
        part = 0 if rotation.columns == self._arch.head_dim else rotation.columns
        return self._builder.op(
            "RotaryEmbedding",
            [value, rotary.positions, rotary.cos, rotary.sin],
            f"{name}/RotaryEmbedding",
            interleaved=int(rotation.interleaved),
            num_heads=num_heads,
            rotary_embedding_dim=part,
        )


class FeedForwardBlock:
    """down(activation(gate(x)) · up(x)), or down(activation(up(x))) without a gate."""

    def __init__(self, builder: GraphBuilder, form: GraphForm) -> None:
        self._builder, self._form = builder, form

    def product(
        self, layer: int, hidden: ir.Value, kind: str = "", path: str | None = None
    ) -> ir.Value:
        """What the block adds, (batch, tokens, hidden).

        `kind` starts the canonical names of its tensors, inside the layer's, and `path` the names
        of its nodes.
        """
        builder = self._builder
        here, name = f"layers.{layer}.{kind}", path or f"{layer_path(layer)}/mlp"
        if here + "gate_proj" not in builder.decoder.weights:
            up = builder.linear(here + "up_proj", f"{name}/up_proj", hidden)
            return builder.linear(here + "down_proj", f"{name}/down_proj", self._act(up, name))
        if self._form.packs_gate_up:
            parts = [here + "gate_proj", here + "up_proj"]
            both = builder.multiply(parts, here + "gate_up_proj", f"{name}/gate_up_proj", hidden)
            gate, up = builder.ops("Split", [both], f"{name}/Split", 2, axis=-1, num_outputs=2)
        else:
            gate = builder.linear(here + "gate_proj", f"{name}/gate_proj", hidden)
            up = builder.linear(here + "up_proj", f"{name}/up_proj", hidden)
        product = builder.op("Mul", [self._act(gate, name), up], f"{name}/Mul")
        return builder.linear(here + "down_proj", f"{name}/down_proj", product)

    def _act(self, value: ir.Value, name: str) -> ir.Value:
        op, kind, name = self._builder.op, self._builder.arch.activation, f"{name}/act_fn"
        if kind == "silu":
            return op("Mul", [value, op("Sigmoid", [value], f"{name}/Sigmoid")], f"{name}/Mul")
        if kind == "gelu_tanh":
            return self._gelu_tanh(value, name)
        if kind == "gelu":
            return self._gelu(value, name)
        positive = op("Relu", [value], f"{name}/Relu")
        if kind == "relu":
            return positive
        return op("Mul", [positive, positive], f"{name}/Square")

    def _gelu_tanh(self, value: ir.Value, name: str) -> ir.Value:
        """In plain operators, which every provider has."""
        op, builder = self._builder.op, self._builder
        square = op("Mul", [value, value], f"{name}/Square")
        cube = builder.number("constants.gelu_cube", GELU_CUBE)
        one = builder.number("constants.1.0", 1.0)
        inner = op("Add", [op("Mul", [square, cube], f"{name}/Cube"), one], f"{name}/AddOne")
        inner = op("Mul", [inner, value], f"{name}/Inner")
        inner = builder.scaled(inner, GELU_ROOT, f"{name}/Root")
        share = op("Add", [op("Tanh", [inner], f"{name}/Tanh"), one], f"{name}/Share")
        return builder.scaled(op("Mul", [share, value], f"{name}/Mul"), 0.5, f"{name}/Half")

    def _gelu(self, value: ir.Value, name: str) -> ir.Value:
        op, builder = self._builder.op, self._builder
        inner = builder.scaled(value, 0.5**0.5, f"{name}/Root")
        one = builder.number("constants.1.0", 1.0)
        share = op("Add", [op("Erf", [inner], f"{name}/Erf"), one], f"{name}/Share")
        return builder.scaled(op("Mul", [share, value], f"{name}/Mul"), 0.5, f"{name}/Half")
