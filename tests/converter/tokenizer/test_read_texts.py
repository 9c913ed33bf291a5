"""What the tokenizers library reads of texts."""

from __future__ import annotations

from conftest import DEMO
from tokenizers import Tokenizer

from converter.tokenizer import prepare_tokenizer
from converter.tokenizer.read_texts import read_texts
from converter.tokenizer.tokenizer_json import read_with_library

CONTENT = prepare_tokenizer(DEMO, 1024).files["tokenizer.json"]


def test_ids_are_without_special_tokens_and_added_tokens_are_tried() -> None:
    library = Tokenizer.from_buffer(CONTENT)
    found = read_texts(read_with_library(CONTENT))
    for item in found:
        assert list(item.ids) == library.encode(item.text, add_special_tokens=False).ids
    added = library.get_added_tokens_decoder().values()
    tried = [item.text for item in found if item.kind == "added tokens"]
    assert any(token.content in text for token in added for text in tried)


def test_given_texts_alone_are_read() -> None:
    (found,) = read_texts(read_with_library(CONTENT), [("prose", "Once upon a time")])
    assert found.kind == "prose" and found.text == "Once upon a time" and len(found.ids) > 1
