"""The tokenizer of a GGUF file: not read yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from converter.gguf.header import GgufHeader


def tokenizer_folder(header: GgufHeader, config: dict[str, Any]) -> Path | None:
    """None: the folder takes token ids only."""
    return None
