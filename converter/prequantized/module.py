"""The tensors of one module of a quantized checkpoint, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from converter.errors import Problem
from converter.weights.alike import alike, kinds
from converter.weights.weight import Weight

SHOWN = 3
"""Shapes that a problem names."""


class UnfitError(Exception):
    """A module's tensors do not fit its format: what was found, what was expected, what to do."""

    def __init__(self, found: str, expected: str, remedy: str) -> None:
        super().__init__(found)
        self.found, self.expected, self.remedy = found, expected, remedy


@dataclass(frozen=True)
class Module:
    """Tensors that belong together, by the ends of their names such as `qweight`."""

    name: str
    tensors: Mapping[str, Weight]
    shape: tuple[int, int] | None = None
    """Rows and columns that config.json implies, for formats that state none in their headers."""

    def need(
        self, end: str, dtypes: Sequence[torch.dtype], dimensions: Sequence[int] = (2,)
    ) -> Weight:
        """The tensor of this module, in one of the types and with one of the numbers of dimensions.

        Raises:
            UnfitError: it is missing, or of another type.
        """
        wanted = " or ".join(_name(dtype) for dtype in dtypes)
        weight = self.tensors.get(end)
        if weight is None:
            raise UnfitError(
                f"no {end}", f"{end} in {wanted} beside {', '.join(self.tensors)}", FETCH
            )
        if weight.dtype not in dtypes:
            raise UnfitError(f"{end} in {_name(weight.dtype)}", f"{end} in {wanted}", FETCH)
        if len(weight.shape) not in dimensions:
            stated = " or ".join(map(str, dimensions))
            raise UnfitError(
                f"{end} of shape {weight.shape}", f"{end} of {stated} dimensions", FETCH
            )
        return weight

    def has(self, end: str) -> bool:
        return end in self.tensors


FETCH = "fetch the checkpoint again, or quantize it again"
HALF_OR_FLOAT = (torch.float16, torch.bfloat16, torch.float32)


def same_shape(end: str, found: Weight, expected: tuple[int, ...], why: str) -> None:
    """Raise `UnfitError` where a tensor has another shape than the others imply."""
    if tuple(found.shape) != expected:
        raise UnfitError(
            f"{end} of shape {tuple(found.shape)}",
            f"{end} of shape {expected}: {why}",
            "correct quantization_config in config.json, or fetch the weights that belong to it",
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass
class Opened:
    """What a format makes of a checkpoint's tensors."""

    weights: dict[str, Weight] = field(default_factory=dict)
    """All tensors, quantized modules as one weight each."""
    notes: list[str] = field(default_factory=list)
    """What the checkpoint states that has no effect here."""
    problems: list[Problem] = field(default_factory=list)


def group_modules(
    tensors: Mapping[str, Weight], marks: Iterable[str], ends: Sequence[str]
) -> dict[str, dict[str, Weight]]:
    """Tensors of quantized modules, by module and end.

    Args:
        tensors: by the checkpoint's names.
        marks: ends of names that only quantized modules have; a module with one of them counts.
        ends: all that belong to a module.
    """
    found: dict[str, dict[str, Weight]] = {}
    for name, weight in tensors.items():
        for end in ends:
            if name.endswith(f".{end}"):
                found.setdefault(name.removesuffix(f".{end}"), {})[end] = weight
                break
    marked = set(marks)
    return {name: held for name, held in found.items() if marked & set(held)}


def open_modules(
    tensors: Mapping[str, Weight],
    modules: Mapping[str, Mapping[str, Weight]],
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[Module], Weight],
) -> Opened:
    """Replace the tensors of each module by one weight under the name `MODULE.weight`.

    What does not fit is counted: one problem for each kind of module and cause.
    """
    opened = Opened()
    unfit: dict[tuple[str, str, str], list[str]] = {}
    used = {f"{name}.{end}" for name, held in modules.items() for end in held}
    for name, held in modules.items():
        shape = shapes.get(f"{name}.weight")
        implied = (shape[0], shape[1]) if shape is not None and len(shape) == 2 else None
        try:
            opened.weights[f"{name}.weight"] = read(Module(name, held, implied))
        except UnfitError as error:
            unfit.setdefault((error.found, error.expected, error.remedy), []).append(name)
    opened.weights |= {name: weight for name, weight in tensors.items() if name not in used}
    opened.problems += _counted(unfit)
    return opened


def _counted(unfit: Mapping[tuple[str, str, str], Sequence[str]]) -> Iterator[Problem]:
    for (found, expected, remedy), names in unfit.items():
        first = kinds(names)[0]
        more = alike(names)
        yield Problem(f"The quantized module {first[0]} has {found}{more}.", expected, remedy)


def stated(config: Mapping[str, Any], keys: Iterable[str]) -> Any:
    """The first of the keys that the section has; formats renamed some over the years."""
    return next((config[key] for key in keys if config.get(key) is not None), None)


def is_count(value: Any) -> bool:
    """Whether a value of config.json is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def group_size_problems(size: Any) -> Iterator[Problem]:
    """A group size that is neither a number of columns nor -1, one scale a row."""
    if size != -1 and not is_count(size):
        yield Problem(
            f"quantization_config has group_size={size}.",
            "a number of columns, or -1 for one scale a row",
            "correct group_size in config.json",
        )


def section(value: Any) -> Mapping[str, Any]:
    """A section of config.json; an empty one in the place of anything else."""
    return value if isinstance(value, Mapping) else {}


def matches(pattern: str, name: str) -> bool:
    """Whether a module's name begins as a regular expression of config.json says.

    Raises:
        UnfitError: it is no regular expression.
    """
    try:
        return re.match(pattern, name) is not None
    except re.error as error:
        raise UnfitError(
            f"the pattern {pattern!r} in quantization_config ({error})",
            "a regular expression",
            "correct it in config.json",
        ) from None
