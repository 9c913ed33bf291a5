"""Whether a post_processor begins every text with BOS."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models, processors

from converter.tokenizer.post_processor import adds_token


def of(processor: Any) -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.post_processor = processor
    return dict(json.loads(tokenizer.to_str())["post_processor"])


FIRST = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 9)])
LAST = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 8)])
BYTES = processors.ByteLevel()


@pytest.mark.parametrize(
    ("processor", "adds"),
    [(FIRST, True), (LAST, False), (BYTES, False), (processors.Sequence([BYTES, FIRST]), True),
     (processors.BertProcessing(("</s>", 8), ("<s>", 9)), True),
     (processors.RobertaProcessing(("</s>", 8), ("<x>", 7)), False)],
)  # fmt: skip
def test_every_form_says_by_what_it_does(processor: Any, adds: bool) -> None:
    assert adds_token(of(processor), 9) is adds
