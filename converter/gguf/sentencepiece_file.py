"""tokenizer.model of a SentencePiece vocabulary in a GGUF file (`tokenizer.ggml.model` llama).

The file holds what a SentencePiece BPE model is made of: pieces, scores and kinds. SentencePiece
itself reads what is written here.
"""

from __future__ import annotations

from converter.errors import ConvertError, Problem
from converter.gguf.vocabulary import NORMAL, UNUSED, USER_DEFINED, Vocabulary
from converter.tokenizer.sentencepiece_model import SPACE

DEFAULT_IDS = {"unk_token": 0, "bos_token": 1, "eos_token": 2}
"""llama.cpp's ids where the file states none."""
_BPE = 2
NONE = -1


def sentencepiece_file(vocabulary: Vocabulary) -> bytes:
    """The content of tokenizer.model.

    Unused tokens behind the last used one fill the table up to the embedding's rows, and are left
    out.

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
        vocabulary.tokens[:count], scores[:count], _kinds(vocabulary)[:count], strict=True
    ):
        proto.pieces.add(piece=text, score=score, type=kind)
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


def _kinds(vocabulary: Vocabulary) -> list[int]:
    """The kinds of pieces as SentencePiece had them.

    llama.cpp's converter stores user-defined pieces as normal ones, and placeholders as unused. A
    piece that BPE has learnt is the union of two others, so any other one of several characters was
    given by the user. One with a space stays normal, which nothing reaches.
    """
    normal = {text for _, text, kind in vocabulary.used() if kind == NORMAL}

    def given(text: str) -> bool:
        splits = range(1, len(text))
        learnt = any(text[:at] in normal and text[at:] in normal for at in splits)
        return len(text) > 1 and SPACE not in text and not learnt

    return [
        (USER_DEFINED if given(text) else NORMAL) if kind in (NORMAL, UNUSED) else kind
        for text, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    ]


def special_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """Ids of bos, eos, unk and pad."""
    return vocabulary.named(DEFAULT_IDS)
