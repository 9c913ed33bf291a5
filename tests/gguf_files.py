"""Tiny GGUF files, written by the library `gguf` in the forms of llama.cpp's converter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from families import FAMILIES, random_model
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

QUANTIZABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16", "F32")
"""Types that the library quantizes to in blocks of 32, or stores as they are."""
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.down_proj": "ffn_down_exps",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
SIZES: dict[str, Any] = {
    "block_count": 3,
    "context_length": 128,
    "embedding_length": 96,
    "feed_forward_length": 112,
    "attention.head_count": 6,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 10000.0,
}
"""The metadata of `families.EVEN`."""


TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXT = [
    "Once upon a time, there was a small fox; it's 1234 and 42 kg.\n\n  Größe? We'll see.",
    "x=1",
]
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
NORMAL, CONTROL, UNUSED = 1, 3, 5


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, NDArray[np.float32]],
    kind: str = "F32",
    whole: Mapping[str, Any] | None = None,
) -> Path:
    """Write a file: matrices in `kind` where its blocks fit the columns, the rest in float32.

    `metadata` are keys behind the architecture, `whole` further keys.
    """
    writer = gguf.GGUFWriter(path, architecture)
    keys = {f"{architecture}.{key}": value for key, value in metadata.items()}
    for key, value in (keys | dict(whole or {})).items():
        add_value(writer, key, value)
    number = Kind[kind]
    block, _ = gguf.GGML_QUANT_SIZES[number]
    for name, values in tensors.items():
        if values.ndim == 1 or kind == "F32" or values.shape[-1] % block:
            writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """A value under the type that llama.cpp's converter gives it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def neighbours(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from [first halves | second halves] to pairs."""
    shape = values.shape
    split = values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
    return split.swapaxes(1, 2).reshape(shape)


def gguf_tensors(model: Any, form: str = "llama") -> dict[str, NDArray[np.float32]]:
    """A model's tensors as llama.cpp stores them.

    `form` is llama (Q and K in pairs), plain, or gemma (norms with 1 added).
    """
    config, names = model.config, NAMES | (GEMMA_NAMES if form == "gemma" else {})
    found: dict[str, NDArray[np.float32]] = {}
    for name, values in model.state_dict().items():
        if name.startswith("lm_head") and config.tie_word_embeddings:
            continue
        if form == "llama" and ".q_proj." in name:
            values = neighbours(values, config.num_attention_heads)
        if form == "llama" and ".k_proj." in name:
            values = neighbours(values, config.num_key_value_heads)
        if form == "gemma" and name.endswith("norm.weight"):
            values = values + 1
        if name.endswith("mlp.experts.gate_up_proj"):
            block = f"blk.{name.split('.')[2]}"
            gate, up = values.numpy().reshape(len(values), 2, -1, values.shape[-1]).swapaxes(0, 1)
            found |= {f"{block}.ffn_gate_exps.weight": gate, f"{block}.ffn_up_exps.weight": up}
            continue
        found[gguf_name(name, names)] = values.numpy()
    return found


def gguf_name(name: str, names: Mapping[str, str]) -> str:
    name = name.replace("experts.down_proj", "experts.down_proj.weight")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer:
        return f"blk.{layer[1]}.{names[layer[2]]}.{layer[3]}"
    module, _, end = name.rpartition(".")
    return f"{names[module]}.{end}"


def tiny_llama(path: Path, kind: str = "F32", **more: Any) -> Path:
    """The family llama as a file, with further metadata of the architecture."""
    model = random_model(FAMILIES["llama"])
    return write_gguf(path, "llama", SIZES | more, gguf_tensors(model), kind)


def trained(pre: pre_tokenizers.PreTokenizer, whole: bool = False) -> Tokenizer:
    """A byte-level BPE tokenizer with special tokens."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    return tokenizer


def byte_level_keys(tokenizer: Tokenizer, pre: str, **more: Any) -> dict[str, Any]:
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": [*tokens, "[PAD400]"],
        "token_type": [CONTROL if t in SPECIAL else NORMAL for t in tokens] + [UNUSED],
        "merges": [" ".join(pair) for pair in model["merges"]],
        "eos_token_id": 0,
        **more,
    }
