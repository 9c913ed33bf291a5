"""tokenizer.model of a SentencePiece vocabulary in a GGUF file (`tokenizer.ggml.model` llama).

The file holds what a SentencePiece BPE model is made of: pieces, scores and kinds. SentencePiece
itself reads what is written here.
"""

from __future__ import annotations

from converter.errors import ConvertError, Problem
from converter.gguf.vocabulary import NORMAL, UNUSED, Vocabulary

DEFAULT_IDS = {"unk_token": 0, "bos_token": 1, "eos_token": 2}
"""llama.cpp's ids where the file states none."""
_BPE = 2
NONE = -1


def sentencepiece_file(vocabulary: Vocabulary) -> bytes:
    """The content of tokenizer.model.

    Unused tokens behind the last used one fill the table up to the embedding's rows, and are left
    out. One before it is a piece like others that no merge reaches.

    Raises:
        ConvertError: the file has no score for each token.
    """
    from sentencepiece import sentencepiece_model_pb2

    scores = vocabulary.get("scores")
    if not isinstance(scores, tuple) or len(scores) != len(vocabulary.tokens):
        raise ConvertError(
            Problem(
                f"{vocabulary.header.path} has {len(vocabulary.tokens):,} tokens, and not as many "
                "scores.",
                "tokenizer.ggml.scores with a number for each token",
                "take a file that llama.cpp's converter wrote",
            )
        )
    proto = sentencepiece_model_pb2.ModelProto()
    count = max(index for index, _, _ in vocabulary.used()) + 1
    for text, score, kind in zip(
        vocabulary.tokens[:count], scores[:count], vocabulary.kinds[:count], strict=True
    ):
        proto.pieces.add(piece=text, score=score, type=NORMAL if kind == UNUSED else kind)
    trainer, normalizer, ids = proto.trainer_spec, proto.normalizer_spec, special_ids(vocabulary)
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback = _BPE, count, True
    for name in ("unk", "bos", "eos", "pad"):
        setattr(trainer, f"{name}_id", ids.get(f"{name}_token", NONE))
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(vocabulary.get("add_space_prefix", True))
    normalizer.remove_extra_whitespaces = bool(vocabulary.get("remove_extra_whitespaces", False))
    normalizer.escape_whitespaces = True
    content: bytes = proto.SerializeToString()
    return content


def special_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """Ids of bos, eos, unk and pad."""
    return vocabulary.named(DEFAULT_IDS)
