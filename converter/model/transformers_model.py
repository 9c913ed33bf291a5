"""transformers' own class for a config.json, run layer by layer on lazy weights.

It never sees a description of ours: which blocks there are, which masks, frequencies and scales
each layer gets is what the class does. The model is built without its parameters; a layer gets its
weights for as long as it runs, so a model of any size runs in the memory of one layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from converter.errors import ConvertError, Problem
from converter.weights.weight import Weight

HEAD_ROWS = 8192
"""Rows of the head multiplied at a time."""
ATTENTIONS = ("sdpa", "eager")
"""Implementations of attention, in order of preference; some classes have the last one only."""


@dataclass(frozen=True)
class Vocabulary:
    """The embedding (vocab_size, hidden_size) and the head, which may be the same weight."""

    embedding: Weight
    head: Weight
    head_bias: Weight | None = None


@dataclass
class _Calls:
    """What the class passes to its layers besides the hidden states, for one shape."""

    shape: tuple[int, ...] = ()
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)


class TransformersModel:
    """A decoder computed by transformers.

    Args:
        config: transformers' config of the model.
        weights: of layers and last norm, by the class's names, such as model.norm.weight.
        table: the embedding and the head, which classes name differently.
        dtype: type of weights and activations while computing.

    Raises:
        ConvertError: the class has parameters, other than biases, that `weights` lacks.
    """

    def __init__(
        self,
        config: Any,
        weights: Mapping[str, Weight],
        table: Vocabulary,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._weights, self._table, self.dtype = weights, table, dtype
        self._model = _skeleton(config, dtype)
        self._prefix, self._layers = _layers_of(self._model, config.num_hidden_layers)
        self._calls, self._last = _Calls(), torch.empty(0)
        self._replaced = False
        self._embedding = self._model.get_input_embeddings()
        self._head = _LazyHead(table.head, table.head_bias, dtype)
        own = self._model.get_output_embeddings()
        name = next(name for name, module in self._model.named_modules() if module is own)
        self._model.set_submodule(name, self._head)
        self._embedding.padding_idx = None
        self._embedding.register_forward_pre_hook(self._give_rows)
        for number, layer in enumerate(self._layers):
            layer.forward = self._stub(number)
        self._check_names()
        self._give_rest()

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """What the first layer reads (…, tokens, hidden_size) of int64 ids (…, tokens)."""
        self._record(token_ids.reshape(-1, token_ids.shape[-1]))
        return self._first.reshape(*token_ids.shape, -1)

    def parameter(self, number: int, name: str) -> Weight | None:
        """The weight of a layer's parameter, such as self_attn.q_proj.weight."""
        return self._weights.get(f"{self._prefix}.{number}.{name}")

    @contextmanager
    def layer(self, number: int) -> Iterator[torch.nn.Module]:
        """The class's decoder layer with its weights, for as long as the context lasts.

        At its end the module has none, whoever still holds it: the next layer takes their room.
        """
        module = copy.deepcopy(self._layers[number])
        module.__dict__.pop("forward", None)
        prefix = f"{self._prefix}.{number}."
        module.load_state_dict(self._state(module, prefix), assign=True, strict=False)
        module.__dict__["number"] = number
        try:
            yield module.eval()
        finally:
            module.to("meta")

    def run_layer(self, module: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (batch, tokens, hidden_size) after a layer of `layer`."""
        self._record_shape(hidden)
        arguments, keywords = self._calls.arguments[module.__dict__["number"]]
        with torch.no_grad():
            result: Any = module(hidden, *arguments, **keywords)
        output: torch.Tensor = result[0] if isinstance(result, tuple) else result
        return output

    def position_embeddings(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (1, tokens, columns) that the first layer gets."""
        self._record_shape(hidden)
        found: tuple[torch.Tensor, torch.Tensor] = self._calls.arguments[0][1][
            "position_embeddings"
        ]
        return found

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 logits (…, vocab_size) of hidden states behind the last layer."""
        shaped = hidden if hidden.dim() == 3 else hidden.reshape(1, -1, hidden.shape[-1])
        self._last, self._replaced = shaped, True
        ids = torch.zeros(shaped.shape[:2], dtype=torch.int64)
        logits = self._forward(ids)
        self._last, self._replaced = torch.empty(0), False
        found: torch.Tensor = logits.reshape(*hidden.shape[:-1], -1)
        return found

    def _stub(self, number: int) -> Any:
        """Stands for a layer while the rest of the class runs: notes what the layer is given."""
        final = number == len(self._layers) - 1

        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if number == 0:
                self._first = hidden_states
                self._calls.arguments.clear()
            self._calls.arguments.append((args, kwargs))
            return self._last if final and self._replaced else hidden_states

        return forward

    def _record(self, token_ids: torch.Tensor) -> None:
        self._head.skips = True
        self._forward(token_ids)
        self._head.skips = False
        self._calls.shape = tuple(token_ids.shape)

    def _record_shape(self, hidden: torch.Tensor) -> None:
        if self._calls.shape != tuple(hidden.shape[:2]):
            self._record(torch.zeros(hidden.shape[:2], dtype=torch.int64))

    def _forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        self._calls.shape = ()
        with torch.no_grad():
            logits: torch.Tensor = self._model(input_ids=token_ids, use_cache=False).logits
        return logits

    def _give_rows(self, module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Give the embedding the rows in use, and ids that count those."""
        ids, places = torch.unique(args[0], return_inverse=True)
        rows = self._table.embedding.permute_rows(ids).read().to(self.dtype)
        module.weight = torch.nn.Parameter(rows, requires_grad=False)
        return (places, *args[1:])

    def _check_names(self) -> None:
        """Raise what the layers of the class need and `weights` lacks."""
        missing = [
            name
            for number, layer in enumerate(self._layers)
            for key, _ in layer.named_parameters()
            if not key.endswith("bias")
            and (name := f"{self._prefix}.{number}.{key}") not in self._weights
        ]
        if missing:
            raise ConvertError(_missing(missing))

    def _state(self, module: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
        """The parameters of a module, read; a bias that the checkpoint lacks is zero."""
        state, missing = {}, []
        for name, parameter in module.named_parameters():
            weight = self._weights.get(prefix + name)
            if weight is not None:
                state[name] = weight.read().to(self.dtype)
            elif name.endswith("bias"):
                state[name] = torch.zeros(parameter.shape, dtype=self.dtype)
            else:
                missing.append(prefix + name)
        if missing:
            raise ConvertError(_missing(missing))
        return state

    def _give_rest(self) -> None:
        """Read what is outside of the layers, the embedding and the head: the last norm."""
        for name, module in self._model.named_modules():
            inside = f"{name}.".startswith(f"{self._prefix}.")
            own = list(module.named_parameters(recurse=False))
            if own and not inside and module is not self._embedding:
                state = self._state(_only(module), f"{name}.")
                for key, value in state.items():
                    module.register_parameter(key, torch.nn.Parameter(value, requires_grad=False))


class _LazyHead(torch.nn.Module):
    """The product with a head of any size, in float32, some rows at a time."""

    def __init__(self, weight: Weight, bias: Weight | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.lazy, self.lazy_bias, self.dtype, self.skips = weight, bias, dtype, False

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 (…, vocab_size); nothing where only the layers' arguments are wanted."""
        if self.skips:
            return torch.zeros(*hidden.shape[:-1], 1)
        out = torch.empty(*hidden.shape[:-1], self.lazy.shape[0])
        for start in range(0, self.lazy.shape[0], HEAD_ROWS):
            stop = min(start + HEAD_ROWS, self.lazy.shape[0])
            rows = self.lazy.rows(start, stop).to(self.dtype)
            out[..., start:stop] = (hidden @ rows.T).float()
        return out if self.lazy_bias is None else out + self.lazy_bias.read().float()


def _only(module: torch.nn.Module) -> torch.nn.Module:
    """A holder of a module's own parameters, without those of its children."""
    holder = torch.nn.Module()
    for name, parameter in module.named_parameters(recurse=False):
        holder.register_parameter(name, parameter)
    return holder


def _skeleton(config: Any, dtype: torch.dtype) -> Any:
    """The class with parameters on the meta device and real buffers."""
    from transformers import AutoModelForCausalLM

    for attention in ATTENTIONS:
        try:
            with _without_parameters():
                model = AutoModelForCausalLM.from_config(
                    config, dtype=dtype, attn_implementation=attention
                )
            return model.eval()
        except ValueError:
            if attention == ATTENTIONS[-1]:
                raise
    raise AssertionError("a loop over attentions ends in return or raise")


@contextmanager
def _without_parameters() -> Iterator[None]:
    """Modules made inside have their parameters on the meta device; buffers stay real."""
    register = torch.nn.Module.register_parameter

    def on_meta(module: Any, name: str, parameter: Any) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = on_meta  # type: ignore
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore


def _layers_of(model: Any, count: int) -> tuple[str, list[Any]]:
    """Name and modules of the decoder layers."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return name, list(module)
    raise ConvertError(
        Problem(
            f"The class {type(model).__name__} of transformers has no list of {count} layers.",
            "a decoder with num_hidden_layers layers",
            "choose a checkpoint of a decoder that generates text",
        )
    )


def _missing(names: list[str]) -> Problem:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return Problem(
        f"The class of transformers has the parameter {names[0]}{more}, which the architecture "
        "does not name.",
        "a description that names every tensor",
        "add it to layout.tensors or layout.layer_tensors, or choose another architecture",
    )
