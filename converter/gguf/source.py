"""A GGUF model as a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem
from converter.gguf.config import known_architecture, model_config
from converter.gguf.files import gguf_files
from converter.gguf.header import GgufHeader, read_header
from converter.gguf.tensors import published_tensors
from converter.gguf.tokenizer import tokenizer_folder
from converter.gguf.weights import open_tensors
from converter.model.architecture import read_architecture
from converter.model.checkpoint import Checkpoint
from converter.model.description import Description
from converter.model.kind import kind_problems
from converter.weights.weight import Weight

COUNT = "split.count"


@dataclass(frozen=True)
class GgufModel:
    """A model's files, opened from their heads."""

    paths: Sequence[Path]
    header: GgufHeader
    """Of the first file, which has the metadata."""
    tensors: dict[str, Weight]
    """By GGUF's names."""
    kinds: dict[str, int]
    """How many tensors there are of each of ggml's types."""

    @property
    def config(self) -> dict[str, Any]:
        """config.json, as the metadata states it; raises `ConvertError` as `model_config`."""
        return model_config(self.header.path, self.header.metadata, self.tensors)


def find_gguf(path: Path) -> GgufModel | None:
    """The GGUF model at `path`, a file or a folder; None where there is something else.

    Raises:
        ConvertError: a file is missing, damaged, or holds a type that is not known.
    """
    paths = gguf_files(path)
    if paths is None:
        return None
    headers = [read_header(item) for item in paths]
    stated = headers[0].metadata.get(COUNT, 0)
    if stated > 1 and stated != len(paths):
        raise ConvertError(_wrong_count(paths, stated))
    kinds = Counter(place.kind for header in headers for place in header.tensors)
    tensors = open_tensors({header.path.name: header for header in headers})
    return GgufModel(paths, headers[0], tensors, dict(kinds.most_common()))


def open_gguf(model: GgufModel, description: Description) -> Checkpoint:
    """The checkpoint of a model, under the names and in the forms of its description.

    Raises:
        ConvertError: the description is for another kind of model; a tensor is missing or has no
            place; the metadata states what is not known; or the tokenizer is of an unknown kind.
    """
    path, config = model.header.path, model.config
    name, known = known_architecture(path, model.header.metadata)
    problems = list(kind_problems(config, description.layout))
    if problems:
        raise ConvertError(problems)
    arch = read_architecture(config, description)
    origin = {
        "kind": "gguf",
        "file": path.name,
        "architecture": name,
        "types": ", ".join(f"{count} {kind}" for kind, count in model.kinds.items()),
    }
    return Checkpoint(
        config=config,
        tensors=published_tensors(path, model.tensors, known, description.layout, arch),
        origin=origin,
        folder=tokenizer_folder(model.header, config),
        files=tuple(model.paths),
    )


def _wrong_count(paths: Sequence[Path], count: int) -> Problem:
    return Problem(
        f"{paths[0]} is one of {count} files of a split model, and its name says otherwise.",
        f"NAME-00001-of-{count:05d}.gguf and the others beside it",
        "give the files the names that llama.cpp gave them",
    )
