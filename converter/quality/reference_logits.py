"""The float model's next-token distributions of a text, computed layer by layer and kept on disk.

One layer's weights are in memory at a time, and all chunks pass through it before the next one is
read; so a model of any size is evaluated in the memory of a layer, plus the hidden states of the
text (spilled to a file when they are large). The cache keeps the result for every folder made from
the same weights that is evaluated on the same tokens.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from converter.cache import Cache, key_hash
from converter.model.decoder import Decoder
from converter.progress import Advance
from converter.quality.reference_file import (
    ReferenceFile,
    ReferenceHeader,
    reference_key,
    write_reference,
)
from converter.quality.texts import EvaluationChunks
from converter.recipe import LayoutConfig

if TYPE_CHECKING:
    import torch

    from converter.model.reference import Reference

CODE_VERSION = 1
"""Counted up when the same weights and tokens would give other numbers."""
REFERENCE_FILE = "reference.logits"
"""The cache entry's content; see converter/quality/reference_file.py."""
SPILLED_BYTES = 2**28
"""Hidden states of more bytes than this lie in a temporary file."""
HEAD_BYTES = 2**28
"""Logits computed at a time, so that lm_head is read once for several chunks."""


def stored_reference(
    decoder: Decoder,
    layout: LayoutConfig,
    chunks: EvaluationChunks,
    cache: Cache,
    advance: Advance,
) -> ReferenceFile:
    """The fp32 reference of `decoder` on `chunks`: from the cache, or computed and kept there.

    `layout` is the one that `decoder` was read with; `advance(done, total, detail)` is told each
    layer and each chunk.

    Raises:
        ConvertError: a weight cannot be read, or the model gives NaN or infinity.
    """
    model = {
        "pass": "evaluate",
        "code_version": CODE_VERSION,
        "source": cache.content_key(decoder.checkpoint),
        "layout": asdict(layout),
    }
    key = reference_key(key_hash(model), chunks.input_ids, chunks.first)

    def make(folder: Path) -> None:
        compute_reference(folder / REFERENCE_FILE, key, decoder, chunks, advance)

    folder = cache.get_or_make({**model, "reference": key}, make)
    return ReferenceFile(folder / REFERENCE_FILE, key)


def compute_reference(
    path: Path, key: str, decoder: Decoder, chunks: EvaluationChunks, advance: Advance
) -> None:
    """Run the float model over `chunks` and write its scored logits to `path`."""
    import torch

    from converter.model.reference import Reference

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
    return tempfile.TemporaryFile(dir=folder)
