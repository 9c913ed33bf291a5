"""The schema of a recipe: plain dataclasses, one per slot.

A recipe is data. Hydra composes it from `recipes/`; `converter.recipe.validation.parse_recipe`
checks the composed mapping against these classes and builds a `Recipe`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from converter.providers import PROVIDERS

FloatType = Literal["fp32", "fp16", "bf16"]
if TYPE_CHECKING:
    ExecutionProvider = str
else:
    ExecutionProvider = Literal[tuple(PROVIDERS)]
LEFT_IN_FLOAT = 16
"""`bits: 16` leaves a matrix in the graph's float type."""
INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy_level at which its kernels round activations to int8."""


@dataclass
class ModelConfig:
    """Which model the recipe is for."""

    name: str = ""
    """The model's name, which its recipes' names begin with."""
    repo: str | None = None
    """Repository on the hub, such as internlm/internlm2-7b."""
    source: str | None = None
    """Choice of the slot `source` that its composed recipes take; null means `checkpoint`."""
    chat: bool = False
    """Whether it is made for chats, and its source should have a chat template."""
    config: dict[str, Any] = field(default_factory=dict)
    """The published config.json, for synthetic weights and for planning without a download."""


@dataclass
class SourceConfig:
    """Where the checkpoint comes from."""

    kind: Literal["checkpoint", "demo", "synthetic"] = "checkpoint"
    """A published checkpoint, the built-in demo model, or random weights."""
    path: str | None = None
    """Local checkpoint folder, or a GGUF file; when set, nothing is downloaded."""
    repo: str | None = None
    """Repository on the hub that is downloaded when no path is set."""
    revision: str | None = None
    """Branch, tag or 40-digit commit of `repo`."""
    seed: int = 0
    """Seed of synthetic weights."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of synthetic weights."""


@dataclass
class LayoutConfig:
    """How the checkpoint names its tensors and orders their rows; see recipes/architecture/."""

    architectures: list[str] = field(default_factory=list)
    """Classes of config.json's `architectures` that this description is for."""
    model_types: list[str] = field(default_factory=list)
    """`model_type` values of config.json that it is for."""
    reference: Literal["config", "llama"] = "config"
    """What the folder is checked against: transformers' own class for config.json, or its Llama,
    for types that transformers does not have."""
    tensors: dict[str, str | None] = field(default_factory=dict)
    """Canonical name to the checkpoint's, outside of the layers. A name without `.weight` at its
    end stands for the weight and, where the checkpoint has one, the bias. null leaves a tensor
    out that a description below names."""
    layer_prefix: str = "model.layers.{layer}."
    """What every name in `layer_tensors` starts with; `{layer}` is the layer's number."""
    layer_tensors: dict[str, str | None] = field(default_factory=dict)
    """Canonical name to the checkpoint's, inside a layer. A block exists when its tensor is named;
    an empty name is a norm without weights. `{expert}` in the name of a tensor of experts is the
    expert's number; without it the name is that of one tensor with all of them, as it stands."""
    ignored: list[str] = field(default_factory=list)
    """Glob patterns of checkpoint tensors that carry nothing the graph needs, such as buffers."""
    prefixes: list[str] = field(default_factory=list)
    """Other starts of names, each as `START=OWN` with what the layout has in its place: in a
    multimodal checkpoint the language model's names start with `language_model.`."""
    row_order: dict[str, str] = field(default_factory=dict)
    """Canonical projection to its row order (see converter/model/row_order.py)."""
    transposed: list[str] = field(default_factory=list)
    """Canonical tensors of experts that are stored as (experts, columns, rows)."""
    without_effect: list[str] = field(default_factory=list)
    """Keys of config.json that change nothing in this architecture's logits; `key=value` (in JSON)
    for one that changes nothing at this value, `prefix_*` for many."""


Value = str | int | float | bool | None
"""A number, or an expression over config.json such as `config.head_dim | 128`."""


