"""The folder that passes hand on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from converter.graph.graph import Graph


@dataclass(frozen=True)
class Package:
    """A folder that onnxruntime-genai loads, not yet published."""

    folder: Path
    graph: Graph
    nbytes: int
    """Bytes of all its files."""
