"""Names of files, inputs, outputs and nodes that more than one module must know.

Inputs and outputs have the names that onnxruntime-genai expects, nodes those that its own model
builder gives.
"""

from __future__ import annotations

from converter.model.tensor_kinds import BIAS, is_bias

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
MATRIX = "convert.matrix"
"""Metadata key of a node: the canonical name of the matrix that it multiplies with."""
EXPERTS_LAYER = "convert.experts"
"""Metadata key of a node with a layer's experts: what their canonical names start with."""
CONTRIB = "com.microsoft"
"""Domain of onnxruntime's own operators."""

INPUT_IDS, ATTENTION_MASK, POSITION_IDS = "input_ids", "attention_mask", "position_ids"
LOGITS = "logits"
PAST, PRESENT = "past_key_values", "present"
CACHED = ("key", "value")

EMBEDDING_NODE = "/model/embed_tokens/Gather"
HEAD_PATH = "/lm_head"
HEAD_NODE = f"{HEAD_PATH}/MatMul"
LAST_TOKEN = "/lm_head/last_token/Gather"
"""Node that keeps each prompt's last token only."""


def past(layer: int | str, kind: str) -> str:
    """Input with a layer's keys or values so far; `%d` stands for any layer."""
    return f"{PAST}.{layer}.{kind}"


def present(layer: int | str, kind: str) -> str:
    """Output with a layer's keys or values; `%d` stands for any layer."""
    return f"{PRESENT}.{layer}.{kind}"


def is_cache(name: str | None) -> bool:
    """Whether an input or output holds keys or values."""
    return name is not None and name.startswith((f"{PAST}.", f"{PRESENT}."))


def layer_path(layer: int) -> str:
    """What the names of a layer's nodes start with."""
    return f"/model/layers.{layer}"


def layer_prefix(layer: int) -> str:
    """What the canonical names of a layer's tensors start with."""
    return f"layers.{layer}."


def residual_nodes(layer: int) -> tuple[str, str]:
    """Nodes whose last output is the residual stream that a layer starts from.

    The sum comes out of the fused norm, or of the addition before a norm in plain operators.
    """
    norm = f"{layer_path(layer)}/input_layernorm"
    return f"{norm}/SkipLayerNorm", f"{norm}/Add"


def product_node(path: str) -> str:
    """Node that multiplies with the matrix at `path`, such as `/lm_head`."""
    return f"{path}/MatMul"


def product_path(node: str) -> str:
    """The path of the matrix that a node multiplies with: `product_node` undone."""
    return node.removesuffix("/MatMul")


def matrix_initializer(path: str) -> str:
    """Initializer with the float matrix at `path`."""
    return f"{_dotted(path)}.MatMul.weight"


def bias_initializer(path: str) -> str:
    """Initializer that is added to the product with the matrix at `path`."""
    return f"{_dotted(path)}.Add.bias"


def _dotted(path: str) -> str:
    return path.strip("/").replace("/", ".")


BLOCK_NORMS = {
    "attn_norm": "input_layernorm",
    "attn_post_norm": "attention_output_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_post_norm": "feed_forward_output_layernorm",
    "q_norm": "attn.q_norm",
    "k_norm": "attn.k_norm",
}
"""Norms of a layer to the names that their nodes and initializers have."""


def norm_path(layer: int, kind: str) -> str:
    """What the names of the nodes of a layer's norm start with; `kind` is its canonical name."""
    return f"{layer_path(layer)}/{BLOCK_NORMS[kind].replace('.', '/')}"


def plain_initializer(canonical: str) -> str:
    """Initializer of a norm or the embedding, by the decoder's canonical name."""
    prefix, dot, kind = canonical.rpartition(".")
    return f"model.{prefix}{dot}{BLOCK_NORMS.get(kind, kind)}.weight"


def norm_initializer(canonical: str) -> str:
    """Initializer of a norm's weight, or of its bias."""
    weight = plain_initializer(canonical.removesuffix(BIAS))
    return f"{weight.removesuffix('weight')}bias" if is_bias(canonical) else weight


def expert_initializer(layer: int, kind: str) -> str:
    """Initializer of all experts of a layer, such as `experts_down_proj`, or of their biases."""
    name, bias, _ = kind.partition("_bias")
    return layer_weight(layer, f"moe.{name.replace('_', '.', 1)}.{'bias' if bias else 'weight'}")


def layer_weight(layer: int, part: str) -> str:
    """Initializer of a layer, such as `attn.k_scale`."""
    return f"model.layers.{layer}.{part}"


def is_of_layer(name: str, layer: int) -> bool:
    """Whether an initializer belongs to a layer."""
    return f".layers.{layer}." in name


def quantized(node: str, bits: int) -> str:
    """Name of the node that takes the place of `node` on quantized weights."""
    return f"{node}_Q{bits}"