@dataclass
class SizesConfig:
    """Sizes of the decoder; see converter/model/expression.py for the expressions."""

    vocab_size: Value = "config.vocab_size"
    """Rows of the embedding."""
    hidden_size: Value = "config.hidden_size"
    """Columns of the hidden states."""
    intermediate_size: Value = "config.intermediate_size"
    """Columns of the feed-forward's product."""
    num_hidden_layers: Value = "config.num_hidden_layers"
    """Decoder layers."""
    num_attention_heads: Value = "config.num_attention_heads"
    """Query heads."""
    num_key_value_heads: Value = "config.num_key_value_heads | config.num_attention_heads"
    """Key and value heads."""
    head_dim: Value = "config.head_dim | config.hidden_size / config.num_attention_heads"
    """Columns of a head."""
    max_position_embeddings: Value = "config.max_position_embeddings | 2048"
    """Positions that the model was trained for."""


@dataclass
class NormConfig:
    """The norms of hidden states, queries and keys."""

    type: Literal["rms", "layer"] = "rms"
    """RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450)."""
    eps: Value = "config.rms_norm_eps | 1e-6"
    """What is added to the mean square."""
    offset: Value = 0
    """What is added to the stored weight; 1 where it is stored as its distance from 1."""


@dataclass
class AttentionConfig:
    """Grouped-query attention (arXiv 2305.13245) and its departures."""

    scale: Value = None
    """What the products of queries and keys are multiplied with; null means head_dim^-0.5."""
    softcap: Value = None
    """Bound c of the scores, c·tanh(score/c); null or 0 means none."""
    qk_norm: Literal["none", "head", "projection"] = "none"
    """Norm of queries and keys: of each head, or of the whole projection."""
    qk_norm_after_rope: bool = False
    """Whether that norm comes after the rotation."""
    window: Value = None
    """Keys that a query sees in layers with a sliding window, itself included; null means all."""
    query_scale_slope: Value = None
    """Queries at position p are multiplied with 1 + slope · log(1 + floor(p / length))
    (Llama 4); null or 0 means not."""
    query_scale_length: Value = None
    """The length in that, in positions."""
    window_layers: Value = "all"
    """`all`, or an expression for a list with `sliding_attention` at the layers with a window."""


@dataclass
class RopeConfig:
    """Rotary position embedding (arXiv 2104.09864)."""

    theta: Value = "config.rope_theta | 10000"
    """Base of the frequencies."""
    scaling: Value = "config.rope_scaling"
    """Expression for the section that states how frequencies are scaled, or null."""
    partial: Value = 1
    """Share of a head's columns that is rotated."""
    interleaved: bool = False
    """Whether neighbours are rotated together, not the halves of a head."""
    layers: Value = "all"
    """`all`, `none`, `sliding` (layers with a window), `sliding_or_all` (the same, or all where
    there is no window), or an expression for a list with 1 at the layers that rotate."""
    local_theta: Value = None
    """Base in layers with a window, where they have another one."""
    local_scaling: Value = None
    """`scaling` in layers with a window that have a base of their own."""


@dataclass
class FeedForwardConfig:
    """The feed-forward block."""

    activation: Value = "config.hidden_act | silu"
    """silu, gelu, gelu_pytorch_tanh, relu or relu2, by transformers' names."""


@dataclass
class ExpertsConfig:
    """Experts in the place of the feed-forward (arXiv 2101.03961), where a router is named."""

    count: Value = "config.num_local_experts | config.num_experts"
    """Experts of a layer."""
    per_token: Value = "config.num_experts_per_tok"
    """Experts that compute a token."""
    intermediate_size: Value = "config.moe_intermediate_size | config.intermediate_size"
    """Columns of an expert's product."""
    shared_intermediate_size: Value = "config.shared_expert_intermediate_size"
    """Columns of the product of the expert that computes every token, where one is named."""
    normalize: Value = True
    """Whether the weights of a token's experts add up to 1. The router's softmax over all experts,
    normalized over those that are chosen, is the softmax over the chosen ones."""
    first_dense: Value = 0
    """Layers at the start that have a feed-forward block instead."""
    dense_layers: Value = None
    """Expression for a list of further layers that have one."""
    step: Value = 1
    """Every so many layers, the last one of them has experts."""
    alpha: Value = 1
    """The gate g becomes g·sigmoid(alpha·g)."""
    beta: Value = 0
    """What is added to the product's other factor."""
    limit: Value = None
    """Bound of the gate and, on both sides, of the other factor; null means none."""


