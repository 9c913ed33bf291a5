"""The float model's next-token distributions of a text, computed layer by layer and kept on disk.

One layer's weights are in memory at a time, and all chunks pass through it before the next one is
read; so a model of any size is evaluated in the memory of a layer. The hidden states of the text
lie in a file meanwhile. The cache keeps the result for every folder made from
the same weights that is evaluated on the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from converter.evaluation.reference_file import (
    ReferenceFile,
    ReferenceHeader,
    reference_key,
    write_reference,
)
from converter.model.architecture import Architecture
from converter.model.decoder import Decoder
from converter.progress import Advance
from converter.recipe.schema import EvaluateConfig
from converter.storage.cache import Cache, Entry, key_hash
from converter.text.texts import EvaluationChunks
from converter.weights.spill import Spill

if TYPE_CHECKING:
    import torch

    from converter.model.reference import Reference

CODE_VERSION = 1
"""Counted up when the same weights and tokens would give other numbers."""
PASS = "evaluate"
REFERENCE_FILE = "reference.logits"
"""The cache entry's content; see converter/evaluation/reference_file.py."""
HEAD_BYTES = 2**28
"""Logits computed at a time, so that lm_head is read once for several chunks."""


def stored_reference(
    decoder: Decoder,
    chunks: EvaluationChunks,
    cache: Cache,
    advance: Advance,
) -> ReferenceFile:
    """The fp32 reference of `decoder` on `chunks`: from the cache, or computed and kept there.

    `advance(done, total, detail)` is told each layer and each chunk.

    Raises:
        ConvertError: a weight cannot be read, or the model gives NaN or infinity.
    """
    model = {
        "pass": PASS,
        "code_version": CODE_VERSION,
        "source": cache.content_key(decoder.checkpoint),
        "layout": asdict(decoder.layout),
        "architecture": asdict(decoder.architecture),
    }
    key = reference_key(key_hash(model), chunks.input_ids, chunks.first)

    def make(folder: Path) -> None:
        compute_reference(folder / REFERENCE_FILE, key, decoder, chunks, advance)

    folder = cache.get_or_make({**model, "reference": key}, make)
    return ReferenceFile(folder / REFERENCE_FILE, key)


def reference_disk(
    config: EvaluateConfig, arch: Architecture, chunks: int, made: Iterable[Entry]
) -> int:
    """Bytes that a reference on so many chunks takes in the cache's folder, hidden states included.

    Nothing where a reference is among the `made` entries of the same checkpoint: it may serve.
    """
    if any(entry.key.get("pass") == PASS for entry in made):
        return 0
    positions = config.n_ctx - 1 - config.n_ctx // 2
    record = ReferenceHeader("", chunks, positions, arch.vocab_size).record.itemsize
    return chunks * (positions * record + config.n_ctx * arch.hidden_size * 4)


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
    reference = Reference(decoder)
    next_tokens = torch.from_numpy(chunks.next_tokens)
    group = max(1, HEAD_BYTES // (positions * vocab_size * 4))
    hidden = Spill(path.parent, count, (1, n_ctx, decoder.architecture.hidden_size))
    with write_reference(path, header) as writer, closing(hidden):
        _run_layers(reference, torch.from_numpy(chunks.input_ids), hidden, advance)
        for start in range(0, count, group):
            states = hidden[start : min(start + group, count)][:, chunks.scored]
            for number, chunk in enumerate(reference.logits(states), start):
                writer.add(chunk, next_tokens[number])
                advance(number + 1, count, "reference, lm_head")


def _run_layers(reference: Reference, ids: torch.Tensor, hidden: Spill, advance: Advance) -> None:
    """Put the hidden states of `ids`, int64 [n, n_ctx], after the last layer into `hidden`."""
    for number, row in enumerate(ids):
        hidden[number] = reference.embed(row)
    layers = reference.arch.num_hidden_layers
    for layer in range(layers):
        advance(layer, layers, f"reference, layer {layer}")
        with reference.layer(layer) as module:
            for number in range(len(ids)):
                hidden[number] = reference.run_layer(module, hidden[number])
