"""The ONNX graph of a decoder in the form that the target wants.

Operators: onnxruntime's contrib operators GroupQueryAttention, RotaryEmbedding,
SkipSimplifiedLayerNormalization (docs/ContribOperators.md there) and ONNX's own. Initializers are
lazy weights. The graph knows blocks, not models: which there are follows from the decoder's tensors
and its architecture.
"""

from __future__ import annotations

import onnx_ir as ir

from converter.graph.blocks import (
    AttentionBlock,
    AttentionInputs,
    FeedForwardBlock,
    RotaryCaches,
)
from converter.graph.builder import GraphBuilder
from converter.graph.expert_block import ExpertsBlock
from converter.graph.form import context_length, graph_form
from converter.graph.graph import Graph
from converter.graph.names import (
    ATTENTION_MASK,
    EMBEDDING_NODE,
    HEAD_PATH,
    INPUT_IDS,
    LAST_TOKEN,
    LOGITS,
    POSITION_IDS,
    layer_path,
    norm_path,
    plain_initializer,
    product_node,
)
from converter.graph.norms import Norms
from converter.graph.tensors import FLOAT_TYPES
from converter.model.decoder import Decoder
from converter.model.rope import Rope
from converter.model.tensor_kinds import EMBEDDING, HEAD
from converter.providers import PROVIDERS
from converter.recipe.schema import Recipe, TargetConfig
from converter.weights.weight import TensorWeight

OPSETS = {"": 21, "com.microsoft": 1}
IR_VERSION = 10


