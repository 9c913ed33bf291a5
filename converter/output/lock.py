"""What a folder says of its making: the resolved recipe, and the head of the lock file."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from converter import __version__
from converter.model.checkpoint import Checkpoint
from converter.recipe.schema import Recipe

VERSIONED = ("numpy", "onnx-ir", "onnxruntime-genai", "sentencepiece", "tokenizers", "torch")
"""Packages whose version can change a result; the lock file records them."""
NOT_IN_RESULT = ("output", "overwrite", "threads")
"""Keys of a recipe that do not change what comes out."""


def resolved_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, complete, without the keys that do not change the result."""
    import yaml

    values = dataclasses.asdict(recipe)
    kept = {key: value for key, value in values.items() if key not in NOT_IN_RESULT}
    return str(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))


def lock_entries(name: str, checkpoint: Checkpoint, sources: Mapping[str, Any]) -> dict[str, Any]:
    """What the lock file says before any pass has measured: recipe, versions, source files."""
    versions = {name: metadata.version(name) for name in VERSIONED if _installed(name)}
    return {
        "recipe": name,
        "versions": {"convert": __version__, "python": platform.python_version(), **versions},
        "source": {**checkpoint.origin, "files": sources},
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
