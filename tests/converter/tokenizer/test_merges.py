"""Merges and the split pattern, against SentencePiece's rule written out and regex engines."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import sentencepiece
from conftest import DEMO
from hypothesis import given, settings
from hypothesis import strategies as st
from published import TOKENIZER_MODEL
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from converter.tokenizer.merges import (
    SAFE_SPLIT_PATTERN,
    WHOLE_TEXT_PATTERN,
    bpe_merges,
    split_pattern,
)
from converter.tokenizer.sentencepiece_model import (
    NORMAL,
    SPACE,
    SentencePieceModel,
    read_sentencepiece_model,
)


@pytest.fixture(scope="module")
def model() -> SentencePieceModel:
    return read_sentencepiece_model(DEMO / "tokenizer.model")


def by_ranks(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """BPE as tokenizer.json means it: the pair of the lowest rank first, the leftmost of equals."""
    parts = list(word)
    while True:
        pairs = [
            (ranks.get(pair, len(ranks)), i) for i, pair in enumerate(itertools.pairwise(parts))
        ]
        rank, place = min(pairs, default=(len(ranks), 0))
        if rank == len(ranks):
            return parts
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


@functools.cache
def rules() -> tuple[Any, dict[tuple[str, str], int]]:
    """The library's processor of the demo's model, and the ranks of its merges here."""
    path = DEMO / "tokenizer.model"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    merges = bpe_merges(read_sentencepiece_model(path))
    return processor, {pair: rank for rank, pair in enumerate(merges)}


LETTERS = "".join(chr(code) for code in range(ord("a"), ord("z") + 1))


@given(st.text(alphabet=LETTERS + " ", min_size=1, max_size=25))
@settings(max_examples=80, deadline=None)
def test_merging_by_rank_gives_sentencepieces_pieces(text: str) -> None:
    processor, ranks = rules()
    assert by_ranks(text.replace(" ", SPACE), ranks) == processor.encode(text, out_type=str)


def test_every_merge_makes_a_piece_of_two_pieces(model: SentencePieceModel) -> None:
    normal = {model.pieces[index] for index in model.ids_of_type(NORMAL)}
    merges = bpe_merges(model)
    assert len(set(merges)) == len(merges)
    for left, right in merges:
        assert {left, right, left + right} <= normal
    assert {left + right for left, right in merges} == {p for p in normal if len(p) > 1}


def test_merges_are_in_the_order_of_their_pieces_scores(model: SentencePieceModel) -> None:
    score = dict(zip(model.pieces, model.scores, strict=True))
    scores = [score[left + right] for left, right in bpe_merges(model)]
    assert scores == sorted(scores, reverse=True)


def test_of_equal_scores_the_longer_left_part_comes_first() -> None:
    pieces = ("a", "aa", "aaa")
    scores = (0.0, -1.0, -2.0)
    model = SentencePieceModel(pieces, scores, (NORMAL,) * 3, False, 0, 1, 2, -1, b"")
    assert bpe_merges(model) == [("a", "a"), ("aa", "a"), ("a", "aa")]


def test_internlm2s_vocabulary_allows_the_safe_pattern() -> None:
    model = read_sentencepiece_model(TOKENIZER_MODEL)
    normal = [model.pieces[index] for index in model.ids_of_type(NORMAL)]
    assert split_pattern(normal) == SAFE_SPLIT_PATTERN
    assert split_pattern([*normal, "a1"]) == WHOLE_TEXT_PATTERN


@pytest.mark.parametrize(
    ("piece", "safe"),
    [
        ("abc", True),
        ("12", True),
        ("a1", False),
        ("1a", False),
        (f"a{SPACE}", False),
        (f"{SPACE}a", True),
        (f"{SPACE}{SPACE}", True),
        ("\n\n", True),
        ("\na", False),
        (f"\n{SPACE}", True),
        ("a\n", True),
        ("", True),
    ],
)
def test_pieces_that_the_pattern_would_cut_forbid_it(piece: str, safe: bool) -> None:
    assert (split_pattern([piece]) == SAFE_SPLIT_PATTERN) == safe


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
@settings(max_examples=80, deadline=None)
def test_the_pattern_loses_no_character(text: str) -> None:
    split = Split(Regex(SAFE_SPLIT_PATTERN), "isolated")
    assert "".join(part for part, _ in split.pre_tokenize_str(text)) == text


def test_no_part_of_real_text_is_longer_than_the_runtimes_stack_bears() -> None:
    split = Split(Regex(SAFE_SPLIT_PATTERN), "isolated")
    text = "A paragraph of words, numbers like 1234 and\nlines. " * 2000
    parts = [part for part, _ in split.pre_tokenize_str(text.replace(" ", SPACE))]
    assert "".join(parts) == text.replace(" ", SPACE)
    assert max(len(part.encode()) for part in parts) < 20_000


def test_split_pattern_never_cuts_a_piece() -> None:
    """Against the regular expression itself, by the engine that `tokenizers` uses."""
    split = Split(Regex(SAFE_SPLIT_PATTERN), "isolated")
    characters = "a\u4e2d.\u2581 \n\t\r09"
    for text in map("".join, itertools.product(characters, repeat=4)):
        parts = [part for part, _ in split.pre_tokenize_str(text)]
        assert "".join(parts) == text
        for left, right in itertools.pairwise(parts):
            assert split_pattern([left[-1] + right[0]]) == WHOLE_TEXT_PATTERN or right[0] == " "
