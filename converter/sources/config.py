"""The config.json of a recipe's source, before the source is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from converter.errors import ConvertError
from converter.gguf.files import is_gguf
from converter.model.checkpoint import read_json
from converter.model.config_file import CONFIG_FILE
from converter.storage.user_path import user_path


@dataclass(frozen=True)
class SourceConfig:
    """What config.json says, and where it lies."""

    config: Mapping[str, Any]
    place: str


def source_config(values: Mapping[str, Any]) -> SourceConfig | None:
    """config.json of the source that a composed recipe's `values` name.

    What the model states, or else the folder's own, or else the repository's on the hub. None where
    there is none to read: what is wrong with the source is said when it is opened. A checkpoint of
    another kind than the recipe's model is refused then, too.
    """
    source, model = values.get("source") or {}, values.get("model") or {}
    path, stated = source.get("path"), model.get("config")
    if source.get("kind") == "demo":
        path = str(demo_folder())
    if stated:
        return SourceConfig(stated, f"the model {model.get('name') or ''}".strip())
    if isinstance(path, str) and path.strip():
        return _in_folder(path)
    repo = source.get("repo")
    if path is None and source.get("kind") == "checkpoint" and isinstance(repo, str) and repo:
        return _on_hub(repo, source.get("revision"))
    return None


def demo_folder() -> Path:
    """Folder of the built-in demo model."""
    folder: Any = files("converter") / "data" / "demo"
    return Path(str(folder))


def _in_folder(path: str) -> SourceConfig | None:
    try:
        folder = user_path(path)
        if is_gguf(folder):
            from converter.sources.gguf import gguf_source  # PyTorch, which others do without

            model = gguf_source(folder)
            if model is not None:
                return SourceConfig(model.config, str(folder))
        return SourceConfig(read_json(folder / CONFIG_FILE), str(folder))
    except (ConvertError, OSError):
        return None


def _on_hub(repo: str, revision: Any) -> SourceConfig | None:
    from converter.sources.hub import fetch_config

    try:
        return SourceConfig(read_json(fetch_config(repo, revision)), repo)
    except ConvertError:
        return None
