"""The calibration tokens of a recipe, made with the tokenizer that the folder will ship."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from converter.model.decoder import Decoder
from converter.model.reference import Reference
from converter.recipe.schema import CalibrationConfig
from converter.text.folder_tokenizer import FolderTokenizer, source_tokenizer
from converter.text.texts import calibration_chunks, load_text
from converter.weights.spill import Spill

BATCH_VALUES = 1 << 22
"""Values of the widest activations of sequences that run together: narrow models want several at
once, or threads wait for each other more than they compute."""
HELD_BACK = 16
"""One sequence in so many is kept for judging, and not calibrated on."""


@dataclass(frozen=True)
class CalibrationTokens:
    """Token ids, int64 (sequences, sequence_length); the last `held` sequences judge."""

    ids: torch.Tensor
    held: int

    @property
    def digest(self) -> str:
        """SHA-256 of the ids and of how they are cut into sequences."""
        digest = hashlib.sha256(f"{tuple(self.ids.shape)}\0".encode())
        digest.update(self.ids.numpy().tobytes())
        return digest.hexdigest()

    @property
    def count(self) -> int:
        return int(self.ids.shape[0])

    def judges(self, index: slice) -> bool:
        """Whether the sequences of a batch judge; those of others are calibrated on."""
        return bool(index.start >= self.count - self.held)

    def embedded(self, reference: Reference, folder: Path) -> Spill:
        """The embeddings of all sequences, float32 (1, length, hidden_size) each, in `folder`."""
        hidden = Spill(folder, self.count, (1, self.ids.shape[1], reference.arch.hidden_size))
        for index, row in enumerate(self.ids):
            hidden[index] = reference.embed(row[None])
        return hidden

    def batches(self, columns: int) -> list[slice]:
        """`sequence_batches` of these; none has sequences of both kinds."""
        return sequence_batches(self.ids.shape, columns, self.held)


def sequence_batches(shape: torch.Size, columns: int, held: int = 0) -> list[slice]:
    """Sequences of a (sequences, length) to run together; activations have `columns` at most.

    The last `held` sequences are in batches of their own.
    """
    count, length = shape
    size = max(1, BATCH_VALUES // (length * columns))
    parts = ((0, count - held), (count - held, count))
    return [
        slice(start, min(start + size, stop))
        for first, stop in parts
        for start in range(first, stop, size)
    ]


def calibration_tokens(decoder: Decoder, config: CalibrationConfig) -> CalibrationTokens:
    """Draw the tokens; a source without a tokenizer (synthetic weights) gets random ids.

    Raises:
        ConvertError: the text is missing, empty, not UTF-8 or too short.
    """
    if decoder.checkpoint.folder is None:
        ids = _random_ids(decoder.architecture.vocab_size, config)
    else:
        ids = _text_ids(source_tokenizer(decoder), config)
    return CalibrationTokens(torch.from_numpy(ids), held_back(ids.shape[0]))


def held_back(count: int) -> int:
    """How many of `count` sequences judge."""
    return 0 if count < 4 else max(1, count // HELD_BACK)


def _text_ids(tokenizer: FolderTokenizer, config: CalibrationConfig) -> np.ndarray:
    return calibration_chunks(
        load_text(config.text, half="calibration", render_chat=tokenizer.render_chat),
        tokenizer.encode,
        n_tokens=config.tokens,
        sequence_length=config.sequence_length,
        seed=config.seed,
        bos_token_id=tokenizer.bos_token_id,
    )


def _random_ids(vocab_size: int, config: CalibrationConfig) -> np.ndarray:
    count = config.tokens // config.sequence_length
    generator = np.random.default_rng(config.seed)
    return generator.integers(0, vocab_size, (count, config.sequence_length), dtype=np.int64)
