"""llama.cpp's architectures that have a description here, and what each is in transformers.

Source: convert_hf_to_gguf.py of llama.cpp says what it stores under which name, and llama.cpp's
loader what a file leaves out. `benchmarks/gguf_sources.py architectures` compares every entry with
files that llama.cpp's own converter writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TENSORS: dict[str, str] = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "attn_norm": "attn_norm",
    "qkv_proj": "attn_qkv",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "o_proj": "attn_output",
    "attn_post_norm": "post_attention_norm",
    "ffn_norm": "ffn_norm",
    "gate_up_proj": "ffn_up",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "ffn_post_norm": "post_ffw_norm",
    "router": "ffn_gate_inp",
    "expert_gate_proj": "ffn_gate_exps",
    "expert_up_proj": "ffn_up_exps",
    "expert_down_proj": "ffn_down_exps",
    "shared_gate_proj": "ffn_gate_shexp",
    "shared_up_proj": "ffn_up_shexp",
    "shared_down_proj": "ffn_down_shexp",
    "shared_expert_gate": "ffn_gate_inp_shexp",
}
"""Canonical names of converter.model.tensor_kinds to GGUF's; those of a layer behind `blk.N.`."""
ROPE_FACTORS, ROPE_LONG, ROPE_SHORT = (
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
)
"""Tensors that scale the rotation; they become numbers of config.json."""
ATTENTION_BIAS = {"attention_bias": "attn_q"}
GELU = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class Known:
    """An architecture of llama.cpp, as transformers has it."""

    model_type: str
    class_name: str
    interleaved: bool = False
    """Whether rows of Q and K are stored with the two of a rotary pair as neighbours."""
    eps: tuple[str, str | None] = ("attention.layer_norm_rms_epsilon", "rms_norm_eps")
    """Where the metadata has the norms' epsilon, and where config.json, if it states it."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Further keys of the metadata to keys of config.json."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Keys of config.json that no file states, because llama.cpp has them in its code."""
    biases: Mapping[str, str] = field(default_factory=lambda: ATTENTION_BIAS)
    """Keys of config.json that say of a bias whether there is one, to GGUF's names."""
    window_period: int | None = None
    """Every layer has a window but each of this number; 1: all have; None: they know no window."""
    windowed: tuple[str, str] | None = None
    """model_type and class of files that state a window, where they differ."""
    mixture: Known | None = None
    """What files that state experts are instead."""
    two_ropes: bool = False
    """Whether layers with a window have a rotation of their own."""
    names: Mapping[str, str] = field(default_factory=dict)
    """GGUF's names that differ from `TENSORS`."""


