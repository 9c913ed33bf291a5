"""The float reference of a decoder: transformers' own class, on any of the decoder's weights.

Its class comes from config.json alone. A description decides where a tensor goes, and no more: it
says nothing to the reference of norms, windows or scales, so that the two can contradict each
other. For types that transformers does not have, a description names a stand-in: InternLM2 is
Llama with the rows of wqkv in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from converter.errors import ConvertError, Problem
from converter.model.architecture import Architecture
from converter.model.class_names import class_weights
from converter.model.config_view import transformers_config
from converter.model.decoder import Decoder, Place, published_places, published_weights
from converter.model.tensor_kinds import BIAS, EMBEDDING, HEAD, is_bias
from converter.model.transformers_model import TransformersModel, Vocabulary
from converter.weights.weight import Weight

HIDDEN_ACTS = {"gelu_tanh": "gelu_pytorch_tanh"}
"""Kinds of activations that transformers names differently."""


class Reference:
    """A decoder computed by transformers.

    Args:
        decoder: what was read of the checkpoint.
        weights: canonical weights to compute with; None takes the decoder's own.
        dtype: type of weights and activations while computing.
        cache_length: length for which a dynamic RoPE base is fixed; None follows the sequence, as
            transformers does.
    """

    def __init__(
        self,
        decoder: Decoder,
        weights: Mapping[str, Weight] | None = None,
        dtype: torch.dtype = torch.float32,
        cache_length: int | None = None,
    ) -> None:
        self.decoder, self.arch, self.dtype = decoder, decoder.architecture, dtype
        self.weights = decoder.weights if weights is None else weights
        if decoder.layout.reference == "config":
            config = transformers_config(decoder.checkpoint.config)
            named = class_weights(config, published_weights(decoder, self.weights))
            _fix_base(config, self.arch, cache_length)
        else:
            biased = any(name.endswith(f"_proj{BIAS}") for name in self.weights)
            config = llama_config(self.arch, cache_length, attention_bias=biased)
            named = dict(_as_llama(self.weights))
        weight, head = self.weights[EMBEDDING], self.weights[HEAD]
        table = Vocabulary(weight, head, self.weights.get(HEAD + BIAS))
        self._model = TransformersModel(config, named, table, dtype)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """What the first layer reads (batch, tokens, hidden_size) of int64 ids; reads only the
        embedding's rows in use."""
        found = self._model.embed(token_ids.reshape(-1, token_ids.shape[-1]))
        return found.reshape(*token_ids.shape, -1)

    def layer(self, number: int) -> AbstractContextManager[torch.nn.Module]:
        """transformers' decoder layer with its weights, for as long as the context lasts.

        At its end the module has none, whoever still holds it: the next layer takes their room.
        """
        return self._model.layer(number)

    def parameter(self, number: int, name: str) -> Weight | None:
        """The weight of a parameter of layer `number`, by its name in transformers' layer."""
        return self._model.parameter(number, name)

    def run_layer(
        self, module: torch.nn.Module, hidden: torch.Tensor, cache: Any = None
    ) -> torch.Tensor:
        """Hidden states (batch, tokens, hidden_size) after one layer; `cache` gets its keys and
        values, see `TransformersModel.run_layer`."""
        return self._model.run_layer(module, hidden, cache)

    @cached_property
    def places(self) -> dict[str, Place]:
        """Where the class has a layer's tensors: canonical name, as in `q_proj_bias`, to a place.

        A description's empty names have none.
        """
        before, parameters = self._model.first_prefix, self._model.layer_parameters()
        if self.decoder.layout.reference == "config":
            found = published_places(self.decoder.layout, self.arch)
        else:
            found = {kind: Place(f"{before}{name}") for kind, name in _llama_parameters()}
        inside = {
            kind: replace(place, name=place.name.removeprefix(before))
            for kind, place in found.items()
        }
        return {kind: place for kind, place in inside.items() if place.name in parameters}

    def owner(self, place: Place) -> torch.nn.Module:
        """The module of the class whose parameter a place is; it has no weights."""
        return self._model.layer_parameters()[place.name]

    def hidden_states(self, token_ids: torch.Tensor, layers: int | None = None) -> torch.Tensor:
        """Hidden states after the first `layers` layers (all when None), before the last norm."""
        return self._model.hidden_states(token_ids, layers)

    def head_input(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 (…, hidden_size): what the head multiplies, behind the last norm."""
        return self._model.head_input(hidden)

    def finished_logits(self, product: torch.Tensor) -> torch.Tensor:
        """float32 logits (tokens, vocab_size) of the head's product: scaled and capped."""
        return self._model.finished_logits(product)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 logits (…, vocab_size) of hidden states, the last norm included."""
        return self._model.logits(hidden)


def reference_problems(decoder: Decoder) -> tuple[Problem, ...]:
    """What keeps transformers' class from being run on a decoder's tensors.

    A stand-in's tensors are the decoder's own, so nothing can be missing there.
    """
    if decoder.layout.reference != "config":
        return ()
    try:
        Reference(decoder)
    except ConvertError as error:
        return error.problems
    return ()


def _fix_base(config: Any, arch: Architecture, cache_length: int | None) -> None:
    """Let a dynamic base be the one of `cache_length`, as the graph's caches have it."""
    if arch.rope.scaling == "dynamic" and cache_length is not None:
        base = arch.rope.base(arch.rotation.columns, cache_length, arch.max_position_embeddings)
        config.rope_parameters = {"rope_type": "default", "rope_theta": base}


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
    stated: dict[str, Any] = dict(rope.numbers)
    if rope.original:
        stated["original_max_position_embeddings"] = rope.original
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
        rope_scaling={"rope_type": scaling, "factor": rope.factor, **stated} if scaling else None,
        hidden_act=HIDDEN_ACTS.get(arch.activation, arch.activation),
        attention_bias=attention_bias,
        tie_word_embeddings=False,
    )


def _as_llama(weights: Mapping[str, Weight]) -> list[tuple[str, Weight]]:
    """Canonical weights under the names of transformers' Llama."""
    found = []
    for canonical, weight in weights.items():
        prefix, _, leaf = canonical.rpartition(".")
        kind, end = leaf.removesuffix(BIAS), "bias" if is_bias(leaf) else "weight"
        place = f"model.{prefix}." if prefix else "model."
        found.append((f"{place}{LLAMA_MODULES.get(kind, kind)}.{end}", weight))
    return found


LLAMA_MODULES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"{part}_proj": f"self_attn.{part}_proj" for part in ("q", "k", "v", "o")},
    **{f"{part}_proj": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}
"""Canonical names to the modules of transformers' Llama."""


def _llama_parameters() -> Iterator[tuple[str, str]]:
    for kind, module in LLAMA_MODULES.items():
        yield kind, f"{module}.weight"
        yield kind + BIAS, f"{module}.bias"
