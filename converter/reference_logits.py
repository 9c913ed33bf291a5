"""The float model's next-token distributions of a text, computed layer by layer and kept on disk.

One layer's weights are in memory at a time, and all chunks pass through it before the next one is
read; so a model of any size is evaluated in the memory of a layer, plus the hidden states of the
text (spilled to a file when they are large). The file is shared by every folder made from the same
weights that is evaluated on the same tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from converter.calibration_text import EvaluationChunks
from converter.checkpoint import Checkpoint
from converter.decoder import Decoder
from converter.hashing import hash_file
from converter.recipe import LayoutConfig
from converter.reference_file import (
    ReferenceFile,
    ReferenceHeader,
    reference_key,
    write_reference,
)

if TYPE_CHECKING:
    import torch

    from converter.reference import Reference

CODE_VERSION = 1
"""Counted up when the same weights and tokens would give other numbers."""
WEIGHT_SUFFIXES = (".safetensors", ".bin")
SPILLED_BYTES = 2**28
"""Hidden states of more bytes than this lie in a temporary file."""
HEAD_BYTES = 2**28
"""Logits computed at a time, so that lm_head is read once for several chunks."""

Advance = Callable[[int, int, str], None]


def stored_reference(
    decoder: Decoder, layout: LayoutConfig, chunks: EvaluationChunks, advance: Advance
) -> ReferenceFile:
    """The fp32 reference of `decoder` on `chunks`: from the cache, or computed and kept there.

    `advance(done, total, detail)` is told each layer and each chunk.

    Raises:
        ConvertError: a weight cannot be read, or the model gives NaN or infinity.
    """
    key = reference_key(model_key(decoder, layout), chunks.input_ids, chunks.first)
    path = reference_path(key)
    if not path.exists():
        compute_reference(path, key, decoder, chunks, advance)
    return ReferenceFile(path, key)


def compute_reference(
    path: Path, key: str, decoder: Decoder, chunks: EvaluationChunks, advance: Advance
) -> None:
    """Run the float model over `chunks` and write its scored logits to `path` (complete or not)."""
    import torch

    from converter.reference import Reference

    count, n_ctx = chunks.input_ids.shape
    positions = len(range(n_ctx)[chunks.scored])
    vocab_size = decoder.architecture.vocab_size
    header = ReferenceHeader(key, count, positions, vocab_size)
    reference = Reference(decoder.architecture, decoder.weights, torch.float32)
    next_tokens = torch.from_numpy(chunks.next_tokens)
    group = max(1, HEAD_BYTES // (positions * vocab_size * 4))
    with write_reference(path, header) as writer, _spill_file(path.parent) as spill:
        hidden = _final_hidden_states(reference, chunks, spill, advance)[:, chunks.scored]
        for start in range(0, count, group):
            logits = reference.logits(hidden[start : start + group])
            for number, chunk in enumerate(logits, start):
                writer.add(chunk, next_tokens[number])
                advance(number + 1, count, "reference, lm_head")


def _final_hidden_states(
    reference: Reference, chunks: EvaluationChunks, spill: IO[bytes], advance: Advance
) -> torch.Tensor:
    """Hidden states after the last layer, float32 [n, n_ctx, hidden_size]."""
    import torch

    ids = torch.from_numpy(chunks.input_ids)
    hidden = _hidden_store((*ids.shape, reference.arch.hidden_size), spill)
    for number, row in enumerate(ids):
        hidden[number] = reference.embed(row)
    layers = reference.arch.num_hidden_layers
    for layer in range(layers):
        advance(layer, layers, f"reference, layer {layer}")
        with reference.layer(layer) as module:
            for number in range(len(ids)):
                hidden[number] = reference.run_layer(module, hidden[number : number + 1])[0]
    return hidden


def _hidden_store(shape: tuple[int, ...], spill: IO[bytes]) -> torch.Tensor:
    import torch

    if np.prod(shape) * 4 <= SPILLED_BYTES:
        return torch.empty(shape)
    return torch.from_numpy(np.memmap(spill, np.float32, mode="w+", shape=shape))


def _spill_file(folder: Path) -> IO[bytes]:
    """A file without a name, which the system removes with its last user."""
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)


def reference_path(key: str) -> Path:
    """Where the reference of `key` is kept: in CONVERT_CACHE, or the user's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convert"
    return Path(os.environ.get("CONVERT_CACHE") or base) / "reference" / f"{key}.logits"


def model_key(decoder: Decoder, layout: LayoutConfig) -> str:
    """SHA-256 of everything that decides the float model: config, layout and weights' content."""
    checkpoint = decoder.checkpoint
    content = {
        "version": CODE_VERSION,
        "config": dict(checkpoint.config),
        "layout": asdict(layout),
        "weights": weight_hashes(checkpoint) or dict(checkpoint.origin),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def weight_hashes(checkpoint: Checkpoint) -> Mapping[str, str]:
    """BLAKE3 of each weight file, by name; empty for weights that are not files."""
    files = [path for path in checkpoint.files if path.suffix in WEIGHT_SUFFIXES]
    states = [(path, path.stat()) for path in files]
    return {path.name: _hash(path, state.st_size, state.st_mtime_ns) for path, state in states}


@cache
def _hash(path: Path, size: int, modified: int) -> str:
    """Hashed once for all folders of a command; size and time tell a file that was replaced."""
    return hash_file(path)