@dataclass
class MultipliersConfig:
    """Constants that activations are multiplied with."""

    embedding: Value = 1
    """Embeddings."""
    residual: Value = 1
    """What a block adds to the residual stream."""
    logits: Value = 1
    """Logits."""


@dataclass
class GraphConfig:
    """The blocks and numbers of a decoder, and what the graph makes of them."""

    context_length: int | None = None
    """Positions in the cos/sin caches; null means max_position_embeddings."""
    last_token_logits: bool = True
    """Logits of each prompt's last token only, which is all that generation reads."""
    sizes: SizesConfig = field(default_factory=SizesConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    rope: RopeConfig = field(default_factory=RopeConfig)
    feed_forward: FeedForwardConfig = field(default_factory=FeedForwardConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    parallel: Value = False
    """Whether attention and feed-forward both read the residual stream before either is added."""
    multipliers: MultipliersConfig = field(default_factory=MultipliersConfig)
    logits_softcap: Value = None
    """Bound c of the logits, c·tanh(logit/c); null or 0 means none."""


@dataclass
class MatrixQuantConfig:
    """Departures from the main quantization for one matrix; null takes the main setting."""

    bits: Literal[4, 8, 16] | None = None
    """16 leaves the matrix in the graph's float type."""
    block_size: int | None = None
    """Columns that share a scale."""
    symmetric: bool | None = None
    """Whether codes lie around a fixed zero."""


@dataclass
class QuantConfig:
    """Block-wise weight quantization; docs/measurements/quantization.md compares the schemes."""

    smooth: Literal["none", "awq"] = "none"
    """Scales per input channel, folded into the norm or the rows before, that protect weights."""
    round: Literal["none", "rtn", "search", "gptq"] = "none"
    """How a weight becomes a code; `none` keeps the float type."""
    refine: bool = False
    """Improve GPTQ's codes and scales by coordinate descent."""
    token_weights: Literal["none", "fisher"] = "none"
    """Weigh calibration tokens by their squared gradients, so that errors count as they matter."""
    bits: Literal[4, 8] = 4
    """Bits of a code."""
    block_size: int = 32
    """Columns that share a scale: a power of two from 16 to 256."""
    symmetric: bool = True
    """Whether codes lie around a fixed zero; false stores a zero point for each block."""
    scale_type: Literal["graph", "fp16"] = "graph"
    """Type in which scales are stored. fp16 in an fp32 graph halves their room; the runtime widens
    them once, when it loads the folder."""
    accuracy_level: Literal[0, 1, 2, 3, 4] | None = None
    """See target.accuracy_level; null takes the target's."""
    pad_last_block: bool = False
    """Pad columns that the block size does not divide, at the cost of a larger file."""
    target_size: str | None = None
    """Largest sum of all weights as stored, such as 89.9MB: bits and blocks are then chosen for
    each matrix. The rotary caches and the alignment of tensors in the file come on top."""
    bits_per_weight: float | None = None
    """The same as an average over the quantized matrices, scales and zero points included."""
    source: Literal["keep", "requantize"] = "keep"
    """What becomes of matrices that the checkpoint holds quantized. `keep` takes their codes and
    scales as they are, in the checkpoint's own blocks, where the operators can hold them and they
    have no more bits than the recipe asks; requantize rounds their values again as the rest."""
    lm_head: MatrixQuantConfig = field(default_factory=MatrixQuantConfig)
    embedding: MatrixQuantConfig = field(default_factory=MatrixQuantConfig)
    experts: MatrixQuantConfig = field(default_factory=MatrixQuantConfig)
    """The matrices of experts; an expert for all tokens is quantized as the others are."""

    @property
    def mixed(self) -> bool:
        """Whether each matrix gets a format of its own under a budget."""
        return self.target_size is not None or self.bits_per_weight is not None

    def without_budget(self) -> QuantConfig:
        """The scheme for any budget: what decides codes once the formats are chosen."""
        return replace(self, target_size=None, bits_per_weight=None)

    @property
    def calibrated(self) -> bool:
        """Whether the scheme needs activations."""
        return self.smooth != "none" or self.round in ("search", "gptq") or self.mixed


@dataclass
class CalibrationConfig:
    """The tokens on which calibrated quantization measures activations."""

    text: str = "builtin"
    """`builtin`, a text file, a .jsonl file of chats, or a folder of those."""
    tokens: int = 8192
    """Tokens drawn from the text."""
    sequence_length: int = 512
    """Tokens that the model reads in one go; one sequence in 16 is held back to judge with."""
    seed: int = 0
    """Seed of the order of documents."""
    inputs: Literal["rounded", "float"] = "rounded"
    """What a linear is rounded against: the outputs of the rounded layers before it, or
    those of the float model, which all variants of a sweep share."""
    compute: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of the matrix products; auto takes bf16 for a 16-bit checkpoint on a CPU that is faster
    in it (AMX, or AMD's AVX-512)."""


@dataclass
class TargetConfig:
    """What the execution provider wants."""

    execution_provider: ExecutionProvider = "cpu"
    """The provider of onnxruntime that runs the folder."""
    float_type: FloatType = "fp32"
    """Type of activations, norms and of what stays unquantized."""
    packed_qkv: bool = True
    """One matrix for Q, K and V in front of GroupQueryAttention."""
    rotary_in_attention: bool = True
    """GroupQueryAttention rotates Q and K itself (do_rotary=1)."""
    position_ids: bool = False
    """The graph takes position_ids as an input."""
    packed_gate_up: bool = False
    """One matrix for the feed-forward's gate and up projections."""
    fused_norm: bool = True
    """RMSNorm as (Skip)SimplifiedLayerNormalization; false spells it out in plain operators."""
    embedding_bits: Literal[16] | None = None
    """16 where the provider has no kernel for a quantized embedding: the schemes of recipes/quant
    then leave it in the graph's float type. null lets the scheme decide."""
    quantized_weights: Literal["MatMulNBits", "DequantizeLinear"] = "MatMulNBits"
    """Operator that holds a quantized matrix; DequantizeLinear stands in front of a MatMul."""
    accuracy_level: Literal[0, 1, 2, 3, 4] = 0
    """MatMulNBits' accuracy_level, the least precision in which it may compute: 0 the kernel's
    choice, 1 fp32, 2 fp16, 3 bf16, 4 activations rounded to int8."""
    threads: int | None = 0
    """intra_op_num_threads: null writes this machine's physical cores, 0 leaves it to the runtime.

    A fixed number makes folders that are the same bytes on every machine."""
    chunk_size: int | None = None
    """Longest piece of a prompt that the runtime computes at once; null means the whole prompt."""
    kv_cache: Literal["float", "int8"] = "float"
    """Type of the stored keys and values; int8 takes scales from the calibration text."""
    graph_capture: bool = False
    """Let the provider record the graph once and replay it."""
    provider_options: dict[str, str] = field(default_factory=dict)
    """Options of the execution provider in genai_config.json."""
    session_options: dict[str, Any] = field(default_factory=dict)
    """Entries of genai_config.json's `session_options` section."""
    search: dict[str, Any] = field(default_factory=dict)
    """Entries of genai_config.json's `search` section."""


@dataclass
class VerifyConfig:
    """The check of the finished folder against the reference."""

    enabled: bool = True
    """Check the folder before it is published."""
    prompt: str = "Once upon a time"
    """What the runtime continues."""
    new_tokens: int = 16
    """Tokens that the runtime must generate; the logits of each are compared."""
    max_error: dict[str, float] = field(default_factory=dict)
    """Largest relative error of the logits, by precision: fp32, fp16, bf16, int8_cache; and
    int8_activations for what rounding activations may change, where that shall have a limit."""
    max_bytes: float = 4e9
    """A folder of more bytes than this is compared on its first layers only."""
    first_layers: int = 2
    """How many layers that are; of a model with experts fewer, where they are large."""
    max_text_differences: float = 0.1
    """Largest share of the hard texts that the runtime may read to other token ids than the
    checkpoint's tokenizer does; compared where onnxruntime-genai is installed."""


@dataclass
class EvaluateConfig:
    """Measuring how far the finished folder is from the float32 model."""

    enabled: bool = False
    """Measure the folder before it is published."""
    text: str = "builtin"
    """What both read: `builtin`, a text file, a .jsonl file of chats, or a folder of those."""
    n_ctx: int = 512
    """Tokens of a chunk; the second half is scored."""
    max_chunks: int | None = 24
    """Chunks taken from the start of the text; null means all."""
    max_kld: float | None = None
    """Largest mean KL divergence, in nats per token; a folder above it is not published."""


@dataclass
class OlivePassConfig:
    """One pass of Olive."""

    type: str = ""
    """Class name, such as OnnxFloatToFloat16."""
    config: dict[str, Any] = field(default_factory=dict)
    """Its settings, by the names that Olive gives them."""


@dataclass
class OliveConfig:
    """The hand-off of the packaged model to Olive; without passes and metrics there is none."""

    passes: list[OlivePassConfig] = field(default_factory=list)
    """Passes in the order in which they run."""
    workflow: str | None = None
    """An Olive workflow file (JSON or YAML) whose passes run instead."""
    evaluate: list[Literal["size_on_disk", "latency", "perplexity"]] = field(default_factory=list)
    """What Olive's own evaluator measures of the result: bytes, milliseconds, perplexity."""
    max_kld: float = 1e-3
    """Largest mean KL divergence, in nats, of the result from the model before Olive."""
    timeout: float = 3600.0
    """Seconds after which Olive is stopped."""


@dataclass
class Recipe:
    """A conversion, completely described."""

    name: str = "custom"
    """The recipe's name, which is also the default name of the output folder."""
    output: str | None = None
    """Output folder; null means ./NAME."""
    overwrite: bool = False
    """Replace an earlier conversion (never any other folder), once the new one is complete."""
    passes: list[str] = field(default_factory=list)
    """Names of the passes in the order in which they run."""
    threads: int | None = None
    """Worker threads; null means all cores. Float weights and rtn's codes do not depend on it. A
    calibrated scheme sums in another order; its lock file says with how many threads it ran."""
    model: ModelConfig = field(default_factory=ModelConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    olive: OliveConfig = field(default_factory=OliveConfig)

    @property
    def scale_type(self) -> FloatType:
        """Type in which the scales of quantized matrices are stored."""
        wide = self.target.float_type == "fp32"
        return "fp16" if wide and self.quant.scale_type == "fp16" else self.target.float_type

    @property
    def accuracy_level(self) -> int:
        """MatMulNBits' accuracy_level: the scheme's own, or the target's."""
        own = self.quant.accuracy_level
        return self.target.accuracy_level if own is None else own

    @property
    def rounds_activations(self) -> bool:
        """Whether the kernels of quantized matrices round activations to int8."""
        return self.quant.round != "none" and self.accuracy_level == INT8_ACTIVATIONS


SIZE_UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_size(text: str) -> int | None:
    """Bytes of a size such as `89.9MB`; None when it is not one."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    units = {unit.lower(): size for unit, size in SIZE_UNITS.items()}
    if match is None or match[2].lower() not in units:
        return None
    return int(float(match[1]) * units[match[2].lower()])
