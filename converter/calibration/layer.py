"""One decoder layer in stages, so that each linear sees the inputs that rounding has changed.

transformers' own layer does the work, whatever its norms, rotations, residuals and multipliers are.
A stage's input is what the layer gives to a linear: the layer runs until that linear and stops.
What it computed before, the attention block's result and the product in the feed-forward block, is
kept by the caller and given back, so that nothing is computed twice. Norms and the residual stream
stay in float32 whatever the type of the matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from converter.calibration.experts import LayerExperts
from converter.errors import ConvertError, Problem
from converter.model.decoder import Decoder, Place
from converter.model.reference import Reference
from converter.model.tensor_kinds import FEED_FORWARD_POST_NORM
from converter.quantization.quantized_matrix import not_finite
from converter.weights.weight import Weight

STAGES = {
    "attention": ("q_proj", "k_proj", "v_proj"),
    "output": ("o_proj",),
    "feed_forward": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
    "shared": ("shared_gate_proj", "shared_up_proj"),
    "shared_down": ("shared_down_proj",),
}
"""The groups of linears with common inputs, in the order in which they are rounded. A layer with
experts has no feed-forward block, and may have a shared expert."""
OUTPUT, DOWN = "o_proj", "down_proj"
"""The last linears of the attention and of the feed-forward block."""
REQUIRED = ("q_proj", "k_proj", "v_proj", OUTPUT)
FED = ("up_proj", DOWN)
"""Linears of a layer without experts, besides `REQUIRED`."""
TOLERANCE = 1e-3
"""Largest relative error of a token that runs in stages; bfloat16 is allowed `HALF_TOLERANCE`."""
HALF_TOLERANCE = 3e-2


def stage_problems(decoder: Decoder, words: str) -> Iterator[Problem]:
    """Why the layers of a decoder cannot be calibrated: their linears are not these stages'.

    `words` are those that do without it.
    """
    try:
        reference = Reference(decoder)
    except ConvertError as error:
        yield from error.problems
        return
    experts, count = decoder.architecture.experts, decoder.architecture.num_hidden_layers
    dense = [n for n in range(count) if experts is None or not experts.layers[n]]
    for part in REQUIRED + FED if dense else REQUIRED:
        place = reference.places.get(part)
        layers = dense if part in FED else range(count)
        named = all(f"layers.{number}.{part}" in decoder.weights for number in layers)
        module = reference.owner(place) if place and named else None
        if not isinstance(module, torch.nn.Linear) or "." not in _module(place):
            kind = decoder.checkpoint.config.get("model_type")
            yield Problem(
                f"The recipe calibrates, and not every layer of type {kind} has the linear {part} "
                "in a block of its own.",
                f"{', '.join(REQUIRED + FED)} in every layer, or no calibration",
                f"add {words}",
                key=("quant.round", "quant.smooth"),
            )
            return


class LayerStages:
    """The stages of layer `number`; `module` is transformers' layer with its weights.

    Tensors are (batch, tokens, columns): hidden states float32, inputs of linears in the
    reference's dtype. `attended` is what the attention block gives for the hidden states, and `fed`
    what the feed-forward block gives, both float32 (batch, tokens, hidden_size).

    Raises:
        ConvertError: a token that runs in stages differs from one that runs in the whole layer.
    """

    def __init__(self, reference: Reference, module: Any, number: int) -> None:
        self._reference, self._module, self._number = reference, module, number
        self._places = {
            kind: place
            for kind, place in reference.places.items()
            if f"layers.{number}.{kind}" in reference.weights
        }
        self._parts = [part for parts in STAGES.values() for part in parts if part in self._places]
        self._attention, self._feed = (
            _module(self._places.get(part)).rpartition(".")[0] for part in (OUTPUT, DOWN)
        )
        self.stages = [s for s, parts in STAGES.items() if {*parts} & {*self._parts}]
        """Those of `STAGES` that this layer has."""
        self._results: dict[str, Any] = {}
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        for name in dict.fromkeys(_module(self._places[part]) for part in self._parts):
            module.get_submodule(name).register_forward_pre_hook(_as_weight)
        for part in {OUTPUT, DOWN} & {*self._parts}:  # what they give goes to the residual stream
            self._linear(part).register_forward_hook(_widened)
        self.take(reference.weights)
        self._check()

    def take(self, weights: Mapping[str, Weight]) -> None:
        """Use the norms and biases of `weights`, which folds may have scaled."""
        for kind in self._places:
            if kind not in self._parts:
                self._put(kind, weights[f"layers.{self._number}.{kind}"].read())

    def set(self, part: str, weight: torch.Tensor) -> None:
        """Put a matrix, such as a rounded one, in the place of `part` (q_proj, …)."""
        self._put(part, weight)

    def attention_input(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._input_of("attention", hidden)

    def output_input(self, hidden: torch.Tensor) -> torch.Tensor:
        """What attention mixes for the output projection."""
        return self._input_of("output", hidden)

    def attended(self, context: torch.Tensor) -> torch.Tensor:
        """What the attention block gives, from its output projection's input."""
        found: torch.Tensor = self._linear(OUTPUT)(context)
        return found

    @property
    def has_experts(self) -> bool:
        """Whether experts stand in the place of the feed-forward block."""
        return not self._feed

    def shared_input(
        self, stage: str, hidden: torch.Tensor, attended: torch.Tensor
    ) -> torch.Tensor:
        """The input of a stage of the shared expert."""
        return self._input_of(stage, hidden, attended)

    def behind_attention(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The layer's result, float32, with all that is behind the attention block."""
        with self._given({self._attention: attended}):
            return self._reference.run_layer(self._module, hidden).float()

    def watching(self, seen: LayerExperts) -> AbstractContextManager[None]:
        """Let `seen` count what the experts are given meanwhile."""
        return seen.watching(self._module)

    def feed_forward_input(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        return self._input_of("feed_forward", hidden, attended)

    def down_input(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        return self._input_of("down", hidden, attended)

    def fed(self, product: torch.Tensor) -> torch.Tensor:
        """What the feed-forward block gives, from its down projection's input."""
        found: torch.Tensor = self._linear(DOWN)(product)
        return found

    def result(
        self, hidden: torch.Tensor, attended: torch.Tensor, fed: torch.Tensor
    ) -> torch.Tensor:
        """The layer's result, float32."""
        with self._given({self._attention: attended, self._feed: fed}):
            return self._reference.run_layer(self._module, hidden).float()

    def run(self, hidden: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The inputs of all stages, by `STAGES`, and the layer's result, float32."""
        found: dict[str, torch.Tensor] = {}

        def keep(stage: str) -> Any:
            def look(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
                found[stage] = args[0]

            return look

        hooks = [self._first(stage).register_forward_pre_hook(keep(stage)) for stage in self.stages]
        with _removed(hooks):
            result = self._reference.run_layer(self._module, hidden)
        return {stage: _apart(found[stage], hidden) for stage in self.stages}, result.float()

    def gradients(
        self, hidden: torch.Tensor, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """From the gradient of the layer's result: that of `hidden`, and of each linear's output.

        All are (batch, tokens, columns); the linears' go by their parts' names.
        """
        outputs: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Any:
            def look(_module: Any, _args: Any, output: torch.Tensor) -> None:
                outputs[name] = output

            return look

        hidden = hidden.float().detach().requires_grad_(True)
        modules = {part: _module(self._places[part]) for part in self._parts}
        hooks = [
            self._module.get_submodule(name).register_forward_hook(keep(name))
            for name in dict.fromkeys(modules.values())
        ]
        unread = DOWN in self._parts and FEED_FORWARD_POST_NORM not in self._places
        last = _unread(self._linear(DOWN)) if unread else nullcontext()
        with torch.enable_grad(), _removed(hooks), last:
            result = self._reference.run_layer(self._module, hidden)
            below, *others = torch.autograd.grad(result, [hidden, *outputs.values()], gradient)
        by_module = dict(zip(outputs, others, strict=True))
        found = {}
        for part, name in modules.items():
            rows, own = self._places[part].rows, _apart(by_module[name], hidden)
            found[part] = own if rows is None else own[..., rows]
        return below, found

    def _input_of(
        self, stage: str, hidden: torch.Tensor, attended: torch.Tensor | None = None
    ) -> torch.Tensor:
        def stop(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
            raise _Reached(args[0])

        given = {} if attended is None else {self._attention: attended}
        hook = self._first(stage).register_forward_pre_hook(stop)
        try:
            with _removed([hook]), self._given(given):
                self._reference.run_layer(self._module, hidden)
        except _Reached as reached:
            return _apart(reached.value, hidden)
        raise AssertionError(f"the layer does not run {stage}")

    @contextmanager
    def _given(self, results: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Let blocks, by the names of their modules, give these tensors and compute nothing."""
        blocks = {name: self._module.get_submodule(name) for name in results}
        for name, block in blocks.items():
            block.__dict__["forward"] = _constant(self._results[name], results[name])
        try:
            yield
        finally:
            for block in blocks.values():
                del block.__dict__["forward"]

    def _check(self) -> None:
        """Run a token through the whole layer, then in stages; keep what the blocks return."""

        def keep(name: str) -> Any:
            def look(_module: Any, _args: Any, result: Any) -> None:
                self._results[name] = result

            return look

        blocks = [name for name in (self._attention, self._feed) if name]
        hooks = [
            self._module.get_submodule(name).register_forward_hook(keep(name)) for name in blocks
        ]
        width = self._reference.arch.hidden_size
        token = torch.linspace(-1, 1, width).roll(width // 3)[None, None]
        with torch.no_grad():
            with _removed(hooks):
                states, whole = self.run(token)
            attended = self.attended(states["output"])
            if self.has_experts:
                staged = self.behind_attention(token, attended)
            else:
                fed = self.fed(self.down_input(token, attended))
                staged = self.result(token, attended, fed)
        error = float((staged - whole).norm() / whole.norm())
        limit = TOLERANCE if self._reference.dtype == torch.float32 else HALF_TOLERANCE
        if error > limit:
            raise ConvertError(
                Problem(
                    f"Layer {self._number} of transformers' class differs by {error:.1e} when its "
                    "blocks run one by one.",
                    "attention and feed-forward whose results are those of o_proj and down_proj",
                    "add quant=rtn, which does not calibrate",
                )
            )

    def _first(self, stage: str) -> Any:
        """The first linear of a stage."""
        return self._linear(next(part for part in STAGES[stage] if part in self._places))

    def _linear(self, part: str) -> Any:
        return self._module.get_submodule(_module(self._places[part]))

    def _put(self, kind: str, values: torch.Tensor) -> None:
        """Set a parameter, or the rows of a fused one that `kind` has."""
        place = self._places[kind]
        owner, _, leaf = place.name.rpartition(".")
        blocks = [block for block in (self._attention, self._feed) if block]
        inside = any(f"{owner}.".startswith(f"{block}.") for block in blocks)
        values = values.to(self._reference.dtype if inside else torch.float32)
        module = self._module.get_submodule(owner)
        if place.rows is not None:
            whole = getattr(module, leaf).detach().clone()
            whole[place.rows] = values
            values = whole
        setattr(module, leaf, torch.nn.Parameter(values, requires_grad=False))


class _Reached(Exception):
    """Ends a layer's run at a linear, whose input is `value`."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value


class _Unread(torch.autograd.Function):
    """A linear whose result nobody reads: zeros, and the gradient of the product."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return torch.zeros(()).expand(*inputs.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return gradient.to(weight.dtype) @ weight, None


def _unread_product(weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = _Unread.apply(inputs, weight)  # type: ignore[no-untyped-call]
    return found


@contextmanager
def _unread(linear: Any) -> Iterator[None]:
    """Let a linear multiply nothing, where nothing but its gradient matters."""
    linear.__dict__["forward"] = partial(_unread_product, linear.weight)
    try:
        yield
    finally:
        del linear.__dict__["forward"]


@contextmanager
def _removed(hooks: list[Any]) -> Iterator[None]:
    """Remove hooks at the end."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _apart(values: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, columns), also where a block has put all tokens in one row."""
    return values.reshape(*hidden.shape[:2], values.shape[-1])


def _as_weight(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """A linear's input in the type of its weight."""
    return (args[0].to(module.weight.dtype), *args[1:])


def _widened(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
    return output.float()


def _constant(structure: Any, value: torch.Tensor) -> Any:
    """A forward that gives `value` in the place where `structure` has its first tensor."""

    def forward(*_args: Any, **_kwargs: Any) -> Any:
        if isinstance(structure, tuple):
            return (value, *structure[1:])
        return value

    return forward


def _module(place: Place | None) -> str:
    """The name of the module whose parameter a place is."""
    return "" if place is None else place.name.rpartition(".")[0]


def check_weights(module: Any, reference: Reference, number: int) -> None:
    """Raise ConvertError when a weight of transformers' layer `number` is not finite.

    Experts, which are read one at a time, are checked as they are rounded.
    """
    for name, parameter in module.named_parameters():
        if not parameter.is_meta and not bool(torch.isfinite(parameter).all()):
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
