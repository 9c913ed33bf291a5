"""The texts that ids are compared on."""

from __future__ import annotations

import unicodedata

from converter.tokenizer.hard_texts import hard_texts


def test_there_are_some_hundreds_of_many_kinds() -> None:
    texts = list(hard_texts([]))
    assert len(texts) > 200 and len({kind for kind, _ in texts}) >= 10
    assert len({text for _, text in texts}) == len(texts)
    assert all(text and "\0" not in text and len(text) < 4000 for _, text in texts)


def test_some_are_hard_for_each_normalizer() -> None:
    texts = [text for _, text in hard_texts([])]
    for form in ("NFC", "NFD", "NFKC"):
        assert any(unicodedata.normalize(form, text) != text for text in texts)
    assert any(text != text.lower() for text in texts)
    assert any(text != text.strip() for text in texts) and any("\r\n" in text for text in texts)


def test_added_tokens_have_all_kinds_of_neighbours() -> None:
    texts = [text for kind, text in hard_texts(["<x>"]) if kind == "added tokens"]
    assert {"<x>", "a<x>b", "a <x> b", "<x><x>"} <= set(texts)
    many = list(hard_texts([f"<{number}>" for number in range(5000)]))
    assert len(many) < 400


def test_some_hold_lines_of_blanks_and_long_unbroken_words() -> None:
    texts = [text for _, text in hard_texts([])]
    assert any("\n    \n    r" in text for text in texts)
    assert any(len(text) > 200 and not any(map(str.isspace, text)) for text in texts)
