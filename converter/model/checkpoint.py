"""A checkpoint as published: config files and named lazy tensors, nothing interpreted yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem, raise_if
from converter.model.config_file import GenerationConfigFile
from converter.model.json_schema import surrogate_problem, value_problems
from converter.weights.stand_in import stand_in
from converter.weights.weight import Weight

GENERATION_FILE = "generation_config.json"
TOKENIZERS = ("tokenizer.model", "tokenizer.json")
"""Files of which a tokenizer needs one."""


@dataclass(frozen=True)
class Checkpoint:
    """What a source gives.

    `files` are the files whose content decides the result; their hashes go into the lock file.
    `origin` says in JSON terms where it all came from.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Weight]
    origin: Mapping[str, Any]
    folder: Path | None = None
    """Folder of the tokenizer and generation config; None when the source has no tokenizer."""
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def has_tokenizer(self) -> bool:
        """Whether one of `TOKENIZERS` lies beside the weights."""
        return self.folder is not None and any((self.folder / n).is_file() for n in TOKENIZERS)

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """generation_config.json, or an empty mapping where the checkpoint has none.

        Raises:
            ConvertError: it cannot be read, or holds values of a wrong type.
        """
        path = self.folder / GENERATION_FILE if self.folder else None
        if path is None or not (path.is_file() or path.is_symlink()):
            return {}
        content = read_json(path)
        raise_if(value_problems(GenerationConfigFile, content, str(path)))
        return content


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConvertError: the file is missing, unreadable, not JSON or not an object.
    """
    problem = stand_in(path)
    if problem is not None:
        raise ConvertError(problem)
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
    except FileNotFoundError:
        raise ConvertError(
            Problem(
                f"{path} does not exist.",
                "a checkpoint folder as transformers saves it",
                "check source.path",
            )
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConvertError(
            Problem(
                f"{path} cannot be read: {error}.", "a JSON file in UTF-8", "fetch the file again"
            )
        ) from None
    if not isinstance(value, dict):
        raise ConvertError(
            Problem(f"{path} holds a {type(value).__name__}.", "a JSON object", "fetch it again")
        )
    raise_if(filter(None, [surrogate_problem(path, text, value)]))
    return value
