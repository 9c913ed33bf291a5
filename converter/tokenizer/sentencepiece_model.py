"""Reading and checking a SentencePiece `tokenizer.model`.

Source of the format: sentencepiece_model.proto of google/sentencepiece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem, raise_if
from converter.model.json_schema import shown

SPACE = "\u2581"
"""What SentencePiece writes for a space."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_MODEL_TYPES = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}
_FETCH_AGAIN = "fetch the file again from the model's repository"
_OTHER_TOKENIZER = "use a checkpoint whose tokenizer is a SentencePiece BPE model, as InternLM2's"


@dataclass(frozen=True)
class SentencePieceModel:
    """The pieces of a BPE model, where an id is the index, and the ids of its special pieces."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    add_dummy_prefix: bool
    unk_id: int
    bos_id: int
    eos_id: int
    pad_id: int
    content: bytes

    def ids_of_type(self, *types: int) -> list[int]:
        """Ids of the pieces that have one of `types`, ascending."""
        return [index for index, kind in enumerate(self.types) if kind in types]


def read_sentencepiece_model(path: Path) -> SentencePieceModel:
    """Read `path`.

    Raises `ConvertError` when it is not a SentencePiece BPE model, or when it uses something whose
    ids `tokenizers` cannot reproduce (a text normalizer, pieces of type UNUSED, no byte fallback).
    """
    content = path.read_bytes()
    proto = _parse(path, content)
    # Reading a field of a message is slow; each is read once.
    entries = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    pieces, scores, types = zip(*entries, strict=True) if entries else ((), (), ())
    raise_if(_problems(path, proto, pieces, types))
    trainer = proto.trainer_spec
    return SentencePieceModel(
        pieces=pieces,
        scores=scores,
        types=types,
        add_dummy_prefix=proto.normalizer_spec.add_dummy_prefix,
        unk_id=trainer.unk_id,
        bos_id=trainer.bos_id,
        eos_id=trainer.eos_id,
        pad_id=trainer.pad_id,
        content=content,
    )


def _parse(path: Path, content: bytes) -> Any:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sentencepiece import sentencepiece_model_pb2

    if content.startswith(b"version https://git-lfs"):
        raise ConvertError(
            Problem(
                f"{path} is a Git LFS pointer, not the file itself.",
                "a SentencePiece model",
                "run `git lfs pull` in the checkpoint's folder",
            )
        )
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(content)
        complete = proto.HasField("trainer_spec") and proto.HasField("normalizer_spec")
    except DecodeError:
        complete = False
    if not complete:
        raise ConvertError(
            Problem(
                f"{path} ({len(content)} bytes) is truncated or not a SentencePiece model.",
                "a complete SentencePiece model with pieces, trainer and normalizer settings",
                _FETCH_AGAIN,
            )
        )
    return proto


def _problems(path: Path, proto: Any, pieces: Sequence[str], types: Sequence[int]) -> list[Problem]:
    kind = proto.trainer_spec.model_type
    if kind != 2:
        return [
            Problem(
                f"{path} holds a {_MODEL_TYPES.get(kind, kind)} model.",
                "a BPE model",
                _OTHER_TOKENIZER,
            )
        ]
    damage = _damage(path, proto.trainer_spec, pieces)
    if damage is not None:
        return [damage]
    return _normalizer_problems(path, proto) + _piece_problems(path, pieces, types)


def _damage(path: Path, trainer: Any, pieces: Sequence[str | bytes]) -> Problem | None:
    """What no trainer writes."""
    broken = [piece for piece in pieces if isinstance(piece, bytes)]  # protobuf decodes all others
    ids = {name: getattr(trainer, name) for name in ("unk_id", "bos_id", "eos_id", "pad_id")}
    past = [f"{name} {index}" for name, index in ids.items() if index >= len(pieces)]
    if broken:
        found = f"{len(broken)} pieces that are not UTF-8, such as {shown(broken[0])}"
    elif len(set(pieces)) < len(pieces):
        found = f"{len(pieces) - len(set(pieces))} pieces twice"
    elif past:
        found = f"{len(pieces)} pieces and {', '.join(past)}"
    else:
        return None
    return Problem(f"{path} has {found}.", "a whole SentencePiece model", _FETCH_AGAIN)


def _normalizer_problems(path: Path, proto: Any) -> list[Problem]:
    spec = proto.normalizer_spec
    rewrites = {
        f"the text normalizer {spec.name!r}": bool(spec.precompiled_charsmap),
        "remove_extra_whitespaces": spec.remove_extra_whitespaces,
        "escape_whitespaces = false": not spec.escape_whitespaces,
        "treat_whitespace_as_suffix": proto.trainer_spec.treat_whitespace_as_suffix,
        "a denormalizer": bool(proto.denormalizer_spec.precompiled_charsmap),
    }
    return [
        Problem(
            f"{path} uses {name}.",
            "a model that keeps its text as it is, as Llama's and InternLM2's",
            _OTHER_TOKENIZER,
        )
        for name, used in rewrites.items()
        if used
    ]


def _piece_problems(path: Path, pieces: Sequence[str], types: Sequence[int]) -> list[Problem]:
    by_type: dict[int, list[str]] = {}
    for piece, kind in zip(pieces, types, strict=True):
        by_type.setdefault(kind, []).append(piece)
    mergeable = by_type.get(NORMAL, [])
    known = set(mergeable) | set(by_type.get(USER_DEFINED, []))
    faults = {
        f"{len(by_type.get(BYTE, []))} byte pieces": (
            "256 byte pieces, so that every text has ids",
            len(by_type.get(BYTE, [])) != 256,
        ),
        f"{len(by_type.get(UNUSED, []))} pieces of type UNUSED": (
            "none: SentencePiece takes them apart again, which tokenizer.json cannot say",
            UNUSED in by_type,
        ),
        "user-defined pieces that contain a space": (
            "none: onnxruntime-genai looks for them before it replaces spaces",
            any(SPACE in piece for piece in by_type.get(USER_DEFINED, [])),
        ),
        "pieces with a character that is no piece by itself": (
            "every character of a piece in the vocabulary, or tokenizer.json cannot reach it",
            not set().union(*mergeable) <= known,
        ),
    }
    return [
        Problem(f"{path} has {found}.", expected, _OTHER_TOKENIZER)
        for found, (expected, wrong) in faults.items()
        if wrong
    ]
