"""Tiny random models of many families, saved by transformers itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

TOKENS, PREFILL = 40, 36
VOCABULARY = 160
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""head_dim is not hidden_size / num_attention_heads, for classes that take one."""
EVEN = {key: value for key, value in SIZES.items() if key != "head_dim"}
"""A head of 16 columns."""
WINDOW = {"sliding_window": 8}
GRANITE = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.0625,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
LOCAL_EXPERTS = {"num_local_experts": 4}
FINE_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 48}


@dataclass(frozen=True)
class Family:
    """A model type and its settings; `architecture` is the description that must be found."""

    model_type: str
    architecture: str
    settings: dict[str, Any] = field(default_factory=dict)


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


def _multimodal(kind: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Settings of a class that holds a language model of `kind` beside a small vision tower."""
    return {
        "text_config": sizes | {"model_type": kind},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "image_token_id": VOCABULARY - 1,
        "image_token_index": VOCABULARY - 1,
        "tie_word_embeddings": False,
    }


_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_FACTORS = {
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [1.0 + i for i in range(8)],
}
FAMILIES: dict[str, Family] = {
    "llama": Family("llama", "llama", EVEN),
    "llama_head_dim": Family("llama", "llama", SIZES),
    "llama_odd_heads": Family(
        "llama",
        "llama",
        SIZES | {"hidden_size": 144, "num_attention_heads": 9, "num_key_value_heads": 3},
    ),
    "llama_head_of_24": Family("llama", "llama", SIZES | {"head_dim": 24}),
    "llama3_rope": Family(
        "llama", "llama", SIZES | _rope("llama3", original_max_position_embeddings=32, **_LLAMA3)
    ),
    "llama_tied": Family("llama", "llama", SIZES | {"tie_word_embeddings": True}),
    "llama_attention_bias": Family("llama", "llama", SIZES | {"attention_bias": True}),
    "llama_mlp_bias": Family("llama", "llama", SIZES | {"mlp_bias": True}),
    "llama_gelu": Family("llama", "llama", SIZES | {"hidden_act": "gelu"}),
    "llama_yarn": Family(
        "llama", "llama", SIZES | _rope("yarn", factor=4.0, original_max_position_embeddings=32)
    ),
    "llama_linear": Family("llama", "llama", SIZES | _rope("linear", factor=4.0)),
    "llama_dynamic": Family("llama", "llama", SIZES | _rope("dynamic", factor=4.0)),
    "mistral": Family("mistral", "mistral", SIZES | {"sliding_window": None}),
    "mistral_window": Family("mistral", "mistral", SIZES | WINDOW),
    "ministral": Family("ministral", "ministral", SIZES | WINDOW),
    "qwen2": Family("qwen2", "qwen2", EVEN),
    "qwen2_tied": Family("qwen2", "qwen2", EVEN | {"tie_word_embeddings": True}),
    "qwen2_window": Family(
        "qwen2", "qwen2", EVEN | WINDOW | {"use_sliding_window": True, "max_window_layers": 1}
    ),
    "qwen3": Family("qwen3", "qwen3", SIZES),
    "qwen3_tied": Family("qwen3", "qwen3", SIZES | {"tie_word_embeddings": True}),
    "phi3": Family("phi3", "phi3", EVEN),
    "phi3_window": Family("phi3", "phi3", EVEN | WINDOW),
    "phi3_longrope": Family(
        "phi3",
        "phi3",
        EVEN
        | {"original_max_position_embeddings": 38}
        | _rope("longrope", original_max_position_embeddings=38, **_FACTORS),
    ),
    "phi4_mini": Family(
        "phi3",
        "phi3",
        EVEN
        | {"head_dim": 16, "tie_word_embeddings": True, "partial_rotary_factor": 0.75}
        | _rope("default", partial_rotary_factor=0.75),
    ),
    "gemma": Family("gemma", "gemma", SIZES),
    "gemma2": Family("gemma2", "gemma2", SIZES | WINDOW | {"query_pre_attn_scalar": 24}),
    "gemma3": Family(
        "gemma3_text",
        "gemma3",
        SIZES | WINDOW | {"query_pre_attn_scalar": 24, "num_hidden_layers": 6},
    ),
    "gemma3_multimodal": Family(
        "gemma3",
        "gemma3",
        _multimodal(
            "gemma3_text",
            SIZES | WINDOW | {"query_pre_attn_scalar": 24, "num_hidden_layers": 6},
        )
        | {"mm_tokens_per_image": 4, "tie_word_embeddings": True},
    ),
    "ministral3": Family(
        "ministral3",
        "ministral3",
        SIZES
        | _rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=16,
            llama_4_scaling_beta=0.5,
            max_position_embeddings=128,
            beta_fast=32.0,
            beta_slow=1.0,
            mscale=1.0,
            mscale_all_dim=1.0,
        ),
    ),
    "vaultgemma": Family("vaultgemma", "vaultgemma", SIZES | WINDOW),
    "internlm3": Family("internlm3", "internlm3", SIZES),
    "smollm3": Family("smollm3", "smollm3", EVEN | {"num_hidden_layers": 4}),
    "granite": Family(
        "granite",
        "granite",
        EVEN | GRANITE,
    ),
    "granite4": Family(
        "granitemoehybrid",
        "granite4",
        EVEN
        | {"num_local_experts": 0, "shared_intermediate_size": 112, "mamba_n_heads": 6}
        | {"mamba_d_head": 32, "layer_types": ["attention"] * 3, "position_embedding_type": "rope"}
        | {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0}
        | {"attention_multiplier": 0.0625},
    ),
    "olmo": Family("olmo", "olmo", EVEN),
    "olmo2": Family("olmo2", "olmo2", EVEN),
    "olmo3": Family("olmo3", "olmo3", EVEN | WINDOW | {"num_hidden_layers": 4}),
    "cohere": Family("cohere", "cohere", EVEN),
    "cohere2": Family("cohere2", "cohere2", SIZES | WINDOW | {"num_hidden_layers": 4}),
    "stablelm": Family("stablelm", "stablelm", EVEN),
    "glm": Family("glm", "glm", SIZES),
    "glm4": Family("glm4", "glm4", SIZES),
    "nemotron": Family("nemotron", "nemotron", SIZES),
    "starcoder2": Family("starcoder2", "starcoder2", EVEN),
    "phi2": Family("phi", "phi", EVEN),
    "exaone4": Family("exaone4", "exaone4", SIZES | WINDOW | {"num_hidden_layers": 4}),
    "helium": Family("helium", "helium", SIZES | {"head_dim": 16}),
    "seed_oss": Family("seed_oss", "seed_oss", SIZES),
    "arcee": Family("arcee", "arcee", SIZES),
    "hunyuan": Family("hunyuan_v1_dense", "hunyuan", SIZES),
    "ernie4_5": Family("ernie4_5", "ernie4_5", SIZES),
    "gpt_neox": Family("gpt_neox", "gpt_neox", EVEN),
    "gpt_neox_serial": Family("gpt_neox", "gpt_neox", EVEN | {"use_parallel_residual": False}),
    "hyperclovax": Family("hyperclovax", "hyperclovax", EVEN),
    "jais2": Family("jais2", "jais2", EVEN),
    "mixtral": Family("mixtral", "mixtral", SIZES | {"num_local_experts": 5}),
    "mixtral_window": Family(
        "mixtral", "mixtral", EVEN | WINDOW | LOCAL_EXPERTS | {"num_experts_per_tok": 3}
    ),
    "qwen3_moe": Family("qwen3_moe", "qwen3_moe", SIZES | FINE_EXPERTS | {"norm_topk_prob": True}),
    "qwen3_moe_not_normalized": Family("qwen3_moe", "qwen3_moe", SIZES | FINE_EXPERTS),
    "qwen3_moe_some_dense": Family(
        "qwen3_moe",
        "qwen3_moe",
        SIZES
        | FINE_EXPERTS
        | {"num_hidden_layers": 5, "decoder_sparse_step": 2, "mlp_only_layers": [1]},
    ),
    "qwen3_moe_window": Family(
        "qwen3_moe", "qwen3_moe", SIZES | FINE_EXPERTS | WINDOW | {"use_sliding_window": True}
    ),
    "olmoe": Family("olmoe", "olmoe", EVEN | {"num_experts": 6, "num_experts_per_tok": 3}),
    "olmoe_normalized": Family(
        "olmoe",
        "olmoe",
        EVEN | {"num_experts": 6, "norm_topk_prob": True, "num_experts_per_tok": 3},
    ),
    "qwen2_moe": Family(
        "qwen2_moe", "qwen2_moe", EVEN | FINE_EXPERTS | {"shared_expert_intermediate_size": 40}
    ),
    "qwen2_moe_window": Family(
        "qwen2_moe",
        "qwen2_moe",
        EVEN
        | FINE_EXPERTS
        | WINDOW
        | {"use_sliding_window": True, "max_window_layers": 1, "norm_topk_prob": True}
        | {"shared_expert_intermediate_size": 40, "mlp_only_layers": [2]},
    ),
    "granite_moe": Family("granitemoe", "granite_moe", EVEN | LOCAL_EXPERTS | GRANITE),
    "granite_moe_shared": Family(
        "granitemoeshared",
        "granite_moe_shared",
        EVEN | LOCAL_EXPERTS | GRANITE | {"shared_intermediate_size": 72},
    ),
    "gpt_oss": Family(
        "gpt_oss",
        "gpt_oss",
        SIZES
        | WINDOW
        | {"num_local_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 160}
        | {"swiglu_limit": 1.0}
        | _rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=32,
            beta_fast=32.0,
            beta_slow=1.0,
            truncate=False,
        ),
    ),
    "gpt_oss_head_of_24": Family(
        "gpt_oss",
        "gpt_oss",
        SIZES
        | WINDOW
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 24}
        | {"layer_types": ["full_attention"] * 3}
        | _rope("default"),
    ),
    "cwm": Family("cwm", "cwm", SIZES | WINDOW | {"num_hidden_layers": 4}),
    "iquestcoder": Family("iquestcoder", "iquestcoder", SIZES),
    "persimmon": Family("persimmon", "persimmon", EVEN | {"partial_rotary_factor": 0.5}),
    "llava": Family("llava", "llava", _multimodal("llama", SIZES)),
    "internvl": Family("internvl", "internvl", _multimodal("qwen2", EVEN)),
    "got_ocr2": Family("got_ocr2", "got_ocr2", _multimodal("qwen2", EVEN)),
    "smolvlm": Family("smolvlm", "smolvlm", _multimodal("llama", SIZES)),
    "mellum": Family("mellum", "mellum", SIZES | WINDOW | FINE_EXPERTS | {"norm_topk_prob": True}),
    "flex_olmo": Family(
        "flex_olmo", "flex_olmo", EVEN | {"num_experts": 6, "num_experts_per_tok": 3}
    ),
    "llava_next": Family("llava_next", "llava_next", _multimodal("mistral", SIZES)),
    "llava_onevision": Family("llava_onevision", "llava_onevision", _multimodal("qwen2", EVEN)),
    "vipllava": Family(
        "vipllava",
        "vipllava",
        _multimodal("llama", SIZES) | {"vision_feature_layers": [-1], "vision_feature_layer": -1},
    ),
}
"""Every family and variant whose logits are compared."""


def random_model(family: Family) -> Any:
    """transformers' model with random weights, float32; norms and biases are far from 1 and 0."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = AutoConfig.for_model(family.model_type, **family.settings)
    classes = AutoModelForCausalLM, AutoModelForImageTextToText
    maker = classes[type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING]
    torch.manual_seed(0)
    model = maker.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(values * (0.2 if "norm" in name else 0.3))
            else:
                parameter.copy_(values * parameter.shape[-1] ** -0.5 * 1.3)
    return model


def token_ids() -> torch.Tensor:
    """int64 (1, TOKENS)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, VOCABULARY, (1, TOKENS), generator=generator)


def expected_logits(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' logits of the whole text at once, and with a cache behind PREFILL tokens."""
    ids = token_ids()
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits[0]
        state = model(ids[:, :PREFILL], use_cache=True)
        steps = [state.logits[0, -1]]
        for place in range(PREFILL, TOKENS):
            state = model(
                ids[:, place : place + 1], past_key_values=state.past_key_values, use_cache=True
            )
            steps.append(state.logits[0, -1])
    return whole, torch.stack(steps)


def save(model: Any, folder: Path) -> Path:
    """The checkpoint as transformers writes it."""
    model.save_pretrained(folder)
    return folder
