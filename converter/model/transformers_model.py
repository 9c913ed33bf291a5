"""transformers' own class for a config, run layer by layer on lazy weights.

The class is built from config.json alone and never sees a description of this project. So what it
computes is an independent reference for every architecture that transformers has. Its parameters
stay on the meta device; a module gets its weights before it runs and loses them after. A model of
any size runs in the memory of one layer.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from converter.errors import ConvertError, Problem, raise_if
from converter.weights.weight import Weight

NUMBER = "number"
"""Attribute of a layer's copy."""
HEAD_ROWS = 8192
"""Rows of the head multiplied at a time."""
SHAPES = 4
"""Shapes of token ids whose calls are kept: calibration goes from batches to single tokens."""

Stub = Callable[[int, torch.Tensor], torch.Tensor]
"""What stands in for a layer: its number and its hidden states, to the hidden states after it."""


class Vocabulary(NamedTuple):
    """The embedding and the head (vocab_size, hidden_size), which may be the same weight.

    A class and the checkpoints that it reads may call them by different names.
    """

    embedding: Weight
    head: Weight
    head_bias: Weight | None = None


class Call(NamedTuple):
    """How the class calls a layer, the hidden states left out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class TransformersModel:
    """A causal language model of transformers, in the memory of one layer.

    Args:
        config: transformers' config of the model (`PretrainedConfig`); it is copied.
        weights: weights by the names of the class's parameters, as in its `state_dict`. Only
            biases, which are zero then, may be absent.
        vocabulary: the embedding and the head.
        dtype: type of weights and activations while computing.

    Raises `ConvertError` if transformers has no causal language model for the config, if weights
    lack a parameter of a layer, and, when it runs, if layers read token ids besides.
    """

    def __init__(
        self,
        config: Any,
        weights: Mapping[str, Weight],
        vocabulary: Vocabulary,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.weights, self.dtype = _plain_config(config), weights, dtype
        self._vocabulary = vocabulary
        self._model = _empty_model(self.config, dtype)
        self._prefix, self._layers = _decoder_layers(self._model)
        self._check_layers()
        self._head = self._replace_head()
        self._rotaries = self._modules_of_buffers()
        self._watch_the_rest()
        self._wants_tuples: bool | None = None
        self._calls: dict[tuple[int, ...], list[Call]] = {}

    @property
    def num_layers(self) -> int:
        """Decoder layers of the model."""
        return len(self._layers)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Hidden states (batch, tokens, hidden_size) before the first layer, of int64 ids.

        They are scaled where the class does so. Reads only the rows of the embedding in use.
        """
        return self._record(token_ids)

    @contextmanager
    def layer(self, number: int) -> Iterator[torch.nn.Module]:
        """The class's decoder layer with its weights, for as long as the context lasts.

        At its end the module has none, whoever still holds it: the next layer takes their room.
        Raises `ConvertError` if the weights lack a parameter or have it in another shape.
        """
        module = copy.deepcopy(self._layers[number])  # whoever gets it may change its modules
        module.__dict__[NUMBER] = number
        try:
            self._give(f"{self._prefix}.{number}", module, self.dtype)
            yield module
        finally:
            _take(module)

    def run_layer(
        self, module: torch.nn.Module, hidden: torch.Tensor, cache: Any = None
    ) -> torch.Tensor:
        """Hidden states (batch, tokens, hidden_size) after one layer that `layer` gave.

        The layer is called as the class calls it: its mask, positions and their rotations. What
        it stores of keys and values goes to `cache`, which has the method `update` of
        transformers' caches. Gradients are kept where they are enabled and `hidden` asks for them.
        """
        call = self._calls_of(hidden)[module.__dict__[NUMBER]]
        kwargs = call.kwargs if cache is None else {**call.kwargs, _cache_argument(module): cache}
        with torch.set_grad_enabled(torch.is_grad_enabled() and hidden.requires_grad):
            result: Any = module(hidden, *call.args, **kwargs)
        output: torch.Tensor = result[0] if isinstance(result, tuple) else result
        return output

    @property
    def first_prefix(self) -> str:
        """What stands before the names of the first layer's parameters."""
        return f"{self._prefix}.0."

    def layer_parameters(self) -> dict[str, torch.nn.Module]:
        """The parameters of all kinds of layers, by their names in a layer, with the modules whose
        they are; the modules have no weights."""
        return {
            name: layer.get_submodule(name.rpartition(".")[0])
            for layer in reversed(self._layers)
            for name, _ in layer.named_parameters()
        }

    def parameter(self, number: int, name: str) -> Weight | None:
        """The weight of a layer's parameter, such as self_attn.q_proj.weight."""
        return self.weights.get(f"{self._prefix}.{number}.{name}")

    def _calls_of(self, hidden: torch.Tensor) -> list[Call]:
        shape = tuple(hidden.shape[:2])
        if shape not in self._calls:
            with torch.no_grad():
                self._record(torch.zeros(shape, dtype=torch.int64))
        return self._calls[shape]

    def hidden_states(self, token_ids: torch.Tensor, layers: int | None = None) -> torch.Tensor:
        """Hidden states after the first `layers` layers (all when None), before the last norm."""
        hidden = self.embed(token_ids)
        for number in range(self.num_layers if layers is None else layers):
            with self.layer(number) as module:
                hidden = self.run_layer(module, hidden)
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 logits (…, vocab_size) of hidden states (…, hidden_size) after the last layer.

        The class's last norm, the scale of its logits and their softcap are included.
        """
        with torch.no_grad():
            found = self._finish(hidden)
        return found.float().reshape(*hidden.shape[:-1], found.shape[-1])

    def head_input(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 (…, hidden_size): what the head multiplies of hidden states after the last layer.

        Gradients are kept where they are enabled.
        """
        with self._head.replaced(lambda given: given[..., :1]) as heard:
            self._finish(hidden)
        return heard[0].float().reshape(hidden.shape)

    def finished_logits(self, product: torch.Tensor) -> torch.Tensor:
        """float32 logits (tokens, vocab_size) when the head's product, its bias included, is given.

        That is the class's scale and softcap. Gradients are kept where they are enabled.
        """
        hidden = torch.zeros(1, product.shape[0], self.config.get_text_config().hidden_size)
        with self._head.replaced(lambda _: product[None]):
            found = self._finish(hidden)
        return found[0].float()

    def _record(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Keep how the class calls its layers for (batch, tokens) ids; what the first one gets."""
        calls: list[Call] = []
        first: list[torch.Tensor] = []

        def keep(number: int, hidden: torch.Tensor) -> torch.Tensor:
            first[:] = first or [hidden]
            return hidden

        with torch.no_grad(), self._head.replaced(lambda given: given[..., :1]):
            self._run(token_ids, keep, calls)
        if len(self._calls) >= SHAPES:
            self._calls.clear()
        self._calls[tuple(token_ids.shape)] = calls
        return first[0]

    def _finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """The class's logits (batch, tokens, vocab_size) when its last layer gives `hidden`.

        The last norm computes in float32.
        """
        given = hidden.float()
        given = given if given.dim() == 3 else given.reshape(1, -1, given.shape[-1])
        ids, last = torch.zeros(given.shape[:2], dtype=torch.int64), self.num_layers - 1
        return self._run(ids, lambda number, x: given if number == last else x)

    def _run(
        self, token_ids: torch.Tensor, stub: Stub, calls: list[Call] | None = None
    ) -> torch.Tensor:
        """Logits of the class when `stub` stands in for every layer; `calls` gets their calls."""
        self._restore_rotaries()
        with self._stubbed(stub, self._takes_tuples(), [] if calls is None else calls):
            output = self._model(input_ids=token_ids, use_cache=False, return_dict=True)
        logits: torch.Tensor = output.logits
        return logits

    @contextmanager
    def _stubbed(self, stub: Stub, tuples: bool, calls: list[Call]) -> Iterator[None]:
        def forward(number: int, *args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            calls.append(Call(args[1:], kwargs))
            result = stub(number, hidden)
            return (result,) if tuples else result

        for number, layer in enumerate(self._layers):
            layer.__dict__["forward"] = partial(forward, number)
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.__dict__["forward"]

    def _takes_tuples(self) -> bool:
        """Whether the class takes element 0 of what a layer returns.

        A tensor in the place of a tuple loses its first axis, so one run tells. A second tells
        whether layers get anything else that follows from the token ids; `run_layer` has none.
        """
        if self._wants_tuples is None:
            (states, calls), (_, others) = self._probe(0), self._probe(1)
            if not _equal(calls, others):
                raise ConvertError(
                    Problem(
                        f"The layers of transformers' {type(self._model).__name__} read token ids.",
                        "layers that read nothing but hidden states, positions and masks",
                        "choose a model of another architecture",
                    )
                )
            self._wants_tuples = states[1].dim() != 3
        return self._wants_tuples

    def _probe(self, token_id: int) -> tuple[list[torch.Tensor], list[Call]]:
        """What each layer gets for one token, and the last norm's result; how layers are called.

        Each layer gives what the first one got.
        """
        states: list[torch.Tensor] = []
        calls: list[Call] = []

        def stub(_: int, hidden: torch.Tensor) -> torch.Tensor:
            states.append(hidden)
            return states[0]

        ids = torch.full((1, 1), token_id)
        with torch.no_grad(), self._stubbed(stub, False, calls):
            output = self._model.base_model(input_ids=ids, use_cache=False, return_dict=True)
        return [*states, output.last_hidden_state], calls

    def _give(self, prefix: str, module: torch.nn.Module, dtype: torch.dtype) -> None:
        """Set a module's parameters, and the buffers that the weights have, from the weights."""
        found: dict[str, Weight | None] = {}
        problems: list[Problem] = []
        for name, parameter in module.named_parameters():
            weight = self.weights.get(f"{prefix}.{name}")
            problems += _parameter_problems(f"{prefix}.{name}", parameter, weight)
            found[name] = weight
        raise_if(problems)
        for name, parameter in list(module.named_parameters()):
            weight = found[name]
            if weight is not None and _reads_one_by_one(module, name):
                _set_stack(module, name, ExpertParameter(weight, dtype))
                continue
            values = torch.zeros(parameter.shape) if weight is None else weight.read()
            _set_parameter(module, name, values.to(dtype))
        for name, buffer in module.named_buffers():
            weight = self.weights.get(f"{prefix}.{name}")
            if weight is not None and weight.shape:  # a number follows from config.json
                buffer.copy_(weight.read())

    def _give_before(self, prefix: str, module: torch.nn.Module, _: Any) -> None:
        self._give(prefix, module, torch.float32)

    def _replace_head(self) -> _Head:
        """Put a head that reads its rows in parts into the place of the class's."""
        old, given = self._model.get_output_embeddings(), self._vocabulary
        raise_if(_parameter_problems("the head", old.weight, given.head))
        head = _Head(given.head, given.head_bias, self.dtype)
        self._model.set_submodule(_name_of(self._model, old), head)
        return head

    def _check_layers(self) -> None:
        """Raise what the layers have and the weights lack, a problem for each kind of parameter."""
        missing: dict[str, tuple[str, torch.Tensor, int]] = {}
        for number, layer in enumerate(self._layers):
            for name, parameter in layer.named_parameters():
                full = f"{self._prefix}.{number}.{name}"
                if full not in self.weights and not name.endswith("bias"):
                    first, shape, count = missing.get(name, (full, parameter, 0))
                    missing[name] = first, shape, count + 1
        raise_if(_missing(*item) for item in missing.values())

    def _watch_the_rest(self) -> None:
        """Let what is outside of the layers get its weights when it runs: norms, the embedding."""
        embedding = self._model.get_input_embeddings()
        weight = self._vocabulary.embedding
        raise_if(_parameter_problems("the embedding", embedding.weight, weight))
        embedding.padding_idx = None  # it may lie beyond the rows in use; only gradients read it
        embedding.register_forward_pre_hook(partial(self._give_rows, weight))
        embedding.register_forward_hook(_take_after)
        for prefix, module in self._model.named_modules():
            inside = f"{prefix}.".startswith(f"{self._prefix}.")
            own = next(module.parameters(recurse=False), None)
            if own is None or inside or module is embedding:
                continue
            module.register_forward_pre_hook(partial(self._give_before, prefix))
            module.register_forward_hook(_take_after)

    def _give_rows(self, weight: Weight, module: torch.nn.Module, args: Any) -> tuple[torch.Tensor]:
        """Give the embedding the rows of the ids that it is called with, and count ids by them."""
        ids, places = torch.unique(args[0], return_inverse=True)
        _set_parameter(module, "weight", weight.permute_rows(ids).read().to(self.dtype))
        return (places,)

    def _modules_of_buffers(self) -> dict[str, torch.nn.Module]:
        """Copies of the modules outside of the layers that have buffers alone, by their names."""
        return {
            name: copy.deepcopy(module)
            for name, module in self._model.named_modules()
            if next(module.buffers(recurse=False), None) is not None
            and next(module.parameters(), None) is None
            and not name.startswith(f"{self._prefix}.")
        }

    def _restore_rotaries(self) -> None:
        """Undo what a longer sequence left: a dynamic RoPE keeps the frequencies of its length."""
        for name, module in self._rotaries.items():
            self._model.set_submodule(name, copy.deepcopy(module))


class ExpertParameter:
    """A parameter (experts, …) of which a class reads one expert at a time, as it computes it."""

    def __init__(self, weight: Weight, dtype: torch.dtype) -> None:
        self._weight, self._dtype = weight, dtype
        self.watch: Callable[[int, torch.Tensor], None] | None = None
        """Told the number of an expert, and each tensor that the class multiplies it with."""

    def __getitem__(self, expert: Any) -> torch.Tensor:
        """The expert's part; reads it."""
        number = int(expert)
        found = self._weight.rows(number, number + 1)[0].to(self._dtype)
        if self.watch is None:
            return found
        watched = found.as_subclass(_Watched)
        watched.told = partial(self.watch, number)
        return watched


class _Watched(torch.Tensor):
    """A matrix that tells what stands before it in a product."""

    told: Callable[[torch.Tensor], None]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if len(args) > 1 and isinstance(args[1], cls) and not isinstance(args[0], cls):
            args[1].told(args[0])
        plain = [item.as_subclass(torch.Tensor) if isinstance(item, cls) else item for item in args]
        return func(*plain, **(kwargs or {}))


class _Head(torch.nn.Module):
    """The output embedding, whose rows are read and multiplied in parts."""

    def __init__(self, weight: Weight, bias: Weight | None, dtype: torch.dtype) -> None:
        super().__init__()
        self._weight, self._bias, self._dtype = weight, bias, dtype
        self._instead: Callable[[torch.Tensor], torch.Tensor] | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (batch, tokens, vocab_size) of (batch, tokens, hidden_size)."""
        if self._instead is not None:
            return self._instead(hidden)
        hidden, vocab_size = hidden.to(self._dtype), self._weight.shape[0]
        out = torch.empty(*hidden.shape[:-1], vocab_size, dtype=hidden.dtype)
        for start in range(0, vocab_size, HEAD_ROWS):
            stop = min(start + HEAD_ROWS, vocab_size)
            out[..., start:stop] = hidden @ self._weight.rows(start, stop).to(self._dtype).T
        return out if self._bias is None else out.add_(self._bias.read().to(self._dtype))

    @contextmanager
    def replaced(
        self, instead: Callable[[torch.Tensor], torch.Tensor]
    ) -> Iterator[list[torch.Tensor]]:
        """Multiply nothing, and give what `instead` makes of the input; what the head was given."""
        heard: list[torch.Tensor] = []

        def keep(hidden: torch.Tensor) -> torch.Tensor:
            heard.append(hidden)
            return instead(hidden)

        self._instead = keep
        try:
            yield heard
        finally:
            self._instead = None


def _plain_config(config: Any) -> Any:
    """A copy of the config that asks for no output but logits."""
    found = copy.deepcopy(config)
    for name in ("output_router_logits", "output_hidden_states", "output_attentions"):
        if getattr(found, name, False):
            setattr(found, name, False)
    padding, rows = getattr(found, "pad_token_id", None), getattr(found, "vocab_size", None)
    if isinstance(padding, int) and isinstance(rows, int) and padding >= rows:
        found.pad_token_id = None  # the class would refuse to be made; only gradients read it
    found._experts_implementation = "eager"  # a loop over the experts, which reads one at a time
    return found


def _empty_model(config: Any, dtype: torch.dtype) -> Any:
    """The class of a config in evaluation mode: parameters on the meta device, buffers real."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConvertError(
            Problem(
                f"The type {config.model_type} has no causal language model in transformers.",
                "a model_type that transformers' AutoModelForCausalLM knows",
                "correct model_type in config.json, or update transformers",
            )
        )
    attention = "sdpa" if MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa else "eager"
    with _parameters_on_meta():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return model.eval().requires_grad_(False)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made in the context have their parameters on the meta device.

    A parameter is moved there before anything fills it, so its memory is never touched.
    """

    def move(_module: torch.nn.Module, _name: str, parameter: Any) -> Any:
        if parameter is None or parameter.is_meta:
            return parameter
        return torch.nn.Parameter(parameter.to("meta"), requires_grad=False)

    handle = register_module_parameter_registration_hook(move)
    try:
        yield
    finally:
        handle.remove()


def _decoder_layers(model: Any) -> tuple[str, list[torch.nn.Module]]:
    """The name of the list of decoder layers, and the layers."""
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return name, list(module)
    raise ConvertError(
        Problem(
            f"The class {type(model).__name__} of transformers has no list of {count} layers.",
            "as many decoder layers as num_hidden_layers of config.json",
            "correct num_hidden_layers in config.json",
        )
    )


def _name_of(model: Any, module: torch.nn.Module) -> str:
    names: Iterator[str] = (name for name, found in model.named_modules() if found is module)
    return next(names)


def _parameter_problems(
    name: str, parameter: torch.Tensor, weight: Weight | None
) -> Iterator[Problem]:
    """What keeps a weight from being a parameter of the class; biases may be absent."""
    wanted = tuple(parameter.shape)
    if weight is None and not name.endswith("bias"):
        yield Problem(
            f"{name} is missing.",
            f"a tensor of shape {wanted}, which transformers' own class has",
            "check that config.json and the tensors are of one model",
        )
    elif weight is not None and weight.shape != wanted:
        yield Problem(
            f"{name} has the shape {weight.shape}.",
            f"the shape {wanted}, which transformers' own class has",
            "check that config.json and the tensors are of one model",
        )


def _missing(name: str, parameter: torch.Tensor, count: int) -> Problem:
    layers = f" in {count} layers" if count > 1 else ""
    return Problem(
        f"The architecture names no tensor for {name}{layers}, which transformers' class has.",
        f"a tensor of shape {tuple(parameter.shape)}",
        "choose the architecture of this model, or add it to layout.layer_tensors",
    )


def _set_parameter(module: torch.nn.Module, name: str, values: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    parameter = torch.nn.Parameter(values, requires_grad=False)
    setattr(module.get_submodule(owner), leaf, parameter)


def _cache_argument(layer: torch.nn.Module) -> str:
    """The name by which a layer takes its cache."""
    names = inspect.signature(layer.forward).parameters
    return "layer_past" if "layer_past" in names else "past_key_values"


def _reads_one_by_one(module: torch.nn.Module, name: str) -> bool:
    """Whether a parameter is a stack of experts, over which its module loops."""
    owner, _, leaf = name.rpartition(".")
    found = module.get_submodule(owner)
    return hasattr(found, "_apply_gate") and found.get_parameter(leaf).dim() == 3


def _set_stack(module: torch.nn.Module, name: str, stack: ExpertParameter) -> None:
    """Put a stack in front of the parameter of its name, which stays on the meta device."""
    owner, _, leaf = name.rpartition(".")
    module.get_submodule(owner).__dict__[leaf] = stack


def _take(module: torch.nn.Module) -> None:
    """Move a module's parameters to the meta device; its buffers stay."""
    for part in module.modules():
        stacks = [name for name, item in vars(part).items() if isinstance(item, ExpertParameter)]
        for name in stacks:
            del part.__dict__[name]
    for name, parameter in list(module.named_parameters()):
        if not parameter.is_meta:
            _set_parameter(module, name, torch.empty_like(parameter, device="meta"))


def _take_after(module: torch.nn.Module, _args: Any, _output: Any) -> None:
    _take(module)


def _equal(one: Any, other: Any) -> bool:
    """Whether two structures of tuples, lists and mappings hold equal tensors."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return True
