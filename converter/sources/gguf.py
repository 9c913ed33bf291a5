"""GGUF models among the sources: a file, one of a split model, or a folder with one model."""

from __future__ import annotations

from pathlib import Path

from converter.gguf.source import GgufModel, find_gguf
from converter.sources.local import weight_form


def gguf_source(path: Path) -> GgufModel | None:
    """The GGUF model at `path`; None for a folder with weights as transformers saves them.

    Raises:
        ConvertError: as `find_gguf`.
    """
    names = [item.name for item in path.iterdir()] if path.is_dir() else []
    return None if weight_form(names) else find_gguf(path)