def build_graph(decoder: Decoder, recipe: Recipe) -> Graph:
    """The float graph of a decoder, in the form that the recipe's target wants."""
    length = context_length(decoder.architecture, recipe)
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
        self.builder = GraphBuilder(decoder, target)
        self.norms = Norms(self.builder)
        self.form = graph_form(self.arch, target, context_length)

    def build(self) -> ir.Model:
        """The whole model; see `Graph`."""
        builder = self.builder
        input_ids = builder.input(INPUT_IDS, ir.DataType.INT64, "batch_size", "sequence_length")
        mask = builder.input(
            ATTENTION_MASK, ir.DataType.INT64, "batch_size", "total_sequence_length"
        )
        positions = None
        if self.form.takes_positions:
            positions = builder.input(
                POSITION_IDS, ir.DataType.INT64, "batch_size", "sequence_length"
            )
        shared = self._attention_inputs(mask, positions)
        self.attention = AttentionBlock(builder, self.norms, self.form, shared)
        self.feed_forward = FeedForwardBlock(builder, self.form)
        hidden = self._embedding(input_ids)
        skip: ir.Value | None = None
        for layer in range(self.arch.num_hidden_layers):
            hidden, skip = self._layer(layer, hidden, skip)
        hidden, _ = self.norms.of_sum("norm", f"{layer_path(layer + 1)}/final_norm", hidden, skip)
        logits = self._head(hidden, shared, input_ids)
        tokens = 1 if self.last_token_logits else "sequence_length"
        builder.output(logits, LOGITS, "batch_size", tokens, self.arch.vocab_size)
        outputs = [builder.outputs[-1], *builder.outputs[:-1]]
        graph = ir.Graph(
            builder.inputs,
            outputs,
            nodes=builder.tape.nodes,
            initializers=builder.tape.initializers,
            opset_imports=OPSETS,
            name="decoder",
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="convert")

    def _attention_inputs(self, mask: ir.Value, positions: ir.Value | None) -> AttentionInputs:
        """Lengths from the mask: GroupQueryAttention wants them as int32.

        The total length is a shape, known to the CPU without waiting for the device. A captured
        graph must not leave the device, so there it is the largest sum over the mask.
        """
        op, constant = self.builder.op, self.builder.constant
        base, one = "/model/attention_mask", constant("constants.one", [1])
        count = op("ReduceSum", [mask, one], f"{base}/ReduceSum", keepdims=0)
        last = op("Sub", [count, one], f"{base}/Sub")
        seqlens_k = op("Cast", [last], f"{base}/seqlens_k", to=ir.DataType.INT32)
        if (
            self.target.graph_capture
            and PROVIDERS[self.target.execution_provider].lengths_on_device
        ):
            total = op("ReduceMax", [count], f"{base}/ReduceMax", keepdims=0)
        else:
            index = constant("constants.index", 1)
            shape = op("Shape", [mask], f"{base}/Shape")
            total = op("Gather", [shape, index], f"{base}/Gather", axis=0)
        total_length = op("Cast", [total], f"{base}/total_length", to=ir.DataType.INT32)
        rotary = self._rotary_caches(self.arch.rope, "", positions, total)
        local = rotary
        if self.arch.rotation.local is not None:
            local = self._rotary_caches(self.arch.rotation.local, "local_", positions, total)
        scale = self._query_scale(positions)
        return AttentionInputs(last, total, seqlens_k, total_length, rotary, local, scale)

    def _query_scale(self, positions: ir.Value | None) -> ir.Value | None:
        """What queries are multiplied with at their positions, (batch, tokens, 1)."""
        found = self.arch.attention.query_scale
        if found is None:
            return None
        table = TensorWeight(found.table(self.context_length)).cast(self.builder.float_type)
        factors = self.builder.initializer("query_scale", table)
        return self.builder.op("Gather", [factors, positions], "/model/query_scale/Gather")

    def _rotary_caches(
        self, rope: Rope, prefix: str, positions: ir.Value | None, total: ir.Value
    ) -> RotaryCaches:
        """The caches; where longrope switches, long sequences look behind the short ones' rows."""
        arch, builder = self.arch, self.builder
        limits = (self.context_length, arch.max_position_embeddings)
        caches = rope.caches(arch.rotation.columns, *limits)
        cos, sin = (
            builder.initializer(
                f"{prefix}{name}_cache", TensorWeight(cache).cast(builder.float_type)
            )
            for name, cache in zip(("cos", "sin"), caches, strict=True)
        )
        switch = rope.switch(*limits)
        if switch is not None:
            base, rows = f"/model/{prefix}positions", builder.constant("constants.switch", switch)
            past = builder.op("Greater", [total, rows], f"{base}/Greater")
            shift = builder.op("Cast", [past], f"{base}/Cast", to=ir.DataType.INT64)
            shift = builder.op("Mul", [shift, rows], f"{base}/Mul")
            positions = builder.op("Add", [positions, shift], f"{base}/Add")
        return RotaryCaches(cos, sin, positions)

    def _embedding(self, input_ids: ir.Value) -> ir.Value:
        table = self.decoder.weights[EMBEDDING].cast(self.builder.float_type)
        self.table = self.builder.initializer(plain_initializer(EMBEDDING), table)
        hidden = self.builder.op("Gather", [self.table, input_ids], EMBEDDING_NODE)
        self.builder.mark(hidden, EMBEDDING)
        factor = self.arch.multipliers.embedding
        return self.builder.scaled(hidden, factor, "/model/embed_tokens/Mul")

    def _layer(
        self, layer: int, hidden: ir.Value, skip: ir.Value | None
    ) -> tuple[ir.Value, ir.Value]:
        """One decoder layer: gives its last product and the residual to add to it."""
        normed, residual = self._enter(layer, "attn_norm", hidden, skip)
        context = self.attention.mix(layer, normed)
        name = f"{layer_path(layer)}/attn/o_proj"
        mixed = self.builder.linear(f"layers.{layer}.o_proj", name, context)
        mixed = self._leave(layer, "attn_post_norm", mixed)
        if self.arch.parallel:
            if f"layers.{layer}.ffn_norm" in self.decoder.weights:
                normed, _ = self._enter(layer, "ffn_norm", residual, None)
            product = self._feed(layer, normed)
            product = self._leave(layer, "ffn_post_norm", product)
            both = self.builder.op("Add", [mixed, product], f"{layer_path(layer)}/blocks/Add")
            return both, residual
        normed, residual = self._enter(layer, "ffn_norm", residual, mixed)
        product = self._feed(layer, normed)
        return self._leave(layer, "ffn_post_norm", product), residual

    def _feed(self, layer: int, hidden: ir.Value) -> ir.Value:
        """The product of the layer's feed-forward block, or of its experts."""
        experts = self.arch.experts
        if experts is None or not experts.layers[layer]:
            return self.feed_forward.product(layer, hidden)
        return ExpertsBlock(self.builder, self.feed_forward, experts).product(layer, hidden)

    def _enter(
        self, layer: int, kind: str, hidden: ir.Value, skip: ir.Value | None
    ) -> tuple[ir.Value, ir.Value]:
        """What a block reads, and the residual stream: the sum, behind the norm if there is one."""
        canonical, name = f"layers.{layer}.{kind}", norm_path(layer, kind)
        if canonical in self.decoder.weights:
            return self.norms.of_sum(canonical, name, hidden, skip)
        stream = hidden if skip is None else self.norms.sum(name, hidden, skip)
        return stream, stream

    def _leave(self, layer: int, kind: str, product: ir.Value) -> ir.Value:
        """What a block adds to the residual stream."""
        canonical, name = f"layers.{layer}.{kind}", norm_path(layer, kind)
        if canonical in self.decoder.weights:
            product = self.norms.alone(canonical, name, product)
        return self.builder.scaled(product, self.arch.multipliers.residual, f"{name}/Residual")

    def _head(self, hidden: ir.Value, attention: AttentionInputs, input_ids: ir.Value) -> ir.Value:
        """Logits (batch_size, sequence_length or 1, vocab_size)."""
        builder = self.builder
        if self.last_token_logits:
            hidden = self._last_token(hidden, attention, input_ids)
        logits = self._product(hidden)
        logits = builder.scaled(logits, self.arch.multipliers.logits, f"{HEAD_PATH}/Mul")
        return builder.capped(logits, self.arch.logits_softcap, f"{HEAD_PATH}/softcap")

    def _product(self, hidden: ir.Value) -> ir.Value:
        weights, builder = self.decoder.weights, self.builder
        tied = weights[HEAD] is weights[EMBEDDING]
        if not tied or "FusedMatMul" not in builder.kernels:
            return builder.linear(HEAD, HEAD_PATH, hidden)
        # FusedMatMul turns the embedding as it multiplies, so that it is stored once.
        logits = builder.op("FusedMatMul", [hidden, self.table], product_node(HEAD_PATH), transB=1)
        builder.mark(logits, HEAD)
        return builder.biased(logits, [HEAD], HEAD_PATH)

    def _last_token(
        self, hidden: ir.Value, attention: AttentionInputs, input_ids: ir.Value
    ) -> ir.Value:
        """The hidden state of each prompt's last token, (batch_size, 1, hidden_size).

        onnxruntime-genai pads shorter prompts of a batch on the right. Where the provider has no
        GatherND, the last position of the batch is taken, so there prompts must be equally long.
        """
        if "GatherND" not in self.builder.kernels:
            last = self.builder.constant("constants.last_token", [-1])
            return self.builder.op("Gather", [hidden, last], LAST_TOKEN, axis=1)
        base = "/lm_head/last_token"
        index, zero = (
            self.builder.constant("constants.index", 1),
            self.builder.constant("constants.zero", 0),
        )
        shape = self.builder.op("Shape", [input_ids], f"{base}/Shape")
        length = self.builder.op("Gather", [shape, index], f"{base}/length", axis=0)
        past = self.builder.op("Sub", [attention.total, length], f"{base}/past")
        place = self.builder.op("Sub", [attention.last, past], f"{base}/Sub")
        # While tokens are generated, a shorter prompt's count lags behind: its new token is at 0.
        place = self.builder.op("Max", [place, zero], f"{base}/Max")
        axes = self.builder.constant("constants.index_axes", [1, 2])
        place = self.builder.op("Unsqueeze", [place, axes], f"{base}/Unsqueeze")
        return self.builder.op("GatherND", [hidden, place], LAST_TOKEN, batch_dims=1)
