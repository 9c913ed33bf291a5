"""The ONNX graph of a decoder in the form that the target wants.

Operators: onnxruntime's contrib operators GroupQueryAttention, RotaryEmbedding,
SkipSimplifiedLayerNormalization (docs/ContribOperators.md there) and ONNX's own. Initializers are
lazy weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tape import Tape

from converter.graph.graph import Graph
from converter.graph.kernels import kernels
from converter.graph.names import (
    ATTENTION_MASK,
    CACHED,
    CONTRIB,
    EMBEDDING_NODE,
    HEAD_PATH,
    INPUT_IDS,
    LAST_TOKEN,
    LOGITS,
    MATRIX,
    POSITION_IDS,
    bias_initializer,
    layer_path,
    matrix_initializer,
    past,
    plain_initializer,
    present,
    product_node,
)
from converter.graph.tensors import FLOAT_TYPES, IR_DTYPES, WeightTensor
from converter.model.decoder import BIAS, EMBEDDING, HEAD, Decoder
from converter.providers import PROVIDERS
from converter.recipe.schema import Recipe, TargetConfig
from converter.weights.weight import TensorWeight, Weight, concatenate_rows

OPSETS = {"": 21, "com.microsoft": 1}
IR_VERSION = 10


def context_length(decoder: Decoder, recipe: Recipe) -> int:
    """Tokens that prompt and answer may have together: the recipe's, or what the config states."""
    return recipe.graph.context_length or decoder.architecture.max_position_embeddings


def build_graph(decoder: Decoder, recipe: Recipe) -> Graph:
    """The float graph of a decoder, in the form that the recipe's target wants."""
    length = context_length(decoder, recipe)
    template = DecoderTemplate(decoder, recipe.target, length, recipe.graph.last_token_logits)
    dtype = FLOAT_TYPES[recipe.target.float_type]
    shipped = {name: weight.cast(dtype) for name, weight in decoder.weights.items()}
    return Graph(decoder, template.build(), length, shipped)


