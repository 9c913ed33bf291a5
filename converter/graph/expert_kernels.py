"""What a target cannot compute of a decoder's experts, with the nearest that it can."""

from __future__ import annotations

from collections.abc import Iterator

from converter.errors import Problem
from converter.graph.kernels import kernels
from converter.graph.matrices import matrix_format
from converter.model.architecture import Architecture
from converter.model.tensor_kinds import EXPERTS_DOWN
from converter.providers import PROVIDERS
from converter.quantization.rtn import BlockFormat
from converter.recipe.schema import LEFT_IN_FLOAT, Recipe

INTEGER_BITS = 4
"""onnxruntime's QMoE computes experts of 8 bits with int8 activations only on the CPU, where every
folder is checked with float activations (docs/ContribOperators.md, QMoE's accuracy_level)."""


def expert_problems(recipe: Recipe, arch: Architecture) -> Iterator[Problem]:
    """Why a recipe's target does not run the experts of an architecture."""
    experts = arch.experts
    if experts is None or not any(experts.layers):
        return
    quantizes = recipe.quant.round != "none"
    form = matrix_format(EXPERTS_DOWN, recipe.quant) if quantizes else None
    provider, float_type = recipe.target.execution_provider, recipe.target.float_type
    operators = {
        name: float_type in kernels(provider).get(name, frozenset()) for name in ("MoE", "QMoE")
    }
    if not operators["MoE" if form is None else "QMoE"]:
        yield _no_kernel(provider, float_type, form, operators)
    elif form is not None:
        yield from _format_problems(form)
        if PROVIDERS[provider].plain_experts_only:
            yield from _plain_problems(provider, form, experts.normalize)


def _no_kernel(
    provider: str, float_type: str, form: BlockFormat | None, operators: dict[str, bool]
) -> Problem:
    what = "MoE" if form is None else "QMoE"
    if operators["QMoE"]:
        nearest = "set quant.experts.bits=4, with quant=rtn, for experts of 4 bits"
    elif operators["MoE"]:
        nearest = f"set quant.experts.bits={LEFT_IN_FLOAT} for experts in {float_type}"
    else:
        nearest = "choose export=cpu_int4 or export=cuda_int4, whose providers compute experts"
    return Problem(
        f"The model has experts, and {provider} has no kernel of {what} in {float_type}.",
        "a provider that computes them (converter/providers.py)",
        nearest,
        key=("target.execution_provider", "target.float_type", "quant.experts.bits"),
    )


def _format_problems(form: BlockFormat) -> Iterator[Problem]:
    if form.bits != INTEGER_BITS:
        yield Problem(
            f"The recipe asks for experts of {form.bits} bits, which QMoE computes with int8 "
            "activations alone, so that nothing can check them.",
            f"experts of {INTEGER_BITS} bits, or in float",
            f"set quant.experts.bits={INTEGER_BITS}, or quant.experts.bits={LEFT_IN_FLOAT}",
            key=("quant.bits", "quant.experts.bits"),
        )


def _plain_problems(provider: str, form: BlockFormat, normalize: bool) -> Iterator[Problem]:
    if not form.symmetric:
        yield Problem(
            f"The experts have zero points, which QMoE does not take on {provider}.",
            "codes around a fixed zero",
            "set quant.experts.symmetric=true",
            key=("quant.symmetric", "quant.experts.symmetric"),
        )
    if not normalize:
        yield Problem(
            "The weights of a token's experts do not add up to 1 in this architecture, and QMoE "
            f"normalizes them on {provider}.",
            "a provider that takes them as they are",
            "choose export=cpu_int4 or export=cuda_int4",
            key=("target.execution_provider",),
        )
