"""The pass engine, and in one place the names that a pass of an installed package needs.

A name is imported when it is asked for: most of them bring PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converter.engine.contract import Done, Pass, Run
    from converter.errors import ConvertError, Problem
    from converter.graph.graph import Graph
    from converter.machine.disk import Room
    from converter.model.checkpoint import Checkpoint
    from converter.model.decoder import Decoder
    from converter.output.package import Package
    from converter.recipe.guest_slots import own_settings
    from converter.recipe.schema import Recipe

__all__ = [
    "Checkpoint",
    "ConvertError",
    "Decoder",
    "Done",
    "Graph",
    "Package",
    "Pass",
    "Problem",
    "Recipe",
    "Room",
    "Run",
    "own_settings",
]
_HOMES = {
    "converter.engine.contract": ("Done", "Pass", "Run"),
    "converter.errors": ("ConvertError", "Problem"),
    "converter.graph.graph": ("Graph",),
    "converter.machine.disk": ("Room",),
    "converter.model.checkpoint": ("Checkpoint",),
    "converter.model.decoder": ("Decoder",),
    "converter.output.package": ("Package",),
    "converter.recipe.guest_slots": ("own_settings",),
    "converter.recipe.schema": ("Recipe",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