class DecoderTemplate:
    """Builds one model. Values keep the names of onnxruntime-genai's own graphs."""

    def __init__(
        self,
        decoder: Decoder,
        target: TargetConfig,
        context_length: int,
        last_token_logits: bool = True,
    ) -> None:
        self.decoder, self.arch, self.target = decoder, decoder.architecture, target
        self.context_length, self.last_token_logits = context_length, last_token_logits
        self.float_type = FLOAT_TYPES[target.float_type]
        self.kernels = kernels(target.execution_provider)
        self.dtype = IR_DTYPES[self.float_type]
        self.tape = Tape()
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.constants: dict[str, ir.Value] = {}

    def build(self) -> ir.Model:
        """The whole model; see `Graph`."""
        input_ids = self._input(INPUT_IDS, ir.DataType.INT64, "batch_size", "sequence_length")
        mask = self._input(ATTENTION_MASK, ir.DataType.INT64, "batch_size", "total_sequence_length")
        positions = None
        if self.target.position_ids:
            positions = self._input(
                POSITION_IDS, ir.DataType.INT64, "batch_size", "sequence_length"
            )
        attention = self._attention_inputs(mask, positions)
        hidden = self._embedding(input_ids)
        skip: ir.Value | None = None
        for layer in range(self.arch.num_hidden_layers):
            hidden, skip = self._layer(layer, hidden, skip, attention)
        hidden, _ = self._norm("norm", f"{layer_path(layer + 1)}/final_norm", hidden, skip)
        logits = self._head(hidden, attention, input_ids)
        tokens = 1 if self.last_token_logits else "sequence_length"
        self._output(logits, LOGITS, "batch_size", tokens, self.arch.vocab_size)
        outputs = [self.outputs[-1], *self.outputs[:-1]]
        graph = ir.Graph(
            self.inputs,
            outputs,
            nodes=self.tape.nodes,
            initializers=self.tape.initializers,
            opset_imports=OPSETS,
            name="decoder",
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="convert")

    # Inputs and outputs

    def _input(self, name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.inputs.append(value)
        return value

    def _output(self, value: ir.Value, name: str, *shape: int | str) -> None:
        value.name, value.shape = name, ir.Shape(shape)
        value.type = ir.TensorType(self.dtype)
        self.outputs.append(value)

    def _cache(self, length: str) -> tuple[int | str, ...]:
        return ("batch_size", self.arch.num_key_value_heads, length, self.arch.head_dim)

    # Nodes

    def _op(self, op: str, inputs: list[ir.Value | None], name: str, **attributes: Any) -> ir.Value:
        return self._ops(op, inputs, name, 1, **attributes)[0]

    def _ops(
        self, op: str, inputs: list[ir.Value | None], name: str, count: int, **attributes: Any
    ) -> tuple[ir.Value, ...]:
        domain = CONTRIB if op in CONTRIB_OPS else ""
        values = self.tape.op_multi_out(
            op, inputs, attributes, num_outputs=count, domain=domain, name=name
        )
        for number, value in enumerate(values):
            value.name = f"{name}/output_{number}"
        return tuple(values)

    def _initializer(self, name: str, weight: Weight) -> ir.Value:
        return self.tape.initializer(WeightTensor(name, weight), name=name)

    def _constant(self, name: str, value: list[int] | int | float) -> ir.Value:
        """A small int64 or float32 initializer, one for each name."""
        if name not in self.constants:
            dtype = torch.float32 if isinstance(value, float) else torch.int64
            tensor = ir.tensor(torch.tensor(value, dtype=dtype).numpy(), name=name)
            self.constants[name] = self.tape.initializer(tensor, name=name)
        return self.constants[name]

    def _attention_inputs(self, mask: ir.Value, positions: ir.Value | None) -> AttentionInputs:
        """Lengths from the mask: GroupQueryAttention wants them as int32.

        The total length is a shape, known to the CPU without waiting for the device. A captured
        graph must not leave the device, so there it is the largest sum over the mask.
        """
        base, one = "/model/attention_mask", self._constant("constants.one", [1])
        count = self._op("ReduceSum", [mask, one], f"{base}/ReduceSum", keepdims=0)
        last = self._op("Sub", [count, one], f"{base}/Sub")
        seqlens_k = self._op("Cast", [last], f"{base}/seqlens_k", to=ir.DataType.INT32)
        if (
            self.target.graph_capture
            and PROVIDERS[self.target.execution_provider].lengths_on_device
        ):
            total = self._op("ReduceMax", [count], f"{base}/ReduceMax", keepdims=0)
        else:
            index = self._constant("constants.index", 1)
            shape = self._op("Shape", [mask], f"{base}/Shape")
            total = self._op("Gather", [shape, index], f"{base}/Gather", axis=0)
        total_length = self._op("Cast", [total], f"{base}/total_length", to=ir.DataType.INT32)
        cos, sin = self._rotary_caches()
        return AttentionInputs(last, total, seqlens_k, total_length, cos, sin, positions)

    def _rotary_caches(self) -> tuple[ir.Value, ir.Value]:
        arch = self.arch
        caches = arch.rope.caches(arch.head_dim, self.context_length, arch.max_position_embeddings)
        cos, sin = (TensorWeight(cache).cast(self.float_type) for cache in caches)
        return self._initializer("cos_cache", cos), self._initializer("sin_cache", sin)

    def _embedding(self, input_ids: ir.Value) -> ir.Value:
        table = self.decoder.weights[EMBEDDING].cast(self.float_type)
        self.table = self._initializer(plain_initializer(EMBEDDING), table)
        hidden = self._op("Gather", [self.table, input_ids], EMBEDDING_NODE)
        self._mark(hidden, EMBEDDING)
        return hidden

    def _norm(
        self, canonical: str, name: str, hidden: ir.Value, skip: ir.Value | None
    ) -> tuple[ir.Value, ir.Value]:
        """RMSNorm of hidden + skip; gives the norm and the sum."""
        weight = self._initializer(
            plain_initializer(canonical), self.decoder.weights[canonical].cast(self.float_type)
        )
        epsilon = self.arch.rms_norm_eps
        if not self.target.fused_norm:
            return self._plain_norm(weight, name, hidden, skip)
        if skip is None:
            return self._op(
                "SimplifiedLayerNormalization",
                [hidden, weight],
                f"{name}/LayerNorm",
                axis=-1,
                epsilon=epsilon,
                stash_type=1,
            ), hidden
        outputs = self._ops(
            "SkipSimplifiedLayerNormalization",
            [hidden, skip, weight],
            f"{name}/SkipLayerNorm",
            4,
            epsilon=epsilon,
        )
        outputs[1].name = outputs[2].name = ""
        return outputs[0], outputs[3]

    def _plain_norm(
        self, weight: ir.Value, name: str, hidden: ir.Value, skip: ir.Value | None
    ) -> tuple[ir.Value, ir.Value]:
        """RMSNorm in ONNX's own operators, the mean square in fp32."""
        if skip is not None:
            hidden = self._op("Add", [hidden, skip], f"{name}/Add")
        wide = self._op("Cast", [hidden], f"{name}/Cast", to=ir.DataType.FLOAT)
        square = self._op("Mul", [wide, wide], f"{name}/Square")
        axis = self._constant("constants.last_axis", [-1])
        mean = self._op("ReduceMean", [square, axis], f"{name}/ReduceMean", keepdims=1)
        epsilon = self._constant("constants.epsilon", self.arch.rms_norm_eps)
        shifted = self._op("Add", [mean, epsilon], f"{name}/AddEpsilon")
        root = self._op("Sqrt", [shifted], f"{name}/Sqrt")
        normed = self._op("Div", [wide, root], f"{name}/Div")
        normed = self._op("Cast", [normed], f"{name}/CastBack", to=self.dtype)
        return self._op("Mul", [normed, weight], f"{name}/Scale"), hidden

    def _head(self, hidden: ir.Value, attention: AttentionInputs, input_ids: ir.Value) -> ir.Value:
        """Logits (batch_size, sequence_length or 1, vocab_size)."""
        if self.last_token_logits:
            hidden = self._last_token(hidden, attention, input_ids)
        weights = self.decoder.weights
        tied = weights[HEAD] is weights[EMBEDDING]
        if not tied or "FusedMatMul" not in self.kernels:
            return self._linear(HEAD, HEAD_PATH, hidden)
        # FusedMatMul turns the embedding as it multiplies, so that it is stored once.
        logits = self._op("FusedMatMul", [hidden, self.table], product_node(HEAD_PATH), transB=1)
        self._mark(logits, HEAD)
        return logits

    def _last_token(
        self, hidden: ir.Value, attention: AttentionInputs, input_ids: ir.Value
    ) -> ir.Value:
        """The hidden state of each prompt's last token, (batch_size, 1, hidden_size).

        onnxruntime-genai pads shorter prompts of a batch on the right. Where the provider has no
        GatherND, the last position of the batch is taken, so there prompts must be equally long.
        """
        if "GatherND" not in self.kernels:
            last = self._constant("constants.last_token", [-1])
            return self._op("Gather", [hidden, last], LAST_TOKEN, axis=1)
        base = "/lm_head/last_token"
        index, zero = self._constant("constants.index", 1), self._constant("constants.zero", 0)
        shape = self._op("Shape", [input_ids], f"{base}/Shape")
        length = self._op("Gather", [shape, index], f"{base}/length", axis=0)
        past = self._op("Sub", [attention.total, length], f"{base}/past")
        place = self._op("Sub", [attention.last, past], f"{base}/Sub")
        # While tokens are generated, a shorter prompt's count lags behind: its new token is at 0.
        place = self._op("Max", [place, zero], f"{base}/Max")
        axes = self._constant("constants.index_axes", [1, 2])
        place = self._op("Unsqueeze", [place, axes], f"{base}/Unsqueeze")
        return self._op("GatherND", [hidden, place], LAST_TOKEN, batch_dims=1)

    def _linear(self, canonical: str, name: str, hidden: ir.Value) -> ir.Value:
        return self._multiply([canonical], canonical, name, hidden)

    def _multiply(self, parts: list[str], canonical: str, name: str, hidden: ir.Value) -> ir.Value:
        """hidden · Wᵀ (+ bias), with the rows of `parts` stacked into one matrix."""
        weights = self.decoder.weights
        rows = concatenate_rows([weights[part] for part in parts]).cast(self.float_type)
        matrix = self._initializer(matrix_initializer(name), rows.transpose())
        product = self._op("MatMul", [hidden, matrix], product_node(name))
        self._mark(product, canonical)
        if parts[0] + BIAS not in weights:
            return product
        bias = concatenate_rows([weights[part + BIAS] for part in parts]).cast(self.float_type)
        added = self._initializer(bias_initializer(name), bias)
        return self._op("Add", [product, added], f"{name}/Add")

    def _mark(self, value: ir.Value, canonical: str) -> None:
        node = value.producer()
        assert node is not None
        node.metadata_props[MATRIX] = canonical

    # Layers

    def _layer(
        self, layer: int, hidden: ir.Value, skip: ir.Value | None, attention: AttentionInputs
    ) -> tuple[ir.Value, ir.Value]:
        """One decoder layer: gives its last product and the residual to add to it."""
        here, name = f"layers.{layer}.", layer_path(layer)
        normed, residual = self._norm(
            here + "input_layernorm", f"{name}/input_layernorm", hidden, skip
        )
        context = self._attention(layer, normed, attention)
        mixed = self._linear(here + "o_proj", f"{name}/attn/o_proj", context)
        normed, residual = self._norm(
            here + "post_attention_layernorm",
            f"{name}/post_attention_layernorm",
            residual,
            mixed,
        )
        return self._feed_forward(layer, normed), residual

    def _feed_forward(self, layer: int, hidden: ir.Value) -> ir.Value:
        """SwiGLU: down(silu(gate(x)) · up(x))."""
        here, name = f"layers.{layer}.", f"{layer_path(layer)}/mlp"
        if self.target.packed_gate_up:
            parts = [here + "gate_proj", here + "up_proj"]
            both = self._multiply(parts, here + "gate_up_proj", f"{name}/gate_up_proj", hidden)
            gate, up = self._ops("Split", [both], f"{name}/Split", 2, axis=-1, num_outputs=2)
        else:
            gate = self._linear(here + "gate_proj", f"{name}/gate_proj", hidden)
            up = self._linear(here + "up_proj", f"{name}/up_proj", hidden)
        sigmoid = self._op("Sigmoid", [gate], f"{name}/act_fn/Sigmoid")
        silu = self._op("Mul", [gate, sigmoid], f"{name}/act_fn/Mul")
        product = self._op("Mul", [silu, up], f"{name}/Mul")
        return self._linear(here + "down_proj", f"{name}/down_proj", product)

    def _attention(self, layer: int, hidden: ir.Value, shared: AttentionInputs) -> ir.Value:
        arch, name = self.arch, f"{layer_path(layer)}/attn"
        caches = [
            self._input(
                past(layer, kind),
                self.dtype,
                *self._cache("past_sequence_length"),
            )
            for kind in CACHED
        ]
        in_attention = self.target.rotary_in_attention
        outputs = self._ops(
            "GroupQueryAttention",
            [
                *self._queries_keys_values(layer, hidden, shared),
                *caches,
                shared.seqlens_k,
                shared.total_length,
                *((shared.cos, shared.sin) if in_attention else ()),
            ],
            f"{name}/GroupQueryAttention",
            3,
            num_heads=arch.num_attention_heads,
            kv_num_heads=arch.num_key_value_heads,
            scale=arch.head_dim**-0.5,
            do_rotary=int(in_attention),
            rotary_interleaved=0,
        )
        for kind, value in zip(CACHED, outputs[1:], strict=True):
            self._output(value, present(layer, kind), *self._cache("total_sequence_length"))
        return outputs[0]

    def _queries_keys_values(
        self, layer: int, hidden: ir.Value, shared: AttentionInputs
    ) -> list[ir.Value | None]:
        here, name = f"layers.{layer}.", f"{layer_path(layer)}/attn"
        parts = ["q_proj", "k_proj", "v_proj"]
        if self.target.packed_qkv:
            canonical = [here + part for part in parts]
            packed = self._multiply(canonical, here + "qkv_proj", f"{name}/qkv_proj", hidden)
            return [packed, None, None]
        query, key, value = (self._linear(here + part, f"{name}/{part}", hidden) for part in parts)
        if not self.target.rotary_in_attention:
            query = self._rotate(query, f"{name}/q_rotary", self.arch.num_attention_heads, shared)
            key = self._rotate(key, f"{name}/k_rotary", self.arch.num_key_value_heads, shared)
        return [query, key, value]

    def _rotate(
        self, value: ir.Value, name: str, num_heads: int, shared: AttentionInputs
    ) -> ir.Value:
        return self._op(
            "RotaryEmbedding",
            [value, shared.positions, shared.cos, shared.sin],
            f"{name}/RotaryEmbedding",
            interleaved=0,
            num_heads=num_heads,
            rotary_embedding_dim=0,
        )


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
    cos: ir.Value
    sin: ir.Value
    positions: ir.Value | None


CONTRIB_OPS = frozenset(
    {
        "FusedMatMul",
        "GroupQueryAttention",
        "RotaryEmbedding",
        "SkipSimplifiedLayerNormalization",
    }
)
