"""The ids of special tokens, where a checkpoint's files agree, disagree, or are wrong."""

from __future__ import annotations

from typing import Any

import pytest
from published import CHAT_TOKENIZER, TOKENIZER_MODEL, VOCAB_SIZE, published_json

from converter.tokenizer.sentencepiece_model import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceModel,
    read_sentencepiece_model,
)
from converter.tokenizer.special_tokens import (
    CHAT_TOKENS,
    Declared,
    chat_token_id,
    declared_tokens,
    is_placeholder,
    resolve_added_tokens,
)

PIECES = ["<unk>", "<s>", "</s>", "a", "b", "<own>", *(f"[UNUSED_TOKEN_{n}]" for n in range(8))]
TYPES = [UNKNOWN, CONTROL, CONTROL, NORMAL, NORMAL, USER_DEFINED, *[USER_DEFINED] * 8]
SMALL = SentencePieceModel(
    tuple(PIECES), (0.0,) * len(PIECES), tuple(TYPES), False, 0, 1, 2, -1, b""
)
COUNT = len(PIECES)


def test_published_chat_tokens_have_the_last_ids() -> None:
    model = read_sentencepiece_model(TOKENIZER_MODEL)
    files = {path.name: published_json(path) for path in CHAT_TOKENIZER.iterdir()}
    added = resolve_added_tokens(model, declared_tokens(files), VOCAB_SIZE)
    assert added.problems == []
    for number, text in enumerate(CHAT_TOKENS):
        assert added.special[text] == VOCAB_SIZE - 1 - number
    assert {"<unk>", "<s>", "</s>"} <= added.special.keys()
    assert not any(is_placeholder(text) and index >= VOCAB_SIZE - len(CHAT_TOKENS)
                   for text, index in {**added.ordinary, **added.special}.items())  # fmt: skip


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {}),
        (
            {"tokenizer_config.json": {"additional_special_tokens": ["<x>"]}},
            {"<x>": Declared(None)},
        ),
        (
            {"special_tokens_map.json": {"additional_special_tokens": [{"content": "<x>"}]}},
            {"<x>": Declared(None)},
        ),
        ({"added_tokens.json": {"<x>": 14}}, {"<x>": Declared(14, special=False)}),
        (
            {
                "added_tokens.json": {"<x>": 14},
                "tokenizer_config.json": {"extra_special_tokens": {"x_token": "<x>"}},
            },
            {"<x>": Declared(14)},
        ),
        (
            {"tokenizer.json": {"added_tokens": [{"content": "<x>", "id": 14, "special": True}]}},
            {"<x>": Declared(14)},
        ),
        (
            {
                "tokenizer.json": {"added_tokens": [{"content": "<x>", "id": 14}]},
                "tokenizer_config.json": {"extra_special_tokens": ["<y>"]},
            },
            {"<x>": Declared(14, special=False), "<y>": Declared(None)},
        ),
        (
            {"tokenizer_config.json": {"added_tokens_decoder": {"14": {"content": "<x>"}}}},
            {"<x>": Declared(14, special=False)},
        ),
        (
            {
                "tokenizer_config.json": {
                    "additional_special_tokens": None,
                    "added_tokens_decoder": {"13": {"content": "<x>", "special": True}},
                },
                "added_tokens.json": {"<x>": 99},
            },
            {"<x>": Declared(13, special=True)},  # the most exact of the files decides
        ),
    ],
)
def test_what_the_files_declare(files: dict[str, Any], expected: dict[str, Declared]) -> None:
    assert declared_tokens(files) == expected


def test_pieces_are_special_or_ordinary_by_their_type() -> None:
    added = resolve_added_tokens(SMALL, {}, COUNT)
    assert added.special == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert list(added.ordinary.items()) == [(text, PIECES.index(text)) for text in PIECES[5:]]


def test_a_piece_has_its_own_id_whatever_was_declared() -> None:
    added = resolve_added_tokens(SMALL, {"<own>": Declared(99)}, COUNT)
    assert added.special["<own>"] == 5 and "<own>" not in added.ordinary
    (note,) = added.notes
    assert "<own> was declared with id 99; its id is 5" in note


