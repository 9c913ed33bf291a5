"""Reading tokenizer.model, against the sentencepiece library's own reading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from conftest import DEMO
from published import TOKENIZER_MODEL, VOCAB_SIZE
from sentencepiece import sentencepiece_model_pb2

from converter.errors import ConvertError
from converter.tokenizer.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    read_sentencepiece_model,
)

FILES = [TOKENIZER_MODEL, DEMO / "tokenizer.model"]


@pytest.mark.parametrize("path", FILES, ids=["internlm2", "demo"])
def test_pieces_scores_and_types_are_the_librarys(path: Path) -> None:
    found = read_sentencepiece_model(path)
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    count = library.get_piece_size()
    assert len(found.pieces) == len(found.scores) == len(found.types) == count
    assert list(found.pieces) == [library.id_to_piece(index) for index in range(count)]
    assert list(found.scores) == [library.get_score(index) for index in range(count)]
    assert found.ids_of_type(CONTROL) == [i for i in range(count) if library.is_control(i)]
    assert found.ids_of_type(BYTE) == [i for i in range(count) if library.is_byte(i)]
    assert found.ids_of_type(UNKNOWN) == [library.unk_id()]
    assert (found.bos_id, found.eos_id) == (library.bos_id(), library.eos_id())
    assert found.content == path.read_bytes()


def test_ids_of_several_types_are_ascending() -> None:
    found = read_sentencepiece_model(DEMO / "tokenizer.model")
    every = found.ids_of_type(NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE)
    assert every == list(range(len(found.pieces)))
    assert len(read_sentencepiece_model(TOKENIZER_MODEL).pieces) == VOCAB_SIZE


def changed(tmp_path: Path, change: str) -> str:
    """What is said of the demo's model after one change to it."""
    proto = sentencepiece_model_pb2.ModelProto.FromString((DEMO / "tokenizer.model").read_bytes())
    spec, trainer = proto.normalizer_spec, proto.trainer_spec
    if change == "charsmap":
        spec.precompiled_charsmap = b"x"
    elif change == "whitespace":
        spec.remove_extra_whitespaces = True
    elif change == "suffix":
        trainer.treat_whitespace_as_suffix = True
    elif change == "unigram":
        trainer.model_type = 1
    elif change == "byte":
        next(piece for piece in proto.pieces if piece.type == BYTE).type = NORMAL
    elif change == "unused":
        proto.pieces[-1].type = 5
    elif change == "unreachable":
        next(piece for piece in proto.pieces if piece.type == NORMAL).piece = "\u2603\u2604"
    path = tmp_path / "tokenizer.model"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ConvertError) as caught:
        read_sentencepiece_model(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("charsmap", "the text normalizer"),
        ("whitespace", "remove_extra_whitespaces"),
        ("suffix", "treat_whitespace_as_suffix"),
        ("unigram", "Unigram model"),
        ("byte", "255 byte pieces"),
        ("unused", "1 pieces of type UNUSED"),
        ("unreachable", "a character that is no piece by itself"),
    ],
)
def test_what_tokenizers_cannot_reproduce_is_named(tmp_path: Path, change: str, part: str) -> None:
    text = changed(tmp_path, change)
    assert part in text and "SentencePiece BPE model" in text


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda content: content.replace(b"the", b"t\x80e", 1), "1 pieces that are not UTF-8"),
        (lambda content: content + content, "pieces twice"),
    ],
)
def test_a_damaged_model_is_named(
    tmp_path: Path, damage: Callable[[bytes], bytes], part: str
) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(damage((DEMO / "tokenizer.model").read_bytes()))
    with pytest.raises(ConvertError, match=part):
        read_sentencepiece_model(path)


def test_ids_of_special_tokens_are_among_the_pieces(tmp_path: Path) -> None:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((DEMO / "tokenizer.model").read_bytes())
    proto.trainer_spec.bos_id = 99_999
    (tmp_path / "m").write_bytes(proto.SerializeToString())
    with pytest.raises(ConvertError, match="bos_id 99999"):
        read_sentencepiece_model(tmp_path / "m")


@pytest.mark.parametrize("content", [b"", b"\x0a", b"not a model", b'{"model": {}}'])
def test_another_file_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ConvertError, match="truncated or not a SentencePiece model"):
        read_sentencepiece_model(tmp_path / "tokenizer.model")


def test_a_pointer_of_git_lfs_says_how_to_get_the_file(tmp_path: Path) -> None:
    (tmp_path / "m").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    with pytest.raises(ConvertError, match="git lfs pull"):
        read_sentencepiece_model(tmp_path / "m")
