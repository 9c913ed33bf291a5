"""tokenizer.json as it is built and mended, read by the tokenizers library."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import sentencepiece
from conftest import DEMO
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from converter.tokenizer.sentencepiece_model import read_sentencepiece_model
from converter.tokenizer.special_tokens import resolve_added_tokens
from converter.tokenizer.tokenizer_json import (
    build_tokenizer_json,
    mend_tokenizer_json,
    token_ids,
    tokenizer_json_problems,
)

MODEL = read_sentencepiece_model(DEMO / "tokenizer.model")
COUNT = len(MODEL.pieces)
LIBRARY = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))
BUILT = build_tokenizer_json(MODEL, resolve_added_tokens(MODEL, {}, COUNT), add_bos_token=True)
READER = Tokenizer.from_str(json.dumps(BUILT))


def built() -> dict[str, Any]:
    return copy.deepcopy(BUILT)


@given(st.text(max_size=40).filter(lambda text: "\0" not in text and "<" not in text))
@settings(max_examples=300, deadline=None)
def test_any_text_has_sentencepieces_ids_and_comes_back(text: str) -> None:
    ids = READER.encode(text, add_special_tokens=False).ids
    assert ids == LIBRARY.encode(text)
    if "\u2581" not in text:
        assert READER.decode(ids) == text


def test_every_id_has_the_text_of_its_piece() -> None:
    assert token_ids(BUILT) == {text: index for index, text in enumerate(MODEL.pieces)}
    assert READER.get_vocab_size() == COUNT
    assert all(READER.id_to_token(index) == text for index, text in enumerate(MODEL.pieces))


def test_bos_stands_before_a_text_only_where_it_is_wanted() -> None:
    assert READER.encode("a").ids[0] == MODEL.bos_id
    assert READER.encode("a", "b").ids.count(MODEL.bos_id) == 2
    added = resolve_added_tokens(MODEL, {}, COUNT)
    without = Tokenizer.from_str(json.dumps(build_tokenizer_json(MODEL, added, False)))
    assert without.encode("a").ids == LIBRARY.encode("a")


@pytest.mark.parametrize("given_", [None, {"type": "Metaspace", "prepend_scheme": "never"}])
def test_a_missing_pre_tokenizer_is_set_and_said(given_: dict[str, Any] | None) -> None:
    content, notes = built() | {"pre_tokenizer": given_}, list[str]()
    mended = mend_tokenizer_json(content, notes)
    assert mended["pre_tokenizer"] == BUILT["pre_tokenizer"] and len(notes) == 1
    text = "Once upon a time,  there\nwas 1 fox."
    again = Tokenizer.from_str(json.dumps(mended)).encode(text, add_special_tokens=False).ids
    assert again == LIBRARY.encode(text)
    assert content["pre_tokenizer"] == given_  # the given one stays as it is


def test_what_needs_no_mending_is_left_alone() -> None:
    notes: list[str] = []
    for content in (built(), built() | {"model": BUILT["model"] | {"byte_fallback": False}}):
        assert mend_tokenizer_json(content, notes) is content
    assert notes == []


def test_merges_of_older_files_are_strings() -> None:
    content = built() | {"pre_tokenizer": None}
    merges = [" ".join(pair) for pair in BUILT["model"]["merges"]]
    content["model"] = {**BUILT["model"], "merges": merges}
    assert mend_tokenizer_json(content, [])["pre_tokenizer"] == BUILT["pre_tokenizer"]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "has no model"),
        ([], "has no model"),
        ({"model": "BPE"}, "has no model"),
        ({"model": {"type": "Unigram"}}, "holds a Unigram model"),
        ({"model": {}}, "holds a None model"),
    ],
)
def test_another_kind_of_file_is_named(content: Any, part: str) -> None:
    (problem,) = tokenizer_json_problems(content, COUNT)
    assert part in problem.found and "tokenizer.model" in problem.remedy


def test_several_faults_are_said_at_once() -> None:
    content = built() | {"pre_tokenizer": {"type": "Metaspace", "split": True}}
    content["model"]["vocab"].pop("<0x0A>")
    content["added_tokens"].append({"id": COUNT + 3, "content": "<far>"})
    found = " ".join(problem.found for problem in tokenizer_json_problems(content, COUNT))
    assert "Metaspace" in found and "lacks 1 of the 256 byte pieces" in found
    assert "1 tokens past the embedding, such as <far>" in found
    assert tokenizer_json_problems(built(), COUNT) == []
    assert tokenizer_json_problems(built(), COUNT - 1) != []