def test_a_placeholder_takes_the_name_that_is_declared_at_its_id() -> None:
    index = PIECES.index("[UNUSED_TOKEN_3]")
    added = resolve_added_tokens(SMALL, {"<tool>": Declared(index, special=False)}, COUNT)
    assert added.ordinary["<tool>"] == index and "[UNUSED_TOKEN_3]" not in added.ordinary
    assert added.notes == [] == added.problems


@pytest.mark.parametrize("index", [None, COUNT + 7, 3])
def test_chat_tokens_have_their_ids_whatever_was_declared(index: int | None) -> None:
    added = resolve_added_tokens(SMALL, {"<|im_start|>": Declared(index)}, COUNT)
    assert added.special["<|im_start|>"] == COUNT - 1 and added.problems == []
    (note,) = added.notes
    assert ("no file gives the id" in note) == (index is None)


def test_a_row_behind_the_last_piece_is_the_tokens_own() -> None:
    declared = {"<|im_start|>": Declared(COUNT), "<own>": Declared(COUNT + 1)}
    added = resolve_added_tokens(SMALL, declared, COUNT + 2)
    assert added.special["<|im_start|>"] == COUNT and added.special["<own>"] == COUNT + 1
    assert added.notes == [] == added.problems


def test_files_with_different_ids_are_a_problem_where_both_have_a_row() -> None:
    files: dict[str, Any] = {
        "added_tokens.json": {"<x>": COUNT},
        "tokenizer.json": {"added_tokens": [{"content": "<x>", "id": COUNT + 1}]},
    }
    (problem,) = resolve_added_tokens(SMALL, declared_tokens(files), COUNT + 2).problems
    assert f"{COUNT} in added_tokens.json" in problem.found and "<x>" in problem.found
    mended = resolve_added_tokens(SMALL, declared_tokens(files), COUNT + 1)
    assert [problem.found for problem in mended.problems] != []
    files["tokenizer.json"]["added_tokens"] = [{"content": "<x>", "id": COUNT}]
    assert resolve_added_tokens(SMALL, declared_tokens(files), COUNT + 1).problems == []


def test_flags_of_a_token_are_kept() -> None:
    entry = {"content": "<x>", "id": COUNT, "lstrip": True, "single_word": True, "rstrip": False}
    files = {"tokenizer.json": {"added_tokens": [entry]}}
    added = resolve_added_tokens(SMALL, declared_tokens(files), COUNT + 1)
    assert added.flags == {"<x>": {"lstrip", "single_word"}}


def test_without_placeholders_there_are_no_chat_tokens() -> None:
    bare = SentencePieceModel(
        tuple(PIECES[:5]), (0.0,) * 5, tuple(TYPES[:5]), False, 0, 1, 2, -1, b""
    )
    assert chat_token_id(bare, "<|im_start|>") is None and chat_token_id(SMALL, "<x>") is None
    assert chat_token_id(SMALL, "<|im_end|>") == COUNT - 2
    (problem,) = resolve_added_tokens(bare, {"<|im_start|>": Declared(None)}, 5).problems
    assert "<|im_start|> without an id" in problem.found


@pytest.mark.parametrize(
    ("index", "vocab_size", "good"),
    [(COUNT, COUNT + 1, True), (COUNT, COUNT, False), (COUNT + 5, COUNT + 8, True), (-1, 99, False),
     (3, 99, False), (None, 99, False)],
)  # fmt: skip
def test_other_tokens_need_a_free_row_of_the_embedding(
    index: int | None, vocab_size: int, good: bool
) -> None:
    added = resolve_added_tokens(SMALL, {"<extra>": Declared(index)}, vocab_size)
    assert (added.special.get("<extra>") == index and index is not None) == good
    assert (added.problems == []) == good
    if not good:
        assert (
            "<extra>" in added.problems[0].found and str(vocab_size) in added.problems[0].expected
        )


def test_two_names_for_one_id_are_a_problem() -> None:
    index = PIECES.index("[UNUSED_TOKEN_0]")
    declared = {"<one>": Declared(index), "<two>": Declared(index)}
    added = resolve_added_tokens(SMALL, declared, COUNT)
    assert added.special["<one>"] == index and "<two>" not in added.special
    (problem,) = added.problems
    assert "<two>" in problem.found
