"""Descriptions of the recipe tree, and configs read with them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from converter.cli.compose import compose_recipe
from converter.model.architecture import Architecture, read_architecture
from converter.recipe.schema import Recipe


@lru_cache(maxsize=64)
def described(name: str) -> Recipe:
    """A recipe with the architecture `name`."""
    return compose_recipe([f"architecture={name}", "model=internlm2_7b", "export=cpu_fp32"])


def architecture(config: Mapping[str, Any], name: str = "internlm2") -> Architecture:
    """What a config.json says, read with the description `name`."""
    return read_architecture(config, described(name))
