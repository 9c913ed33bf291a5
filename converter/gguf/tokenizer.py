"""The tokenizer of a GGUF file as the files of a checkpoint, which `converter.tokenizer` reads."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from converter.errors import ConvertError, Problem
from converter.gguf.byte_level import adds_bos, tokenizer_json
from converter.gguf.header import GgufHeader
from converter.gguf.sentencepiece_file import sentencepiece_file, special_ids
from converter.gguf.vocabulary import (
    Vocabulary,
    chat_templates,
    has_vocabulary,
    read_vocabulary,
)
from converter.model.config_file import CONFIG_FILE
from converter.model.json_schema import shown
from converter.storage.cache import Cache, cache_folder

PASS = "gguf"
"""What `convert cache list` calls an entry."""
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
"""Values of `tokenizer.ggml.model`."""


def tokenizer_folder(header: GgufHeader, config: Mapping[str, Any]) -> Path | None:
    """A folder with the tokenizer's files and `config` as config.json; None without a tokenizer.

    It lies in the cache, under a name that follows from the content; where nothing may be written
    there, it is a temporary one that goes with the process.

    Raises:
        ConvertError: the tokenizer is of a kind that is not known, or incomplete.
    """
    if not has_vocabulary(header):
        return None
    files = tokenizer_files(header) | {CONFIG_FILE: _json(config)}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}

    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).write_bytes(content)

    try:
        return Cache(cache_folder()).get_or_make({"pass": PASS, "files": digests}, write)
    except ConvertError:  # there is no room for a cache, or it is only read
        folder = Path(mkdtemp(prefix="convert-gguf-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        write(folder)
        return folder


def tokenizer_files(header: GgufHeader) -> dict[str, bytes]:
    """The content of tokenizer.json or tokenizer.model, and of tokenizer_config.json.

    Raises:
        ConvertError: as `tokenizer_folder`.
    """
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind not in (BYTE_LEVEL, SENTENCEPIECE):
        raise ConvertError(
            Problem(
                f"{header.path} has tokenizer.ggml.model={shown(kind)}.",
                f"{BYTE_LEVEL} (byte-level BPE) or {SENTENCEPIECE} (SentencePiece)",
                "take the checkpoint that the file was made from, and give its folder",
            )
        )
    vocabulary = read_vocabulary(header)
    if kind == BYTE_LEVEL:
        files = {"tokenizer.json": _json(tokenizer_json(vocabulary))}
        config = _config(vocabulary, vocabulary.named(), adds_bos(vocabulary))
    else:
        files = {"tokenizer.model": sentencepiece_file(vocabulary)}
        adds = bool(vocabulary.get("add_bos_token", True))
        config = _config(vocabulary, special_ids(vocabulary), adds)
    return {**files, "tokenizer_config.json": _json(config)}


def _config(vocabulary: Vocabulary, ids: Mapping[str, int], adds: bool) -> dict[str, Any]:
    template = chat_templates(vocabulary.header)
    return {
        **{name: vocabulary.tokens[index] for name, index in ids.items()},
        "add_bos_token": adds,
        "add_eos_token": bool(vocabulary.get("add_eos_token", False)),
        **({"chat_template": template} if template is not None else {}),
    }


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8")
