"""One decoder layer in stages, so that each linear sees the inputs that rounding has changed.

transformers' own attention and feed-forward modules do the work; norms and the residual stream
stay in float32 whatever the type of the matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.nn import Identity
from torch.nn.functional import linear, rms_norm

from converter.errors import ConvertError, Problem
from converter.model.decoder import Decoder
from converter.model.reference import Reference
from converter.model.tensor_kinds import ATTENTION_NORM, BIAS, FEED_FORWARD_NORM, NORMS
from converter.quantization.quantized_matrix import not_finite
from converter.weights.weight import Weight

STAGES = {
    "attention": ("q_proj", "k_proj", "v_proj"),
    "output": ("o_proj",),
    "feed_forward": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
"""The groups of linears with common inputs, in the order in which a layer computes them."""


PARTS = {
    **{part: "self_attn" for part in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{part: "mlp" for part in ("gate_proj", "up_proj", "down_proj")},
}
"""The linears of a layer, and the module of transformers' layer that holds each."""


def stage_problems(decoder: Decoder, words: str) -> Iterator[Problem]:
    """Why the layers of a decoder cannot be calibrated: they have more than these stages.

    `words` are those that do without it.
    """
    layout, arch = decoder.layout, decoder.architecture
    named = layout.layer_tensors
    as_llama = layout.reference == "llama" or all(
        (named.get(part) or "").removesuffix(".weight") == f"{owner}.{part}"
        for part, owner in PARTS.items()
    )
    norms = {ATTENTION_NORM, FEED_FORWARD_NORM}
    only = {name for name in NORMS if named.get(name) is not None} == norms
    biased = any(f"layers.0.{part}{BIAS}" in decoder.weights for part in ("gate_proj", "down_proj"))
    if not (as_llama and only and arch.is_plain and not biased):
        yield Problem(
            "The recipe calibrates, and this architecture has blocks besides Llama's.",
            "RMSNorm before attention and before SwiGLU, and nothing else, or no calibration",
            f"add {words}",
            key=("quant.round", "quant.smooth"),
        )


class LayerStages:
    """The stages of layer `number`; `module` is transformers' layer with its weights.

    Tensors are (1, tokens, columns): hidden states float32, inputs of linears in the reference's
    dtype.
    """

    def __init__(self, reference: Reference, module: Any, number: int) -> None:
        self._reference, self._module, self._number = reference, module, number
        self._norms: dict[str, torch.Tensor] = {}
        self._attention, self._mlp = module.self_attn, module.mlp
        self._output, self._down = self._attention.o_proj, self._mlp.down_proj
        self._attention.o_proj, self._mlp.down_proj = Identity(), Identity()
        module.output, module.down = self._output, self._down  # they go when the layer's weights go
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        self.take(reference.weights)

    def take(self, weights: Mapping[str, Weight]) -> None:
        """Use the norms and biases of `weights`, which folds may have scaled."""
        prefix = f"layers.{self._number}."
        for name in ("attn_norm", "ffn_norm"):
            self._norms[name] = weights[prefix + name].read().float()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            bias = weights.get(prefix + name + BIAS)
            if bias is not None:
                self._linear(name).bias = _parameter(bias.read(), self._reference.dtype)

    def set(self, part: str, weight: torch.Tensor) -> None:
        """Put a matrix, such as a rounded one, in the place of `part` (q_proj, …)."""
        self._linear(part).weight = _parameter(weight, self._reference.dtype)

    def attention_input(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._norm("attn_norm", hidden)

    def output_input(self, normed: torch.Tensor) -> torch.Tensor:
        """What attention mixes for the output projection, from its normed input."""
        found: torch.Tensor = self._attention(
            hidden_states=normed,
            attention_mask=None,
            position_embeddings=self._reference.position_embeddings(normed),
        )[0]
        return found

    def after_attention(self, hidden: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return hidden + linear(context, self._output.weight, self._output.bias).float()

    def feed_forward_input(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._norm("ffn_norm", hidden)

    def down_input(self, normed: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._mlp(normed)
        return found

    def after_feed_forward(self, hidden: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
        return hidden + linear(product, self._down.weight, self._down.bias).float()

    def run(self, hidden: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The inputs of all stages, by `STAGES`, and the layer's result."""
        normed = self.attention_input(hidden)
        context = self.output_input(normed)
        middle = self.after_attention(hidden, context)
        second = self.feed_forward_input(middle)
        product = self.down_input(second)
        states = dict(zip(STAGES, (normed, context, second, product), strict=True))
        return states, self.after_feed_forward(middle, product)

    def down_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of the down projection's input, from that of the layer's result."""
        weight: torch.Tensor = self._down.weight
        return gradient.to(weight.dtype) @ weight

    def linears(self) -> dict[str, torch.nn.Linear]:
        """All linears that run inside transformers' modules, by their parts' names."""
        names = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
        return {name: self._linear(name) for name in names}

    def _linear(self, part: str) -> Any:
        own = {"o_proj": self._output, "down_proj": self._down}
        if part in own:
            return own[part]
        owner = self._mlp if part in ("gate_proj", "up_proj") else self._attention
        return getattr(owner, part)

    def _norm(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        arch = self._reference.arch
        normed = rms_norm(hidden, (arch.hidden_size,), self._norms[name], arch.norm.eps)
        return normed.to(self._reference.dtype)


def check_weights(module: Any, reference: Reference, number: int) -> None:
    """Raise ConvertError when a weight of transformers' layer `number` is not finite."""
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            weight = reference.parameter(number, name)
            raise ConvertError(not_finite(weight.label if weight else name, parameter.dtype))


def check_finite(values: torch.Tensor, place: str) -> None:
    """Raise ConvertError when activations, or their squares, are not finite."""
    if not bool(torch.isfinite(values).all()):
        raise ConvertError(
            Problem(
                f"The activations of {place} have NaN or infinite values on the calibration text.",
                "finite activations, as a sound checkpoint gives",
                "check the checkpoint, or set calibration.compute=fp32",
            )
        )


def _parameter(values: torch.Tensor, dtype: torch.dtype) -> torch.nn.Parameter:
    return torch.nn.Parameter(values.to(dtype), requires_grad=False)