_LAYER_EPS = "attention.layer_norm_epsilon"
EPSILONS = ("attention.layer_norm_rms_epsilon", _LAYER_EPS)
"""A file may state both; the kind of its norms decides which has an effect."""
_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
_ALL_LAYERS = {"decoder_sparse_step": 1, "mlp_only_layers": []}
"""llama.cpp has experts in every layer of a model with experts."""
_MIXTRAL = Known(
    "mixtral",
    "MixtralForCausalLM",
    interleaved=True,
    keys={"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
    biases={},
    window_period=1,
)
KNOWN: dict[str, Known] = {
    "llama": Known(
        "llama",
        "LlamaForCausalLM",
        interleaved=True,
        biases=ATTENTION_BIAS | {"mlp_bias": "ffn_down"},
        window_period=1,
        windowed=("mistral", "MistralForCausalLM"),
        mixture=_MIXTRAL,
    ),
    "internlm2": Known(
        "internlm2",
        "InternLM2ForCausalLM",
        interleaved=True,
        fixed={"hidden_act": "silu"},
        biases={"bias": "attn_q"},
    ),
    "qwen2": Known("qwen2", "Qwen2ForCausalLM", biases={}),
    "qwen3": Known("qwen3", "Qwen3ForCausalLM"),
    "qwen2moe": Known(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        keys=_EXPERTS,
        fixed=_ALL_LAYERS | {"norm_topk_prob": False},
        biases={"qkv_bias": "attn_q"},
    ),
    "qwen3moe": Known(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        keys=_EXPERTS,
        fixed=_ALL_LAYERS | {"norm_topk_prob": True},
    ),
    "olmoe": Known("olmoe", "OlmoeForCausalLM", keys=_EXPERTS, fixed={"norm_topk_prob": False}),
    "gemma": Known(
        "gemma", "GemmaForCausalLM", fixed={"hidden_act": GELU, "hidden_activation": GELU}
    ),
    "gemma2": Known(
        "gemma2",
        "Gemma2ForCausalLM",
        keys=_CAPS,
        fixed={"hidden_activation": GELU},
        window_period=2,
    ),
    "gemma3": Known(
        "gemma3_text",
        "Gemma3ForCausalLM",
        keys=_CAPS,
        fixed={"hidden_activation": GELU},
        window_period=6,
        two_ropes=True,
    ),
    "phi3": Known("phi3", "Phi3ForCausalLM", biases={}, window_period=1),
    "granite": Known(
        "granite",
        "GraniteForCausalLM",
        interleaved=True,
        keys={
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
        biases=ATTENTION_BIAS | {"mlp_bias": "ffn_down"},
    ),
    "olmo2": Known(
        "olmo2",
        "Olmo2ForCausalLM",
        window_period=4,
        windowed=("olmo3", "Olmo3ForCausalLM"),
    ),
    "smollm3": Known(
        "smollm3",
        "SmolLM3ForCausalLM",
        interleaved=True,
        fixed={"no_rope_layer_interval": 4, "use_sliding_window": False},
        biases=ATTENTION_BIAS | {"mlp_bias": "ffn_down"},
    ),
    "starcoder2": Known(
        "starcoder2",
        "Starcoder2ForCausalLM",
        eps=(_LAYER_EPS, "norm_epsilon"),
        fixed={"hidden_act": GELU, "sliding_window": None},
        biases={"use_bias": "attn_q"},
    ),
    "command-r": Known(
        "cohere",
        "CohereForCausalLM",
        eps=(_LAYER_EPS, "layer_norm_eps"),
        keys={"logit_scale": "logit_scale"},
    ),
    "cohere2": Known(
        "cohere2",
        "Cohere2ForCausalLM",
        eps=(_LAYER_EPS, "layer_norm_eps"),
        keys={"logit_scale": "logit_scale"},
        window_period=4,
    ),
    "glm4": Known("glm4", "Glm4ForCausalLM"),
    "exaone4": Known("exaone4", "Exaone4ForCausalLM", biases={}, window_period=4),
    "arcee": Known(
        "arcee",
        "ArceeForCausalLM",
        interleaved=True,
        biases=ATTENTION_BIAS | {"mlp_bias": "ffn_down"},
    ),
    "seed_oss": Known(
        "seed_oss",
        "SeedOssForCausalLM",
        biases=ATTENTION_BIAS | {"attention_out_bias": "attn_output", "mlp_bias": "ffn_down"},
        names={"ffn_norm": "post_attention_norm"},
    ),
    "nemotron": Known(
        "nemotron",
        "NemotronForCausalLM",
        eps=(_LAYER_EPS, "norm_eps"),
        biases=ATTENTION_BIAS | {"mlp_bias": "ffn_down"},
    ),
    "ernie4_5": Known("ernie4_5", "Ernie4_5ForCausalLM", biases={"use_bias": "attn_q"}),
    "hunyuan-dense": Known("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM"),
    "olmo": Known(
        "olmo",
        "OlmoForCausalLM",
        interleaved=True,
        eps=(_LAYER_EPS, None),
        keys={"attention.clamp_kqv": "clip_qkv"},
    ),
}
"""By `general.architecture`."""
SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
"""Gemma's 27B, by its number of layers, divides scores by the root of hidden_size / heads, as
llama.cpp's loader does; all others divide by the root of a head's width."""
WITHOUT_EFFECT = ("vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "pooling_type")
"""Keys of an architecture that change nothing: what the tensors show, and what is for others."""
