"""The memory that an evaluation takes at its peak, from shapes."""

from __future__ import annotations

from converter.evaluation.reference_logits import HEAD_BYTES
from converter.evaluation.statistics import TILE_VALUES
from converter.graph.memory import reference_memory, session_memory
from converter.model.architecture import Architecture
from converter.model.decoder import Decoder
from converter.model.reference import HEAD_ROWS
from converter.recipe.schema import EvaluateConfig

FLOAT = 4
"""Bytes of a float32."""
SCORE_TILES = 6
"""float64 tiles that a comparison has alive at the same time."""
LIBRARIES_BYTES = 200_000_000
"""transformers' Llama, tokenizer and text, and what the allocator keeps of small temporaries."""


def evaluation_memory(config: EvaluateConfig, decoder: Decoder, nbytes: int) -> int:
    """Bytes at the peak, on top of the process before it; `nbytes` are the folder's weights.

    The float model is gone when the runtime loads the folder.
    """
    reference = LIBRARIES_BYTES + reference_side(config, decoder)
    return max(reference, session_memory(nbytes) + comparison(config, decoder.architecture))


def reference_side(config: EvaluateConfig, decoder: Decoder) -> int:
    """The float model: a layer with a chunk's activations, or the logits of a few chunks, float32
    (scored, vocab_size), and some rows of lm_head."""
    arch = decoder.architecture
    width = 4 * arch.intermediate_size + 12 * arch.hidden_size
    logits = max(HEAD_BYTES, scored_bytes(config, arch)) + HEAD_ROWS * arch.hidden_size * 3 * FLOAT
    return max(reference_memory(decoder), logits, config.n_ctx * width * FLOAT)


def comparison(config: EvaluateConfig, arch: Architecture) -> int:
    """The runtime's logits of a chunk, float32 (n_ctx, vocab_size), and of the scored half: its
    copy, the reference's as float32, those of the chunk before, and as they are stored; and the
    tiles in which they are compared."""
    logits = config.n_ctx * arch.vocab_size * FLOAT
    scored = scored_bytes(config, arch)
    return logits + 3 * scored + scored // 2 + SCORE_TILES * TILE_VALUES * 8


def scored_bytes(config: EvaluateConfig, arch: Architecture) -> int:
    """One chunk's scored logits, float32: the second half of its positions."""
    return config.n_ctx // 2 * arch.vocab_size * FLOAT
