"""transformers' own Llama, run layer by layer on lazy weights.

InternLM2 is Llama with the rows of wqkv in another order, so transformers' LlamaDecoderLayer is the
reference for every decoder here. The model is built on the meta device; one layer at a time gets
its weights and loses them again, so a model of any size runs in the memory of one layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import rms_norm

from converter.model.architecture import Architecture
from converter.model.tensor_kinds import BIAS
from converter.weights.weight import Weight

HIDDEN_ACTS = {"gelu_tanh": "gelu_pytorch_tanh"} | {
    name: name for name in ("silu", "gelu", "relu", "relu2")
}
"""Kinds of activations to transformers' names."""
HEAD_ROWS = 8192
"""Rows of lm_head multiplied at a time."""


class Reference:
    """A decoder computed by transformers.

    Args:
        arch: sizes of the decoder.
        weights: canonical weights.
        dtype: type of weights and activations while computing.
        cache_length: length for which a dynamic RoPE base is fixed; None follows the sequence, as
            transformers does.
    """

    def __init__(
        self,
        arch: Architecture,
        weights: Mapping[str, Weight],
        dtype: torch.dtype = torch.float32,
        cache_length: int | None = None,
    ) -> None:
        from transformers.models.llama import modeling_llama

        self.arch, self.weights, self.dtype = arch, weights, dtype
        self._modules = modeling_llama
        self._config = llama_config(arch, cache_length, attention_bias=self._has_bias())
        self._rotary = modeling_llama.LlamaRotaryEmbedding(self._config)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (batch, tokens, hidden_size) of int64 ids; reads only the rows in use."""
        ids, places = torch.unique(token_ids, return_inverse=True)
        rows = self.weights["embed_tokens"].permute_rows(ids).read()
        return rows.to(self.dtype)[places]

    @contextmanager
    def layer(self, number: int) -> Iterator[torch.nn.Module]:
        """transformers' decoder layer with its weights, for as long as the context lasts.

        At its end the module has none, whoever still holds it: the next layer takes their room.
        """
        with torch.device("meta"):
            module = self._modules.LlamaDecoderLayer(self._config, number)
        state = {
            _parameter_name(leaf): self.weights[name].read().to(self.dtype)
            for name in self.weights
            if name.startswith(f"layers.{number}.") and (leaf := name.split(".", 2)[2])
        }
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):  # transformers gives o_proj a bias whenever q has one
                state.setdefault(name, torch.zeros(parameter.shape, dtype=self.dtype))
        module.load_state_dict(state, assign=True)
        try:
            yield module.eval()
        finally:
            module.to("meta")

    def run_layer(self, module: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (batch, tokens, hidden_size) after one layer, with causal attention."""
        positions = torch.arange(hidden.shape[1]).unsqueeze(0)
        with torch.no_grad():
            result: Any = module(
                hidden,
                attention_mask=None,
                position_ids=positions,
                position_embeddings=self.position_embeddings(hidden),
            )
        output: torch.Tensor = result[0] if isinstance(result, tuple) else result
        return output

    def position_embeddings(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (1, tokens, head_dim) of the positions of (batch, tokens, …)."""
        positions = torch.arange(hidden.shape[1]).unsqueeze(0)
        cos, sin = self._rotary(hidden, positions)
        return cos, sin

    def hidden_states(self, token_ids: torch.Tensor, layers: int | None = None) -> torch.Tensor:
        """Hidden states after the first `layers` layers (all when None), before the last norm."""
        hidden = self.embed(token_ids)
        for number in range(self.arch.num_hidden_layers if layers is None else layers):
            with self.layer(number) as module:
                hidden = self.run_layer(module, hidden)
        return hidden

    def last_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """What lm_head reads, float32 like the `hidden` states (…, hidden_size)."""
        weight = self.weights["norm"].read().float()
        return rms_norm(hidden, (self.arch.hidden_size,), weight, self.arch.norm.eps)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 logits (…, vocab_size) of hidden states, the last norm included."""
        norm = self._modules.LlamaRMSNorm(self.arch.hidden_size, eps=self.arch.norm.eps)
        norm.load_state_dict({"weight": self.weights["norm"].read().to(self.dtype)}, assign=True)
        head = self.weights["lm_head"]
        out = torch.empty(*hidden.shape[:-1], head.shape[0])
        with torch.no_grad():
            normed = norm(hidden)
            for start in range(0, head.shape[0], HEAD_ROWS):
                stop = min(start + HEAD_ROWS, head.shape[0])
                rows = head.rows(start, stop).to(self.dtype)
                out[..., start:stop] = (normed @ rows.T).float()
        return out

    def _has_bias(self) -> bool:
        return any(name.endswith(BIAS) for name in self.weights)


def llama_config(
    arch: Architecture, cache_length: int | None = None, attention_bias: bool = False
) -> Any:
    """transformers' LlamaConfig of an architecture; see `Reference` for `cache_length`."""
    from transformers import LlamaConfig

    rope, theta = arch.rope, arch.rope.theta
    scaling = None if rope.scaling == "none" else rope.scaling
    if scaling == "dynamic" and cache_length is not None:
        theta = rope.base(arch.head_dim, cache_length, arch.max_position_embeddings)
        scaling = None
    return LlamaConfig(
        vocab_size=arch.vocab_size,
        hidden_size=arch.hidden_size,
        intermediate_size=arch.intermediate_size,
        num_hidden_layers=arch.num_hidden_layers,
        num_attention_heads=arch.num_attention_heads,
        num_key_value_heads=arch.num_key_value_heads,
        head_dim=arch.head_dim,
        max_position_embeddings=arch.max_position_embeddings,
        rms_norm_eps=arch.norm.eps,
        rope_theta=theta,
        rope_scaling={"rope_type": scaling, "factor": rope.factor} if scaling else None,
        attention_bias=attention_bias,
        attn_implementation="sdpa",
        hidden_act=HIDDEN_ACTS[arch.activation],
        tie_word_embeddings=False,
    )


def _parameter_name(leaf: str) -> str:
    """`q_proj_bias` as transformers' `self_attn.q_proj.bias`."""
    kind = leaf.removesuffix(BIAS)
    kind = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}.get(kind, kind)
    end = "bias" if leaf.endswith(BIAS) else "weight"
    if kind.endswith("norm"):
        return f"{kind}.{end}"
    part = "mlp" if kind in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    return f"{part}.{kind}.{end}"
