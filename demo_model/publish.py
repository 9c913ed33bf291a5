"""Writes a checkpoint folder in the published form of internlm2-chat.

The keys and their order are those of the chat models' own files; the sizes are the demo's.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo_model.tokenizer import BOS_ID, CHAT_TOKEN_IDS, EOS_ID, UNK_ID, VOCAB_SIZE

if TYPE_CHECKING:
    import torch

CONFIG: dict[str, Any] = {
    "architectures": ["InternLM2ForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_internlm2.InternLM2Config",
        "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
        "AutoModel": "modeling_internlm2.InternLM2ForCausalLM",
    },
    "bias": False,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.06,
    "intermediate_size": 384,
    "max_position_embeddings": 1024,
    "model_type": "internlm2",
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "pad_token_id": EOS_ID,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 2.0, "type": "dynamic"},
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.2",
    "use_cache": True,
    "vocab_size": VOCAB_SIZE,
}
GENERATION_CONFIG: dict[str, Any] = {
    "bos_token_id": BOS_ID,
    "eos_token_id": [EOS_ID, CHAT_TOKEN_IDS["<|im_end|>"]],
    "pad_token_id": EOS_ID,
    "transformers_version": "4.37.1",
}
SPECIAL_TOKENS_MAP: dict[str, Any] = {
    "additional_special_tokens": list(CHAT_TOKEN_IDS),
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "</s>",
    "unk_token": "<unk>",
}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT_TOKEN_IDS = {"<unk>": UNK_ID, "<s>": BOS_ID, "</s>": EOS_ID}
TOKENIZER_CONFIG: dict[str, Any] = {
    "auto_map": {
        "AutoTokenizer": [
            "tokenization_internlm2.InternLM2Tokenizer",
            "tokenization_internlm2_fast.InternLM2TokenizerFast",
        ]
    },
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": "</s>",
    "tokenizer_class": "InternLM2Tokenizer",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "add_eos_token": False,
    "decode_with_prefix_space": False,
    "sp_model_kwargs": None,
    "added_tokens_decoder": {
        str(token_id): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token, token_id in (TEXT_TOKEN_IDS | CHAT_TOKEN_IDS).items()
    },
    "additional_special_tokens": list(CHAT_TOKEN_IDS),
    "chat_template": CHAT_TEMPLATE,
}
JSON_FILES = {
    "config.json": CONFIG,
    "generation_config.json": GENERATION_CONFIG,
    "special_tokens_map.json": SPECIAL_TOKENS_MAP,
    "tokenizer_config.json": TOKENIZER_CONFIG,
}
TOP_NAMES = {
    "model.embed_tokens.weight": "model.tok_embeddings.weight",
    "model.norm.weight": "model.norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "self_attn.o_proj.weight": "attention.wo.weight",
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
    "input_layernorm.weight": "attention_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}


def fused_qkv(q: "torch.Tensor", k: "torch.Tensor", v: "torch.Tensor") -> "torch.Tensor":
    """wqkv, [(heads + 2 kv_heads) * head_dim, hidden], in InternLM2's row order.

    For each KV head come the rows of its query heads, then of its key, then of its value; q, k and
    v are [rows, hidden] with their heads in order.
    """
    import torch

    kv_heads, hidden = CONFIG["num_key_value_heads"], CONFIG["hidden_size"]
    groups = [weight.reshape(kv_heads, -1, hidden) for weight in (q, k, v)]
    return torch.cat(groups, dim=1).reshape(-1, hidden)


def internlm2_tensors(llama: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The tensors of a Llama state dict under InternLM2's names, in bfloat16."""
    import torch

    tensors = {new: llama[old] for old, new in TOP_NAMES.items()}
    for n in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        for old, new in LAYER_NAMES.items():
            tensors[layer + new] = llama[layer + old]
        q, k, v = (llama[f"{layer}self_attn.{axis}_proj.weight"] for axis in "qkv")
        tensors[layer + "attention.wqkv.weight"] = fused_qkv(q, k, v)
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}


def llama_tensors(internlm2: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The inverse of `internlm2_tensors`, in float32."""
    kv_heads, hidden = CONFIG["num_key_value_heads"], CONFIG["hidden_size"]
    head_dim = hidden // CONFIG["num_attention_heads"]
    tensors = {old: internlm2[new] for old, new in TOP_NAMES.items()}
    for n in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        for old, new in LAYER_NAMES.items():
            tensors[layer + old] = internlm2[layer + new]
        groups = internlm2[layer + "attention.wqkv.weight"].reshape(kv_heads, -1, head_dim, hidden)
        for axis, rows in zip("qkv", (groups[:, :-2], groups[:, -2], groups[:, -1]), strict=True):
            tensors[f"{layer}self_attn.{axis}_proj.weight"] = rows.reshape(-1, hidden)
    return {name: tensor.float() for name, tensor in tensors.items()}


def write_checkpoint(
    folder: Path, llama: "dict[str, torch.Tensor]", tokenizer_model: bytes
) -> None:
    """Writes the whole checkpoint folder: weights, configs and tokenizer."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name, content in JSON_FILES.items():
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(tokenizer_model)
    save_file(internlm2_tensors(llama), folder / "model.safetensors", metadata={"format": "pt"})
