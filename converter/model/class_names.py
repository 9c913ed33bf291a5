"""A checkpoint's tensors as the parameters of transformers' class, by its own conversions.

Since transformers 5 a class may hold stacked what checkpoints keep apart: one parameter for the
gate and up projections of all experts. Its table of conversions (transformers'
`conversion_mapping.py`) says which tensors make a parameter; here they stay lazy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from converter.errors import ConvertError, Problem
from converter.weights.weight import Weight

MERGED, JOINED = "MergeModulelist", "Concatenate"
"""transformers' operations: stack the experts, and join each one's projections by their rows."""


class ExpertStack(Weight):
    """Weight (experts, rows, columns) of separate matrices; `parts` has a list of experts for each
    projection, whose rows follow each other."""

    def __init__(self, parts: Sequence[Sequence[Weight]]) -> None:
        first = parts[0][0]
        rows = sum(part[0].shape[0] for part in parts)
        self.shape = (len(parts[0]), rows, *first.shape[1:])
        self.dtype, self.label, self._parts = first.dtype, first.label, parts

    def rows(self, start: int, stop: int) -> torch.Tensor:
        each = [
            torch.cat([part[number].read().to(self.dtype) for part in self._parts])
            for number in range(start, stop)
        ]
        return torch.stack(each)


def class_weights(config: Any, named: Mapping[str, Weight]) -> dict[str, Weight]:
    """Weights by the names of the class's parameters.

    Args:
        config: transformers' config of the class.
        named: weights by the names that checkpoints have, experts in the order of their numbers.

    Raises:
        ConvertError: a conversion does something else than stacking and joining.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    mapping = get_checkpoint_conversion_mapping(config.model_type) or []
    converters = [item for item in mapping if isinstance(item, WeightConverter)]
    renamings = [item for item in mapping if not isinstance(item, WeightConverter)]
    found: dict[str, Weight] = {}
    groups: dict[str, dict[str, list[Weight]]] = {}
    for name, weight in named.items():
        target, pattern = rename_source_key(name, renamings, converters)
        if pattern is None:
            found[target] = weight
        else:
            groups.setdefault(target, {}).setdefault(pattern, []).append(weight)
    for target, parts in groups.items():
        converter = next(item for item in converters if next(iter(parts)) in item.source_patterns)
        _raise_unknown(target, converter.operations)
        found[target] = ExpertStack([*_ordered(converter.source_patterns, parts)])
    return found


def _ordered(patterns: Sequence[str], parts: Mapping[str, list[Weight]]) -> Iterator[list[Weight]]:
    yield from (parts[pattern] for pattern in patterns if pattern in parts)


def _raise_unknown(target: str, operations: Sequence[Any]) -> None:
    names = [type(item).__name__ for item in operations]
    if names not in ([MERGED], [MERGED, JOINED]):
        raise ConvertError(
            Problem(
                f"The class's {target} is made by transformers' {', '.join(names)}.",
                f"{MERGED}, or {MERGED} and {JOINED}, which the reference follows",
                "choose another model, or report this",
            )
        )
